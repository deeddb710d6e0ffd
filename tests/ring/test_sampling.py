"""Every sampling parameter reaches the tail and means what mlx-lm means by it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from dnet_core.coordinator import Coordinator
from dnet_core.errors import ContextTooLong, RequestError
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.types.generation import FinishReason, GenerationDone, SamplingParams, TokenText
from tests.conftest import Rings
from tests.ring.sampling_reference import reference_answer
from tests.ring_tools import ring_plan, ring_tokens, statuses, until_idle
from tests.tiny_models import EOS, make_tokenizer, write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100, 33, 7, 11, 60, 8, 23, 90, 77, 3, 14, 15, 92, 65, 35, 89, 79, 32, 38)
CHUNK = 5
EOS_ID = make_tokenizer().token_to_id(EOS)
NEWLINE = make_tokenizer().encode("\n").ids[0]
NEVER_END = (EOS_ID, -100.0)
PLAIN = SamplingParams(temperature=0.9, seed=11, max_tokens=16, logit_bias=(NEVER_END,))
EVERYTHING = replace(
    PLAIN,
    top_p=0.9,
    top_k=40,
    min_p=0.02,
    min_tokens_to_keep=3,
    xtc_probability=0.5,
    xtc_threshold=0.05,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    presence_context_tokens=20,
    frequency_penalty=0.4,
    frequency_context_tokens=20,
    logit_bias=(NEVER_END, (77, 1.5)),
    logprobs=3,
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
    return write_tiny_model("llama", models / "sampling")


async def loaded(rings: Rings, model: Path, shards: int = 2, ends: list[int] | None = None) -> Coordinator:
    """A ring that holds `model`; one that holds it in this split already is taken as it is."""
    ring = await rings(shards)
    plan = ring_plan(model, ring.peers, ends or [2, 5], 1)
    if ring.loaded is None or ring.loaded.plan != plan:
        await ring.load(str(model), plan, CHUNK)
    return ring


async def ids(ring: Coordinator, sampling: SamplingParams, prompt: tuple[int, ...] = PROMPT) -> list[int]:
    return [token.token for token in await ring_tokens(ring, prompt, sampling)]


async def whole(
    ring: Coordinator, sampling: SamplingParams, prompt: tuple[int, ...] = PROMPT
) -> tuple[list[TokenText], GenerationDone]:
    events = [event async for event in ring.generate_from(prompt, sampling)]
    assert isinstance(events[-1], GenerationDone)
    return [event for event in events if isinstance(event, TokenText)], events[-1]


# Each case is compared with the same request without the parameter named: the reference must differ, else
# the case would pass with the parameter lost on the way.
CASES = {
    "temperature": (replace(PLAIN, temperature=2.5), PLAIN),
    "seed": (replace(PLAIN, seed=12), PLAIN),
    "top_p": (replace(PLAIN, top_p=0.3), PLAIN),
    "top_k": (replace(PLAIN, top_k=2), PLAIN),
    "min_p": (replace(PLAIN, min_p=0.4), PLAIN),
    "min_tokens_to_keep": (replace(PLAIN, min_p=0.9, min_tokens_to_keep=6), replace(PLAIN, min_p=0.9)),
    "xtc_probability": (replace(PLAIN, xtc_probability=1.0, xtc_threshold=0.02), PLAIN),
    "xtc_threshold": (
        replace(PLAIN, xtc_probability=1.0, xtc_threshold=0.005),
        replace(PLAIN, xtc_probability=1.0, xtc_threshold=0.04),
    ),
    "xtc spares newlines": (
        replace(PLAIN, xtc_probability=1.0, xtc_threshold=0.02, logit_bias=(NEVER_END, (NEWLINE, 6.0))),
        replace(PLAIN, xtc_probability=1.0, xtc_threshold=0.02, logit_bias=(NEVER_END, (NEWLINE + 1, 6.0))),
    ),
    "repetition_penalty": (replace(PLAIN, repetition_penalty=3.0), PLAIN),
    "repetition_context_tokens": (
        replace(PLAIN, repetition_penalty=3.0, repetition_context_tokens=200),
        replace(PLAIN, repetition_penalty=3.0, repetition_context_tokens=2),
    ),
    "presence_penalty": (replace(PLAIN, presence_penalty=2.0), PLAIN),
    "presence_penalty does not look at the prompt": (
        replace(PLAIN, presence_penalty=2.0),
        replace(PLAIN, presence_penalty=2.0, presence_context_tokens=200),
    ),
    "presence_context_tokens": (
        replace(PLAIN, presence_penalty=2.0, presence_context_tokens=200),
        replace(PLAIN, presence_penalty=2.0, presence_context_tokens=1),
    ),
    "frequency_penalty": (replace(PLAIN, frequency_penalty=2.0), PLAIN),
    "frequency_penalty looks at the whole answer": (
        replace(PLAIN, frequency_penalty=2.0, max_tokens=60),
        replace(PLAIN, frequency_penalty=2.0, frequency_context_tokens=20, max_tokens=60),
    ),
    "frequency_context_tokens": (
        replace(PLAIN, frequency_penalty=2.0, frequency_context_tokens=200),
        replace(PLAIN, frequency_penalty=2.0, frequency_context_tokens=1),
    ),
    "logit_bias": (replace(PLAIN, logit_bias=(NEVER_END, (77, 5.0))), PLAIN),
    "everything": (EVERYTHING, PLAIN),
}


@pytest.mark.parametrize("case", CASES)
async def test_a_parameter_reaches_the_tail(case: str, rings: Rings, model: Path) -> None:
    sampling, without = CASES[case]
    expected = [token.token for token in reference_answer(model, PROMPT, sampling, CHUNK)]
    lost = [token.token for token in reference_answer(model, PROMPT, without, CHUNK)]
    assert expected != lost, "the case would not show that the parameter is lost"
    ring = await loaded(rings, model)
    assert await ids(ring, sampling) == expected


async def test_greedy_ignores_the_seed_but_not_the_processors(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    greedy = replace(PLAIN, temperature=0.0)
    assert await ids(ring, greedy) == await ids(ring, replace(greedy, seed=99))
    penalised = replace(greedy, repetition_penalty=4.0, frequency_penalty=2.0)
    expected = [token.token for token in reference_answer(model, PROMPT, penalised, CHUNK)]
    assert await ids(ring, penalised) == expected != await ids(ring, greedy)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
async def test_logprobs_are_the_log_softmax_of_the_logits(
    temperature: float, rings: Rings, model: Path
) -> None:
    ring = await loaded(rings, model)
    sampling = replace(PLAIN, temperature=temperature, logprobs=5, presence_penalty=0.5)
    expected = reference_answer(model, PROMPT, sampling, CHUNK)
    answer = await ring_tokens(ring, PROMPT, sampling)
    assert [t.token for t in answer] == [t.token for t in expected]
    for got, want in zip(answer, expected, strict=True):
        assert got.logprob == want.logprobs[got.token]
        best = sorted(range(len(want.logprobs)), key=lambda i: -want.logprobs[i])[:5]
        assert [t.token for t in got.top_logprobs] == best
        assert [t.logprob for t in got.top_logprobs] == [want.logprobs[i] for i in best]


async def test_logprobs_are_sent_only_as_asked(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    none = await ring_tokens(ring, PROMPT, replace(PLAIN, logprobs=None))
    own = await ring_tokens(ring, PROMPT, replace(PLAIN, logprobs=0))
    assert {(t.logprob, t.top_logprobs) for t in none} == {(None, ())}
    assert all(t.logprob is not None and t.top_logprobs == () for t in own)
    assert [t.token for t in own] == [t.token for t in none]


@pytest.mark.parametrize(("shards", "ends", "rounds"), SPLITS)
async def test_a_seeded_answer_is_the_same_for_every_split(
    shards: int, ends: list[int], rounds: int, rings: Rings, model: Path
) -> None:
    expected = reference_answer(model, PROMPT, EVERYTHING, CHUNK)
    ring = await rings(shards)
    await ring.load(str(model), ring_plan(model, ring.peers, ends, rounds), CHUNK)
    answer = await ring_tokens(ring, PROMPT, EVERYTHING)
    assert [t.token for t in answer] == [t.token for t in expected]
    assert [t.logprob for t in answer] == [t.logprobs[t.token] for t in expected]


@pytest.mark.parametrize("shards", [1, 2])
async def test_a_seeded_answer_is_the_same_beside_other_sessions(
    shards: int, rings: Rings, model: Path
) -> None:
    ring = await loaded(rings, model, shards, [5] if shards == 1 else [2, 5])
    requests = [replace(EVERYTHING, seed=seed, max_tokens=10 + seed) for seed in range(5)]
    alone = [await ids(ring, request) for request in requests]
    together = await asyncio.gather(*(ids(ring, request) for request in requests))
    assert list(together) == alone
    assert len({tuple(tokens[:10]) for tokens in alone}) == len(requests), "other seeds, other answers"


@pytest.mark.parametrize("num_known", [1, 5, 15])
async def test_a_continued_answer_has_the_same_rest(num_known: int, rings: Rings, model: Path) -> None:
    """The key of a token is of its position, and the penalties look back over the prompt."""
    ring = await loaded(rings, model)
    sampling = replace(EVERYTHING, logprobs=None)
    tokens = await ids(ring, sampling)
    known = tuple(tokens[:num_known])
    rest = await ids(ring, replace(sampling, max_tokens=16 - num_known), PROMPT + known)
    assert rest == tokens[num_known:]


async def test_without_a_seed_every_answer_is_new(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    free = replace(PLAIN, seed=None, temperature=1.5)
    assert await ids(ring, free) != await ids(ring, free)


async def test_seeds_of_all_64_bits(rings: Rings, model: Path) -> None:
    """Negative seeds are taken modulo 2**64, and the upper half counts."""
    ring = await loaded(rings, model)
    high = replace(PLAIN, seed=2**64 - 7)
    expected = [token.token for token in reference_answer(model, PROMPT, high, CHUNK)]
    assert await ids(ring, high) == expected
    assert await ids(ring, replace(PLAIN, seed=-7)) == expected
    assert await ids(ring, replace(PLAIN, seed=2**32 - 7)) != expected


async def test_each_of_several_ends_stops_and_none_is_shown(rings: Rings, models: Path) -> None:
    directory = write_tiny_model("llama", models / "three-ends")
    ends = (EOS_ID, 70, 71)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": list(ends)}))
    ring = await loaded(rings, directory)
    for end in ends:
        others = tuple((other, -100.0) for other in ends if other != end)
        sampling = SamplingParams(max_tokens=100, logit_bias=(*others, (end, 100.0)))
        tokens, done = await whole(ring, sampling)
        assert [token.token for token in tokens] == [end]
        assert "".join(token.text for token in tokens) == ""
        assert done.finish_reason is FinishReason.STOP
        assert done.completion_tokens == 1
    unforced = SamplingParams(max_tokens=8, logit_bias=tuple((end, -100.0) for end in ends))
    tokens, done = await whole(ring, unforced)
    assert len(tokens) == 8
    assert done.finish_reason is FinishReason.LENGTH


def printable_only(model: Path) -> tuple[tuple[int, float], ...]:
    """A bias that leaves only tokens of printable ASCII, so that each token has its own text at once."""
    tokenizer = Tokenizer.load(model)
    texts = {token: tokenizer.decode((token,)) for token in range(tokenizer.vocab_size)}
    return tuple(
        (token, -100.0)
        for token, text in texts.items()
        if not (text.isascii() and text.isprintable() and text)
    )


@pytest.mark.parametrize("width", [1, 2, 3])
async def test_a_stop_string_across_tokens_ends_the_answer(width: int, rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    free = replace(PLAIN, max_tokens=60, logit_bias=printable_only(model))
    tokens, _ = await whole(ring, free)
    text = "".join(token.text for token in tokens)
    assert len(text) >= len(tokens) == 60
    # The stop string begins in token 20 and ends in token 20 + `width`.
    first = sum(len(token.text) for token in tokens[:20])
    stop = text[first : first + sum(len(t.text) for t in tokens[20 : 20 + width]) + 1]
    at = text.index(stop)
    stopped, done = await whole(ring, replace(free, stop=("not in there", stop)))
    assert "".join(token.text for token in stopped) == text[:at]
    assert done.finish_reason is FinishReason.STOP
    assert done.completion_tokens == len(stopped) < 60
    assert not any(status.sessions for status in await statuses(ring)), "the shards were stopped, too"


async def test_max_tokens_is_exact(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    long = await ids(ring, PLAIN)
    for count in (1, 2, 7):
        tokens, done = await whole(ring, replace(PLAIN, max_tokens=count))
        assert [token.token for token in tokens] == long[:count]
        assert done.finish_reason is FinishReason.LENGTH
        assert done.completion_tokens == count


async def test_an_answer_ends_with_the_context(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    assert ring.loaded is not None
    context = ring.loaded.context_tokens
    prompt = tuple(7 + i % 200 for i in range(context - 3))
    tokens, done = await whole(ring, replace(PLAIN, max_tokens=None), prompt)
    assert [token.position for token in tokens] == [context - 3, context - 2, context - 1]
    assert done.finish_reason is FinishReason.LENGTH


async def test_a_prompt_that_fills_the_context_is_refused(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    assert ring.loaded is not None
    context = ring.loaded.context_tokens
    steps = [status.steps for status in await until_idle(ring)]
    for length in (context, context + 100):
        with pytest.raises(ContextTooLong) as refusal:
            await ids(ring, PLAIN, (7,) * length)
        assert (refusal.value.prompt_tokens, refusal.value.context_tokens) == (length, context)
        assert f"{length:,}" in str(refusal.value)
        assert f"{context:,}" in str(refusal.value)
    assert [status.steps for status in await statuses(ring)] == steps, "nothing was computed"


@pytest.mark.parametrize("token", [-1, 288, 10**6])
async def test_a_bias_on_a_token_that_does_not_exist_is_refused(
    token: int, rings: Rings, model: Path
) -> None:
    ring = await loaded(rings, model)
    with pytest.raises(RequestError, match=str(token)):
        await ids(ring, replace(PLAIN, logit_bias=((token, 1.0),)))


@pytest.mark.parametrize("token", [-1, 288, 2**31, 2**40])
async def test_a_prompt_token_that_does_not_exist_is_refused(token: int, rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    with pytest.raises(RequestError, match=str(token)):
        await ids(ring, PLAIN, (5, token, 7))


async def test_an_empty_prompt_is_refused(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    with pytest.raises(RequestError, match="empty"):
        await ids(ring, PLAIN, ())
