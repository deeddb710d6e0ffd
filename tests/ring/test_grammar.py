"""Answers bound to a grammar: the tokens of one process that masks every step, in fewer laps."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import jsonschema
import pytest
from llguidance import LLMatcher

from dnet_core.coordinator import Coordinator
from dnet_core.types.generation import FinishReason, GenerationDone, SamplingParams, TokenText
from tests.conftest import Rings
from tests.ring.sampling_reference import reference_answer
from tests.ring_tools import ring_plan
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100, 33, 7, 11, 60, 8, 23, 90, 77, 3, 14, 15, 92, 65, 35, 89, 79, 32, 38)
CHUNK = 5
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
