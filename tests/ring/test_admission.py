"""Sessions and the memory budget, on real shards: refused or waiting, never too much, nothing left over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
import pytest_asyncio

from dnet_core.api.app import endpoint
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.errors import NoRoom, NotReady, RequestError
from dnet_core.events import LapMeasured, SessionEnded
from dnet_core.memory_option import MemoryLimit
from dnet_core.transport.control import KeptPrefix, Purpose, SessionOrder
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import DRIVER_PREFIX, open_channel, ring_link
from dnet_core.types.generation import SamplingParams, TokenText
from dnet_core.types.ring import RingPlan
from tests.conftest import Rings
from tests.ring_tools import reference_tokens, ring_plan, ring_tokens, statuses, until_idle
from tests.tiny_models import write_large_random_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

LAYERS, HIDDEN, CHUNK = 4, 256, 16
ENDS = [3, 4]
ROOM_TOKENS = 1200
ROOM_BYTES = ROOM_TOKENS * ENDS[0] * 2 * 64 * 4  # keys and values of one head of 64, in 32-bit floats
PROMPT = tuple(range(7, 27))
LONG = SamplingParams(max_tokens=800 - len(PROMPT))
"""An answer that takes 800 positions, but ends early: what counts is what it may take."""


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return write_large_random_model(models / "admission", layers=LAYERS, hidden=HIDDEN, vocab=512)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def limited(rings: Rings, model: Path) -> AsyncIterator[Coordinator]:
    """Two shards; the first, with most of the layers, has memory for the KV of `ROOM_TOKENS` positions."""
    large = await rings(2)
    await large.load(str(model), plan(model, large), CHUNK)
    held = [status.budget_bytes - status.kv_room_bytes for status in await statuses(large)]
    budget = max(held) + ROOM_BYTES
    options = ClusterOptions(local_shards=2, memory=MemoryLimit(f"{budget}B", budget, is_share=False))
    async with Coordinator(options) as ring:
        await ring.wait_for_local_shards()
        yield ring


@pytest_asyncio.fixture(loop_scope="session")
async def ring(limited: Coordinator, model: Path) -> AsyncIterator[Coordinator]:
    """The model, loaded anew; what the test leaves behind is nothing, and it has kept within the budget."""
    await limited.load(str(model), plan(model, limited), CHUNK)
    first, second = await statuses(limited)
    assert first.kv_room_bytes == pytest.approx(ROOM_BYTES, rel=0.05)
    assert first.kv_room_bytes < second.kv_room_bytes
    yield limited
    for status in await until_idle(limited):
        assert status.kv_taken_bytes == 0
        assert status.peak_bytes <= status.budget_bytes


def plan(model: Path, ring: Coordinator) -> RingPlan:
    return replace(ring_plan(model, ring.peers, ENDS), context_tokens=4096)


async def test_what_can_never_fit_is_refused_before_anything_is_computed(
    ring: Coordinator, model: Path
) -> None:
    before = await statuses(ring)
    with pytest.raises(RequestError, match=r"1,400 tokens.*max_tokens") as refused:
        await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=1400 - len(PROMPT)))
    assert not isinstance(refused.value, NoRoom)
    assert ring.peers[0].name in str(refused.value)
    after = await until_idle(ring)
    assert [status.steps for status in after] == [status.steps for status in before]
    async with endpoint(ring, "127.0.0.1", 0) as served, httpx2.AsyncClient(base_url=served.url) as raw:
        body = {"model": "admission", "prompt": "a", "max_tokens": 3000}
        reply = await raw.post("/completions", json=body)
    assert reply.status_code == 400, reply.text
    assert "max_tokens" in reply.json()["error"]["message"]
    assert len(await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=4))) == 4


async def test_those_that_do_not_fit_together_wait_for_one_another(ring: Coordinator, model: Path) -> None:
    expected = reference_tokens(model, PROMPT, 8, CHUNK)
    async with ring.subscribe() as events:

        async def part() -> list[int]:
            async with aclosing(ring.generate_from(PROMPT, LONG)) as answer:
                tokens = []
                async for event in answer:
                    if isinstance(event, TokenText):
                        tokens.append(event.token)
                    if len(tokens) == 8:
                        break
                return tokens

        short = SamplingParams(max_tokens=8)
        answers = await asyncio.gather(part(), part(), part(), ring_tokens(ring, PROMPT, short))
        assert answers[:3] == [expected] * 3
        assert [token.token for token in answers[3]] == expected
        inside: set[str] = set()
        most = ended = 0
        while ended < 4:
            match await anext(events):
                case LapMeasured(session=name):
                    inside.add(name)
                    most = max(most, len(inside))
                case SessionEnded(session=name):
                    inside.discard(name)
                    ended += 1
                case _:
                    pass
        assert most <= 2, "a long one and the short one fit together, two long ones do not"


async def test_one_that_waits_may_give_up_and_the_next_one_moves_on(ring: Coordinator, model: Path) -> None:
    async with aclosing(ring.generate_from(PROMPT, LONG)) as answer:
        await anext(answer)  # it has its room now
        waiting = asyncio.create_task(ring_tokens(ring, PROMPT, LONG))
        behind = asyncio.create_task(ring_tokens(ring, PROMPT, SamplingParams(max_tokens=4)))
        await asyncio.wait([waiting, behind], timeout=0.2)
        assert not waiting.done()
        assert not behind.done(), "it came later"
        waiting.cancel()
        assert len(await behind) == 4, "there was room for it all the time"
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_second_cancel_does_not_leave_the_room_taken(
    is_open: bool, ring: Coordinator, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the shards close the session: one that is read already, or that has just opened."""
    opened, closing, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    open_, close = ShardClient.open_session, ShardClient.close_session

    async def open_session(client: ShardClient, driver: str, order: SessionOrder) -> None:
        await open_(client, driver, order)
        if not opened.is_set():
            opened.set()
            if not is_open:
                await asyncio.Event().wait()

    async def close_session(
        client: ShardClient, session: str, keep_as: str | None = None
    ) -> KeptPrefix | None:
        closing.set()
        await go_on.wait()
        return await close(client, session, keep_as)

    monkeypatch.setattr(ShardClient, "open_session", open_session)
    monkeypatch.setattr(ShardClient, "close_session", close_session)
    reading = asyncio.create_task(ring_tokens(ring, PROMPT, LONG))
    await opened.wait()
    if is_open:
        async with ring.subscribe() as events:
            while not isinstance(await anext(events), LapMeasured):
                pass
    reading.cancel()
    await closing.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    short = asyncio.create_task(ring_tokens(ring, PROMPT, replace(LONG, max_tokens=700)))
    go_on.set()
    expected = reference_tokens(model, PROMPT, 700, CHUNK)
    assert [token.token for token in await short] == expected


