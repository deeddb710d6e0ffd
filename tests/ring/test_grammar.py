"""Answers bound to a grammar: the tokens of one process that masks every step, in fewer laps."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from pathlib import Path

import jsonschema
import pytest
from llguidance import LLMatcher

from dnet_core.coordinator import Coordinator
from dnet_core.errors import GrammarError
from dnet_core.events import LapMeasured, SessionEnded
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.store.catalog import SAMPLE_ID, resolve
from dnet_core.types.generation import FinishReason, GenerationDone, SamplingParams, TokenText
from tests.conftest import Rings
from tests.golden.test_ring import boundaries, num_layers
from tests.ring.sampling_reference import reference_answer
from tests.ring_tools import ring_plan, until_idle
from tests.tiny_models import EOS, make_tokenizer, write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100, 33, 7, 11, 60, 8, 23, 90, 77, 3, 14, 15, 92, 65, 35, 89, 79, 32, 38)
CHUNK = 5
EOS_ID = make_tokenizer().token_to_id(EOS)
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["the brown fox", "the lazy dog"]},
        "name": {"type": "string", "maxLength": 12},
        "size": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
        "is_quick": {"type": "boolean"},
        "owner": {"type": ["string", "null"], "maxLength": 6},
    },
    "required": ["kind", "name", "size", "tags", "is_quick", "owner"],
    "additionalProperties": False,
}
JSON = LLMatcher.grammar_from_json_schema(json.dumps(SCHEMA), overrides={"whitespace_flexible": False})
REGEX = LLMatcher.grammar_from_regex(r"jumps over (the lazy dog){2} [a-f]{1,20}")
GREEDY = SamplingParams(seed=1, max_tokens=200, grammar=JSON)
EVERYTHING = SamplingParams(
    temperature=0.9,
    top_p=0.95,
    top_k=60,
    min_p=0.01,
    min_tokens_to_keep=2,
    xtc_probability=0.3,
    xtc_threshold=0.05,
    repetition_penalty=1.3,
    repetition_context_tokens=30,
    presence_penalty=0.3,
    frequency_penalty=0.4,
    logit_bias=((77, 1.5),),
    seed=11,
    max_tokens=200,
    grammar=JSON,
)
SPLITS = (
    (1, [5], 1),
    (1, [2, 5], 2),
    (2, [2, 5], 1),
    (2, [1, 2, 4, 5], 2),
    (3, [1, 4, 5], 1),
)


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return write_tiny_model("llama", models / "grammar")


async def loaded(rings: Rings, model: Path, shards: int = 2, ends: list[int] | None = None) -> Coordinator:
    """A ring that holds `model`; one that holds it in this split already is taken as it is."""
    ring = await rings(shards)
    plan = ring_plan(model, ring.peers, ends or [2, 5], 1)
    if ring.loaded is None or ring.loaded.plan != plan:
        await ring.load(str(model), plan, CHUNK)
    return ring


@dataclass(frozen=True, slots=True)
class Answer:
    tokens: list[TokenText]
    done: GenerationDone

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)

    @property
    def ids(self) -> list[int]:
        return [token.token for token in self.tokens]

    @property
    def num_laps(self) -> int:
        return sum(1 for token in self.tokens if token.stages)


async def ask(ring: Coordinator, sampling: SamplingParams, prompt: tuple[int, ...] = PROMPT) -> Answer:
    events = [event async for event in ring.generate_from(prompt, sampling)]
    assert isinstance(events[-1], GenerationDone)
    return Answer([event for event in events if isinstance(event, TokenText)], events[-1])


def check(answer: Answer) -> None:
    """The answer is whole, fits the schema, and was told in order."""
    jsonschema.validate(json.loads(answer.text), SCHEMA)
    assert answer.done.finish_reason is FinishReason.STOP
    assert answer.done.completion_tokens == len(answer.tokens)
    first = answer.tokens[0].position
    assert [token.position for token in answer.tokens] == list(range(first, first + len(answer.tokens)))


@pytest.mark.parametrize(("shards", "ends", "rounds"), SPLITS)
@pytest.mark.parametrize("sampling", [GREEDY, EVERYTHING, replace(GREEDY, grammar=REGEX)])
async def test_the_tokens_are_those_of_one_process_that_masks_every_step(
    shards: int, ends: list[int], rounds: int, sampling: SamplingParams, rings: Rings, model: Path
) -> None:
    expected = [token.token for token in reference_answer(model, PROMPT, sampling, CHUNK)]
    ring = await rings(shards)
    await ring.load(str(model), ring_plan(model, ring.peers, ends, rounds), CHUNK)
    answer = await ask(ring, sampling)
    assert answer.ids == expected
    assert answer.num_laps < len(answer.tokens), "forced tokens went round together"
    if sampling.grammar == JSON:
        check(answer)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("shards", "ends"), [(1, [5]), (2, [2, 5])])
async def test_quantised_kv(bits: int, shards: int, ends: list[int], rings: Rings, models: Path) -> None:
    heads = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    wide = write_tiny_model("llama", models / "grammar-wide-heads", overrides=heads)
    ring = await rings(shards)
    await ring.load(str(wide), replace(ring_plan(wide, ring.peers, ends), kv_bits=bits), CHUNK)
    answer = await ask(ring, GREEDY)
    check(answer)
    assert (await ask(ring, GREEDY)).ids == answer.ids


@pytest.mark.parametrize("num_streamed", [5, 2])
async def test_streamed_layers(num_streamed: int, rings: Rings, model: Path) -> None:
    expected = [token.token for token in reference_answer(model, PROMPT, GREEDY, CHUNK)]
    ring = await rings(1)
    await ring.load(str(model), ring_plan(model, ring.peers, [5], 1, range(num_streamed), 2), CHUNK)
    assert (await ask(ring, GREEDY)).ids == expected


ARCHITECTURES = (
    "gpt2",  # learned positions
    "gemma3_text",  # sliding windows
    "mixtral",
    "deepseek_v3",
    "gpt_oss",
    "mamba2",  # states instead of KV
    "qwen3_next",
    "falcon_h1",
    "lfm2",
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_chunks_in_the_middle_of_an_answer(architecture: str, rings: Rings, models: Path) -> None:
    """What a cache makes of several tokens at once is what it makes of them one by one."""
    directory = write_tiny_model(architecture, models / f"grammar-{architecture}")
    expected = [token.token for token in reference_answer(directory, PROMPT, GREEDY, CHUNK)]
    ring = await rings(2)
    layers = num_layers(directory)
    await ring.load(str(directory), ring_plan(directory, ring.peers, boundaries((1, 1), layers)), CHUNK)
    answer = await ask(ring, GREEDY)
    assert answer.ids == expected
    assert answer.num_laps < len(answer.tokens)


async def test_the_sample_model_answers_in_fewer_laps(rings: Rings) -> None:
    directory = await resolve(SAMPLE_ID, lambda _done, _total: None)
    sampling = replace(GREEDY, max_tokens=120)
    prompt = Tokenizer.load(directory).encode_chat([{"role": "user", "content": "A fox, as JSON, please."}])
    expected = [token.token for token in reference_answer(directory, prompt, sampling, 16)]
    ring = await rings(2)
    await ring.load(SAMPLE_ID, ring_plan(SAMPLE_ID, ring.peers, [12, 30]), 16)
    answer = await ask(ring, sampling, prompt)
    check(answer)
    assert answer.ids == expected
    assert answer.num_laps < 0.7 * len(answer.tokens)


async def test_max_tokens_in_the_middle_of_what_is_forced(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    whole = await ask(ring, GREEDY)
    for count in range(1, 12):
        answer = await ask(ring, replace(GREEDY, max_tokens=count))
        assert answer.ids == whole.ids[:count]
        assert answer.done.finish_reason is FinishReason.LENGTH
        assert answer.done.completion_tokens == count
    exact = await ask(ring, replace(GREEDY, max_tokens=len(whole.ids)))
    assert (exact.ids, exact.done.finish_reason) == (whole.ids, FinishReason.STOP)


async def test_a_seed_gives_the_same_answer_beside_other_sessions(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model, 1, [5])
    requests = [replace(EVERYTHING, seed=seed) for seed in range(4)]
    requests += [replace(EVERYTHING, seed=seed, grammar=None, max_tokens=40) for seed in range(4)]
    alone = [(await ask(ring, request)).ids for request in requests]
    together = await asyncio.gather(*(ask(ring, request) for request in requests))
    assert [answer.ids for answer in together] == alone
    for answer in together[:4]:
        check(answer)
    assert len({tuple(ids) for ids in alone[:4]}) > 1


async def test_log_probabilities_are_of_what_was_left_to_choose(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    sampling = replace(GREEDY, logprobs=4)
    expected = reference_answer(model, PROMPT, sampling, CHUNK)
    answer = await ask(ring, sampling)
    for got, want in zip(answer.tokens, expected, strict=True):
        assert got.logprob == pytest.approx(want.logprobs[want.token], abs=1e-4)
        num_allowed = sum(logprob > -1e9 for logprob in want.logprobs)
        assert len(got.top_logprobs) == min(4, num_allowed)
        assert got.top_logprobs[0].token == want.token
        if not got.stages:
            assert (got.logprob, num_allowed) == (0.0, 1)


async def test_laps_are_told_once(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    laps = []
    async with ring.subscribe() as events:
        answer = await ask(ring, GREEDY)
        async for event in events:
            if isinstance(event, LapMeasured):
                laps.append(event.position)
            if isinstance(event, SessionEnded):
                break
    sampled = [token.position for token in answer.tokens if token.stages]
    assert [position for position in laps if position >= len(PROMPT)] == sampled


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ("nonsense", "cannot be read"),
        ('{"grammars": [{"json_schema": {"type": "objekt"}}]}', "objekt"),
        ('{"grammars": [{"lark_grammar": "start: <|nobody|>"}]}', "nobody"),
        ('{"grammars": [{"lark_grammar": "start: /a{90000000}/"}]}', "repeats"),
    ],
)
async def test_a_bad_grammar_is_refused_and_leaves_nothing(
    grammar: str, words: str, rings: Rings, model: Path
) -> None:
    ring = await loaded(rings, model)
    beside = asyncio.create_task(ask(ring, replace(GREEDY, grammar=None, max_tokens=60)))
    with pytest.raises(GrammarError, match=words):
        await ask(ring, replace(GREEDY, grammar=grammar))
    assert (await beside).tokens
    await until_idle(ring)
    check(await ask(ring, GREEDY))


@pytest.mark.parametrize("option", ["", '%llguidance {"no_forcing": true}\n'])
async def test_a_dead_end_ends_its_session_only(option: str, rings: Rings, models: Path) -> None:
    """A grammar that wants a token which the tokenizer has and the model has not: it shows on the way."""
    short = write_tiny_model("llama", models / "grammar-short", overrides={"vocab_size": 280})
    ring = await loaded(rings, short)
    nowhere = json.dumps({"grammars": [{"lark_grammar": f"{option}start: /[a-c]{{3}}/ <[285]> /[a-c]/"}]})
    free = replace(GREEDY, grammar=None, max_tokens=60, logit_bias=((EOS_ID, -100.0),))
    beside = asyncio.create_task(ask(ring, free))
    with pytest.raises(GrammarError, match="no token"):
        await ask(ring, replace(GREEDY, grammar=nowhere))
    assert len((await beside).tokens) == 60
    await until_idle(ring)
