"""A generation that nobody wants any more stops on every shard, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from dnet_core.chunks import CHUNKS_IN_FLIGHT_PER_SHARD
from dnet_core.coordinator import Coordinator
from dnet_core.transport.control import ShardStatus
from dnet_core.types.generation import GenerationEvent, PromptProgress, SamplingParams, TokenText
from tests.conftest import Rings
from tests.ring.processes import ShardProcess, head_process, shard_process
from tests.ring_tools import reference_tokens, ring_plan, ring_tokens, statuses, until_idle
from tests.tiny_models import EOS, make_tokenizer, write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100, 33, 7, 11, 60, 8)
LONG_PROMPT = tuple(7 + i % 250 for i in range(2000))
CHUNK = 4
CONTEXT = 4096
ENDLESS = SamplingParams(max_tokens=2000, logit_bias=((make_tokenizer().token_to_id(EOS), -100.0),))
SHORT = SamplingParams(max_tokens=8)
SPLITS = ((1, [5], 1), (2, [2, 5], 1), (2, [1, 2, 4, 5], 2), (3, [1, 4, 5], 1))
SMALLEST_KV_BYTES = 2 * 2 * 16 * 4 * 256
"""Keys and values of one layer: 2 heads of 16 float32 for 256 tokens, the least that mlx-lm sets aside."""
NOTICED_S = 10.0  # far below every deadline of the program


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return write_tiny_model("llama", models / "cancel")


async def loaded(rings: Rings, model: Path, shards: int, ends: list[int], rounds: int) -> Coordinator:
    ring = await rings(shards)
    plan = replace(ring_plan(model, ring.peers, ends, rounds), context_tokens=CONTEXT)
    await ring.load(str(model), plan, CHUNK)
    return ring


async def until(
    ring: Coordinator, prompt: tuple[int, ...], kind: type[GenerationEvent], count: int
) -> list[GenerationEvent]:
    """Generate until `count` events of `kind` have come, then close the generator."""
    events: list[GenerationEvent] = []
    async with aclosing(ring.generate_from(prompt, ENDLESS)) as stream:
        async for event in stream:
            events.append(event)
            if sum(isinstance(e, kind) for e in events) == count:
                break
    return events


async def answer(ring: Coordinator) -> list[int]:
    return [token.token for token in await ring_tokens(ring, PROMPT, SHORT)]


def moved(before: tuple[ShardStatus, ...], after: tuple[ShardStatus, ...]) -> list[int]:
    """How many windows each shard has run in between."""
    return [b.steps - a.steps for a, b in zip(before, after, strict=True)]


def grown(before: tuple[ShardStatus, ...], after: tuple[ShardStatus, ...]) -> bool:
    """Whether some shard holds as much as a KV cache more, beside what is kept of answers: a ring of one may
    be many tokens ahead of the one that is cancelled at.
    """
    more = [in_use(b) - in_use(a) for a, b in zip(before, after, strict=True)]
    return max(more) >= SMALLEST_KV_BYTES // 2


def in_use(status: ShardStatus) -> int:
    return status.active_bytes - status.prefix_bytes


async def check_left_nothing(ring: Coordinator, model: Path, clean: tuple[ShardStatus, ...]) -> None:
    """No session and no byte is left, nothing is computed any more, and the next answer is exact.

    `clean` is how the shards were before the generation that was cancelled.
    """
    stopped = await statuses(ring)
    assert [status.sessions for status in stopped] == [()] * len(stopped)
    # A ring of one may have a step in MLX's hands, which holds the caches until it is computed.
    async with asyncio.timeout(NOTICED_S):
        while grown(clean, stopped):
            stopped = await statuses(ring)
    expected = reference_tokens(model, PROMPT, 8, CHUNK)
    assert await answer(ring) == expected
    first = await until_idle(ring)
    assert await answer(ring) == expected
    # An answer that ran beside a leftover of the cancelled one would count that one's windows, too.
    assert moved(stopped, first) == moved(first, await until_idle(ring))


@pytest.mark.parametrize(("shards", "ends", "rounds"), SPLITS)
async def test_closing_the_generator_while_decoding(
    shards: int, ends: list[int], rounds: int, rings: Rings, model: Path
) -> None:
    ring = await loaded(rings, model, shards, ends, rounds)
    await answer(ring)
    clean = await until_idle(ring)
    await until(ring, PROMPT, TokenText, 5)
    windows = moved(clean, await statuses(ring))
    assert max(windows) < ENDLESS.max_tokens, "it had ended by itself: nothing was cancelled"
    await check_left_nothing(ring, model, clean)


@pytest.mark.parametrize(("shards", "ends", "rounds"), SPLITS)
async def test_closing_the_generator_while_the_prompt_is_read(
    shards: int, ends: list[int], rounds: int, rings: Rings, model: Path
) -> None:
    ring = await loaded(rings, model, shards, ends, rounds)
    await answer(ring)
    clean = await until_idle(ring)
    events = await until(ring, LONG_PROMPT, PromptProgress, 3)
    assert not any(isinstance(event, TokenText) for event in events)
    # Nothing runs but the chunks that had been answered for or were on their way.
    sent = CHUNKS_IN_FLIGHT_PER_SHARD * shards + 3
    for peer, windows in zip(ring.peers, moved(clean, await statuses(ring)), strict=True):
        assert windows <= sent * rounds, f"{peer.name} ran {windows} windows for {sent} chunks"
    await check_left_nothing(ring, model, clean)


@pytest.mark.parametrize("kind", [TokenText, PromptProgress])
async def test_cancelling_the_task_that_reads(kind: type[GenerationEvent], rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model, 2, [2, 5], 1)
    await answer(ring)
    clean = await until_idle(ring)
    begun = asyncio.Event()
    prompt = PROMPT if kind is TokenText else LONG_PROMPT

    async def read() -> None:
        async for event in ring.generate_from(prompt, ENDLESS):
            if isinstance(event, kind):
                begun.set()

    reading = asyncio.create_task(read())
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await check_left_nothing(ring, model, clean)


async def test_a_cancel_touches_no_other_session(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model, 2, [1, 2, 4, 5], 2)
    long = replace(SHORT, max_tokens=60)
    alone = [token.token for token in await ring_tokens(ring, PROMPT, long)]
    clean = await until_idle(ring)
    beside, *_ = await asyncio.gather(
        ring_tokens(ring, PROMPT, long),
        until(ring, PROMPT, TokenText, 3),
        until(ring, LONG_PROMPT, PromptProgress, 3),
    )
    assert [token.token for token in beside] == alone
    await check_left_nothing(ring, model, clean)


async def test_a_head_that_is_killed_frees_shards_that_it_did_not_start(model: Path) -> None:
    async with AsyncExitStack() as stack:
        starting = [stack.enter_async_context(shard_process(name)) for name in ("left-1", "left-2")]
        one, two = await asyncio.gather(*starting)
        targets = (one.target, two.target)
        async with head_process(model, targets, LONG_PROMPT[:100]) as head:
            await head.tokens(5)
            assert all(status.sessions for status in (await one.describe(), await two.describe()))
            head.kill()
        async with asyncio.timeout(NOTICED_S):
            while any(status.sessions for status in (await one.describe(), await two.describe())):
                pass
        before = await drained(one), await drained(two)
        assert (await drained(one), await drained(two)) == before, "something is still being computed"


async def drained(shard: ShardProcess) -> int:
    """The shard's count of windows, once all that waited for its compute thread is done."""
    async with shard.client() as client:
        await client.close_session("nobody")
        return (await client.describe()).steps