async def test_an_unload_ends_the_wait(ring: Coordinator, model: Path) -> None:
    answer = ring.generate_from(PROMPT, LONG)
    await anext(answer)
    waiting = asyncio.create_task(ring_tokens(ring, PROMPT, LONG))
    await asyncio.wait([waiting], timeout=0.2)
    await ring.unload()
    with pytest.raises(NotReady, match="unloaded"):
        await waiting
    with pytest.raises(NotReady, match="unloaded"):
        async for _ in answer:
            pass


async def test_room_that_others_use_is_told_at_once(ring: Coordinator, model: Path) -> None:
    """Another head's session is nothing to wait for here: 429, and again when it has gone."""
    async with AsyncExitStack() as stack:
        target, name = ring.peers[0].target, ring.peers[0].name
        channel = await stack.enter_async_context(open_channel(target, None))
        other, driver = ShardClient(name, channel), f"{DRIVER_PREFIX}other"
        link = ring_link(channel, name, driver, 5, lambda _frame: None, lambda _error: None)
        await stack.enter_async_context(link)
        order = SessionOrder("theirs", 4, 700, (), (), (), LONG, 1, (), Purpose.ANSWER, None)
        await other.open_session(driver, order)
        with pytest.raises(NoRoom, match="try again") as refused:
            await ring_tokens(ring, PROMPT, LONG)
        assert refused.value.peer == name
        second = (await statuses(ring))[1]
        assert (second.sessions, second.kv_taken_bytes) == ((), 0), "what the other shard gave was undone"
        async with endpoint(ring, "127.0.0.1", 0) as served, httpx2.AsyncClient(base_url=served.url) as raw:
            body = {"model": "admission", "prompt": "a", "max_tokens": 700}
            reply = await raw.post("/completions", json=body)
            assert reply.status_code == 429, reply.text
            assert int(reply.headers["retry-after"]) > 0
            assert reply.json()["error"]["code"] == "no_room"
            await other.close_session("theirs")
            assert (await raw.post("/completions", json={**body, "max_tokens": 3})).status_code == 200
