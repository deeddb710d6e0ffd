"""Sessions share a ring without touching each other, and each lap says truly where its time went."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from dnet_core.coordinator import Coordinator
from dnet_core.events import LapMeasured, SessionEnded, SessionStarted
from dnet_core.types.generation import (
    FinishReason,
    GenerationDone,
    PromptProgress,
    SamplingParams,
    StageTime,
    TokenText,
)
from tests.conftest import Rings
from tests.ring_tools import reference_tokens, ring_plan, ring_tokens, statuses
from tests.tiny_models import EOS, make_tokenizer, write_large_random_model, write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHUNK = 8
PROMPTS = tuple(tuple(7 + (i * i + 31 * n) % 250 for i in range(3 + 9 * n)) for n in range(5))
ENDLESS = SamplingParams(logit_bias=((make_tokenizer().token_to_id(EOS), -100.0),))


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return write_tiny_model("qwen3", models / "sessions")


async def loaded(rings: Rings, model: Path, shards: int, ends: list[int], rounds: int) -> Coordinator:
    ring = await rings(shards)
    await ring.load(str(model), ring_plan(model, ring.peers, ends, rounds), CHUNK)
    return ring


@pytest.mark.parametrize(("ends", "rounds"), [([2, 5], 1), ([1, 2, 4, 5], 2)])
async def test_sessions_at_once_give_their_single_answers(
    ends: list[int], rounds: int, rings: Rings, model: Path
) -> None:
    ring = await loaded(rings, model, 2, ends, rounds)
    expected = [reference_tokens(model, prompt, 20, CHUNK) for prompt in PROMPTS]
    sampling = SamplingParams(max_tokens=20)
    together = await asyncio.gather(*(ring_tokens(ring, prompt, sampling) for prompt in PROMPTS))
    assert [[token.token for token in answer] for answer in together] == expected
    assert len({tuple(tokens) for tokens in expected}) == len(PROMPTS), "answers that could not be mixed up"
    assert not any(status.sessions for status in await statuses(ring))


@pytest.mark.parametrize("length", [1, 2, CHUNK, CHUNK + 1, CHUNK + 2, 4 * CHUNK + 1, 510, 511])
async def test_prompts_of_any_length(length: int, rings: Rings, model: Path) -> None:
    """512 tokens are set aside: 511 of prompt leave room for one of answer."""
    ring = await rings(2)
    if ring.loaded is None or ring.loaded.model != str(model):
        await loaded(rings, model, 2, [2, 5], 1)
    prompt = tuple(7 + (i * i) % 250 for i in range(length))
    expected = reference_tokens(model, prompt, min(4, 512 - length), CHUNK)
    answer = await ring_tokens(ring, prompt, SamplingParams(max_tokens=4))
    assert [token.token for token in answer] == expected


@pytest.mark.parametrize(
    ("shards", "ends", "rounds"), [(1, [5], 1), (2, [2, 5], 1), (2, [1, 2, 4, 5], 2), (3, [1, 4, 5], 1)]
)
async def test_a_lap_names_every_shard_once_per_round(
    shards: int, ends: list[int], rounds: int, rings: Rings, model: Path
) -> None:
    ring = await loaded(rings, model, shards, ends, rounds)
    begun = time.monotonic()
    prompt = PROMPTS[3]
    events = [e async for e in ring.generate_from(prompt, replace(ENDLESS, max_tokens=10))]
    took_s = time.monotonic() - begun
    laps = [event for event in events if isinstance(event, PromptProgress | TokenText)]
    assert len(laps) == -(-(len(prompt) - 1) // CHUNK) + 10
    names = [peer.name for peer in ring.peers]
    for lap in laps:
        assert [stage.peer for stage in lap.stages] == names * rounds
        assert all(
            value >= 0.0
            for stage in lap.stages
            for value in (stage.queue_s, stage.compute_s, stage.disk_wait_s, stage.wire_s)
        )
        assert all(stage.compute_s > 0.0 for stage in lap.stages)
        assert all(stage.disk_wait_s == 0.0 for stage in lap.stages), "all layers are resident"
        assert sum(map(whole_s, lap.stages)) < took_s
    # A token needs its whole lap before the next one begins, so the laps of an answer fit into its time; the
    # first one's lap waits for the prompt's, which are counted already.
    tokens = [lap for lap in laps if isinstance(lap, TokenText)][1:]
    assert sum(whole_s(stage) for lap in tokens for stage in lap.stages) < took_s


def whole_s(stage: StageTime) -> float:
    return stage.queue_s + stage.compute_s + stage.wire_s


async def test_events_tell_each_session_from_start_to_end(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model, 2, [2, 5], 1)
    async with ring.subscribe() as events:
        answers = await asyncio.gather(
            *(ring_tokens(ring, prompt, replace(ENDLESS, max_tokens=5)) for prompt in PROMPTS[:2])
        )
        told = []
        while sum(isinstance(event, SessionEnded) for event in told) < 2:
            told.append(await anext(events))
    started = {e.session: e.prompt_tokens for e in told if isinstance(e, SessionStarted)}
    ended = {e.session: e for e in told if isinstance(e, SessionEnded)}
    assert sorted(started.values()) == [len(prompt) for prompt in PROMPTS[:2]]
    for session, end in ended.items():
        assert (end.prompt_tokens, end.completion_tokens) == (started[session], 5)
        assert end.finish_reason is FinishReason.LENGTH
        positions = [e.position for e in told if isinstance(e, LapMeasured) and e.session == session]
        answer = next(a for a in answers if a[0].position == started[session])
        assert positions[-5:] == [token.position for token in answer]
        assert positions == sorted(positions)


async def test_an_answer_that_its_reader_leaves_was_stopped_and_did_not_fail(
    rings: Rings, model: Path
) -> None:
    ring = await loaded(rings, model, 2, [2, 5], 1)
    async with ring.subscribe() as events:
        async with aclosing(ring.generate_from(PROMPTS[0], ENDLESS)) as answer:
            async for event in answer:
                if isinstance(event, TokenText):
                    break
        async for told in events:
            if isinstance(told, SessionEnded):
                assert told.finish_reason is FinishReason.CANCELLED
                break


async def test_answers_say_what_they_counted(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model, 2, [2, 5], 1)
    begun = time.monotonic()
    *_, done = [e async for e in ring.generate_from(PROMPTS[2], replace(ENDLESS, max_tokens=9))]
    took_s = time.monotonic() - begun
    assert isinstance(done, GenerationDone)
    assert (done.prompt_tokens, done.completion_tokens, done.cached_tokens) == (len(PROMPTS[2]), 9, 0)
    assert done.ttft_s is not None
    assert done.decode_tokens_per_s is not None
    assert done.ttft_s + 8 / done.decode_tokens_per_s <= took_s
    *_, done = [e async for e in ring.generate_from(PROMPTS[2], replace(ENDLESS, max_tokens=1))]
    assert done.decode_tokens_per_s is None


@pytest.fixture(scope="module")
def wide_model(models: Path) -> Path:
    """Wide enough that computing takes most of a lap, even here."""
    return write_large_random_model(models / "overlap", layers=4, hidden=512, vocab=288)


async def test_two_sessions_overlap_in_the_pipeline(rings: Rings, wide_model: Path) -> None:
    """One after the other, the shards' compute times would add up to less than the time that passes."""
    ring = await rings(2)
    await ring.load(str(wide_model), ring_plan(wide_model, ring.peers, [2, 4]), 64)
    order: list[int] = []

    async def answer(number: int) -> float:
        computed_s = 0.0
        async for event in ring.generate_from(PROMPTS[number], replace(ENDLESS, max_tokens=24)):
            if isinstance(event, TokenText):
                order.append(number)
                computed_s += sum(stage.compute_s for stage in event.stages)
        return computed_s

    begun = time.monotonic()
    computed_s = sum(await asyncio.gather(answer(0), answer(1)))
    took_s = time.monotonic() - begun
    assert computed_s > took_s
    # Neither waits for the other to end: in the middle of one, the other is in its middle, too.
    middle = order[12:36]
    assert middle.count(0) >= 8
    assert middle.count(1) >= 8


async def test_the_chunks_of_one_prompt_overlap(rings: Rings, wide_model: Path) -> None:
    ring = await rings(2)
    if ring.loaded is None or ring.loaded.model != str(wide_model):
        await ring.load(str(wide_model), ring_plan(wide_model, ring.peers, [2, 4]), 64)
    begun = time.monotonic()
    prompt = tuple(7 + i % 250 for i in range(64 * 4))
    events = [e async for e in ring.generate_from(prompt, replace(ENDLESS, max_tokens=1))]
    took_s = time.monotonic() - begun
    computed_s = sum(
        stage.compute_s for e in events if isinstance(e, PromptProgress | TokenText) for stage in e.stages
    )
    assert computed_s > took_s
