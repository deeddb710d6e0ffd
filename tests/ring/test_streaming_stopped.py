"""A chunk that streams its layers takes long: whoever ends it is heard between two layers, not after all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from dnet_core.api.app import endpoint
from dnet_core.coordinator import Coordinator
from dnet_core.errors import NotReady
from dnet_core.slices.weights import open_model, parameter_bytes
from dnet_core.transport.control import ShardStatus
from dnet_core.types.generation import PromptProgress, SamplingParams
from tests.conftest import Rings
from tests.ring.processes import head_process, shard_process
from tests.ring_tools import reference_tokens, ring_plan, ring_tokens, statuses, until_idle
from tests.tiny_models import write_large_random_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

LAYERS = 16
CHUNK = 512
LONG_PROMPT = tuple(7 + i % 250 for i in range(500))  # one chunk, and its last token
PROMPT = (5, 17, 42, 9, 100, 33, 7)
SHORT = SamplingParams(max_tokens=4)
NUM_BUFFERS = 2
SPLITS = {
    "1 shard": (1, [16], 1),
    "2 shards": (2, [12, 16], 1),
    "2 shards, 2 rounds": (2, [8, 10, 14, 16], 2),
}


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return write_large_random_model(models / "stopped", layers=LAYERS, hidden=384, vocab=512)


@pytest.fixture(scope="module")
def expected(model: Path) -> list[int]:
    return reference_tokens(model, PROMPT, 4, CHUNK)


async def load(ring: Coordinator, model: Path, split: str) -> None:
    _, ends, rounds = SPLITS[split]
    plan = ring_plan(model, ring.peers, ends, rounds, range(LAYERS), NUM_BUFFERS)
    await ring.load(str(model), replace(plan, context_tokens=4096), CHUNK)


async def answer(ring: Coordinator) -> list[int]:
    return [token.token for token in await ring_tokens(ring, PROMPT, SHORT)]


async def read_prompt(ring: Coordinator) -> None:
    """Ask for an answer to the long prompt; not even its first chunk may come to its end."""
    async with aclosing(ring.generate_from(LONG_PROMPT, SHORT)) as events:
        async for event in events:
            assert not isinstance(event, PromptProgress), "the chunk ran to its end"


async def until_running(ring: Coordinator, task: asyncio.Task[object]) -> None:
    """Wait until `task` has a layer of the first shard run: then another one is read into its buffer."""
    begun: ShardStatus | None = None
    while True:
        assert not task.done(), task.result()
        now = (await statuses(ring))[0]
        if begun is None and now.sessions:
            begun = now
        if begun is not None and now.read_bytes > begun.read_bytes:
            return


async def check_stopped(ring: Coordinator, model: Path, before: tuple[ShardStatus, ...]) -> None:
    """No session is left, and the first shard has not read all that its chunk would have needed."""
    after = await until_idle(ring)
    chunk_bytes = before[0].num_streamed * parameter_bytes(open_model(model, "tiny").layers[0])
    assert after[0].read_bytes - before[0].read_bytes < chunk_bytes, "the chunk ran to its end"
    assert [status.kv_taken_bytes for status in after] == [0] * len(after)


@pytest.mark.parametrize("split", SPLITS)
async def test_an_answer_that_is_cancelled(
    split: str, rings: Rings, model: Path, expected: list[int]
) -> None:
    ring = await rings(SPLITS[split][0])
    await load(ring, model, split)
    for _ in range(2):
        before = await until_idle(ring)
        task = asyncio.create_task(read_prompt(ring))
        await until_running(ring, task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await check_stopped(ring, model, before)
        assert await answer(ring) == expected


async def test_a_client_of_the_endpoint_that_hangs_up(rings: Rings, model: Path, expected: list[int]) -> None:
    ring = await rings(2)
    await load(ring, model, "2 shards")
    async with endpoint(ring, "127.0.0.1", 0) as served, httpx2.AsyncClient(base_url=served.url) as raw:
        for stream in (True, False):
            before = await until_idle(ring)
            body = {"model": str(model), "prompt": LONG_PROMPT, "max_tokens": 4, "stream": stream}
            task = asyncio.create_task(raw.post("/completions", json=body, timeout=None))
            await until_running(ring, task)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await check_stopped(ring, model, before)
        assert await answer(ring) == expected


@pytest.mark.parametrize("split", ["1 shard", "2 shards"])
async def test_a_model_that_is_unloaded(split: str, rings: Rings, model: Path, expected: list[int]) -> None:
    """The answer hears it, the memory is back, and the model can be loaded again."""
    ring = await rings(SPLITS[split][0])
    await ring.unload()
    empty = [status.active_bytes for status in await statuses(ring)]
    await load(ring, model, split)
    task = asyncio.create_task(read_prompt(ring))
    await until_running(ring, task)
    await ring.unload()
    with pytest.raises(NotReady, match="unloaded"):
        await task
    after = await statuses(ring)
    assert [(status.model, status.sessions) for status in after] == [(None, ())] * len(after)
    assert [status.active_bytes for status in after] == empty
    await load(ring, model, split)
    assert await answer(ring) == expected


@pytest.mark.parametrize("split", ["1 shard", "2 shards"])
async def test_a_shard_whose_model_another_head_unloads(
    split: str, rings: Rings, model: Path, expected: list[int]
) -> None:
    """Whoever is being served by it is told before its next layer, not after a deadline."""
    ring = await rings(SPLITS[split][0])
    await load(ring, model, split)
    task = asyncio.create_task(read_prompt(ring))
    await until_running(ring, task)
    async with ring._cluster.client(ring.peers[0].name) as shard:
        await shard.unload()
    with pytest.raises(NotReady, match="being unloaded"):
        await task
    await load(ring, model, split)
    assert await answer(ring) == expected


async def test_a_head_that_is_killed(model: Path) -> None:
    """Its shards, which it did not start, are free before the chunk that it left behind is run."""
    async with AsyncExitStack() as stack:
        starting = [stack.enter_async_context(shard_process(name)) for name in ("stopped-1", "stopped-2")]
        shards = await asyncio.gather(*starting)
        clients = [await stack.enter_async_context(shard.client()) for shard in shards]
        targets = tuple(shard.target for shard in shards)
        async with head_process(
            model, targets, LONG_PROMPT, ends=(12, 16), num_buffers=NUM_BUFFERS, chunk_tokens=CHUNK
        ) as head:
            while not (begun := await clients[0].describe()).sessions:
                pass
            while (await clients[0].describe()).read_bytes == begun.read_bytes:
                pass
            head.kill()
        while any([(await client.describe()).sessions for client in clients]):
            pass
        layer_bytes = parameter_bytes(open_model(model, "tiny").layers[0])
        read_bytes = (await clients[0].describe()).read_bytes - begun.read_bytes
        assert read_bytes < begun.num_streamed * layer_bytes, "the chunk ran to its end"
