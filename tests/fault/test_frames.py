"""A client that speaks nonsense over a real stream gets Faults or nothing; the shard lives on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from dnet_core.errors import DnetError, NotReady, PeerLost, ProtocolError, RequestError
from dnet_core.transport import codec, grpc_link
from dnet_core.transport.control import Limits, LoadOrder, Purpose, SessionOrder
from dnet_core.transport.frames import (
    Activation,
    DriverFrame,
    Fault,
    Prompt,
    PromptRead,
    RingFrame,
    Sampled,
    Tensor,
    Tokens,
)
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import CALLER_KEY, DRIVER_PREFIX, RingLink, open_channel, ring_link
from dnet_core.types.generation import SamplingParams
from dnet_core.types.ring import LayerWindow
from tests.conftest import Rings
from tests.ring.processes import shard_process
from tests.ring_tools import reference_tokens, ring_plan, ring_tokens
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100)
DRIVER = f"{DRIVER_PREFIX}by-hand"


@dataclass(frozen=True, slots=True)
class ByHand:
    """A shard with a model, driven frame by frame."""

    client: ShardClient
    link: RingLink
    frames: asyncio.Queue[DriverFrame]

    async def open(self, session: str, max_tokens: int = 6) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, seed=1)
        await self.client.open_session(
            DRIVER,
            SessionOrder(session, len(PROMPT), max_tokens, (), (), (), sampling, 1, (), Purpose.ANSWER, None),
        )

    async def check_alive(self, model: Path) -> None:
        """Frames come in order, so all that was sent before is done with; and an answer is exact."""
        await self.open("good")
        self.link.send(Prompt("good", 0, PROMPT, True))
        tokens = []
        while len(tokens) < 6:
            frame = await self.frames.get()
            assert isinstance(frame, Sampled), f"nobody asked for {frame}"
            tokens.append(frame.token)
        assert tokens == reference_tokens(model, PROMPT, 6, len(PROMPT))
        await self.client.close_session("good")


@asynccontextmanager
async def by_hand(rings: Rings, model: Path, num_layers: int = 5) -> AsyncIterator[ByHand]:
    ring = await rings(1)
    await ring.unload()
    peer = ring.peers[0]
    frames: asyncio.Queue[DriverFrame] = asyncio.Queue()
    lost: list[DnetError] = []
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(open_channel(peer.target, None))
        client = ShardClient(peer.name, channel)
        window = LayerWindow(0, num_layers)
        async for _ in client.load(
            LoadOrder(str(model), num_layers, (window,), (), 0, 4096, 16, None, Limits(None, 0, 32))
        ):
            pass
        link = await stack.enter_async_context(
            ring_link(channel, peer.name, DRIVER, 5, frames.put_nowait, lost.append)
        )
        yield ByHand(client, link, frames)
        assert lost == [], "the stream broke"
        await client.unload()


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return write_tiny_model("llama", models / "frames")


def activation(session: str, layer: int, data: bytes) -> Activation:
    return Activation(session, 0, 3, layer, False, (Tensor("float32", (1, 3, 64), data),), ())


FAULTS: dict[str, RingFrame] = {
    "a prompt that begins in the middle": Prompt("bad", 3, PROMPT, True),
    "tokens that do not exist": Prompt("bad", 0, (5, 2**32 - 1), True),
    "no tokens": Prompt("bad", 0, (), True),
    "a token out of order": Tokens("bad", 7, (5,)),
    "a layer that is not here": activation("bad", 3, b"\0" * 768),
    "an activation for the embedding": activation("bad", 0, b"\0" * 768),
    "garbage bytes": activation("bad", 3, b"\x93garbage"),
}


@pytest.mark.parametrize("what", FAULTS)
async def test_nonsense_is_a_fault_of_its_session(what: str, rings: Rings, model: Path) -> None:
    async with by_hand(rings, model) as shard:
        await shard.open("bad")
        shard.link.send(FAULTS[what])
        fault = await shard.frames.get()
        assert isinstance(fault, Fault)
        assert (fault.session, fault.kind) == ("bad", "ProtocolError")
        await shard.check_alive(model)
        assert (await shard.client.describe()).sessions == ()


async def test_frames_of_unknown_sessions_do_nothing(rings: Rings, model: Path) -> None:
    async with by_hand(rings, model) as shard:
        for frame in (
            Prompt("nobody", 0, PROMPT, True),
            Tokens("nobody", 5, (1,)),
            activation("nobody", 3, b""),
        ):
            shard.link.send(frame)
        await shard.check_alive(model)


async def test_orders_that_cannot_be_served(rings: Rings, model: Path) -> None:
    async with by_hand(rings, model) as shard:
        await shard.open("twice")
        with pytest.raises(ProtocolError, match="already open"):
            await shard.open("twice")
        await shard.client.close_session("twice")
        order = SessionOrder(
            "s", 1, 1, (), (), (), SamplingParams(max_tokens=1, seed=1), 1, (), Purpose.ANSWER, None
        )
        with pytest.raises(RequestError, match="before its ring stream"):
            await shard.client.open_session(f"{DRIVER_PREFIX}stranger", order)
        await shard.client.close_session("never opened")
        await shard.check_alive(model)
        await shard.client.unload()
        with pytest.raises(NotReady, match="no model"):
            await shard.open("late")
        shard.link.send(Prompt("late", 0, PROMPT, True))
        fault = await shard.frames.get()
        assert isinstance(fault, Fault)
        assert (fault.session, fault.kind) == ("late", "NotReady")


async def test_a_chunk_far_above_4_mb_passes_a_hop(rings: Rings, models: Path) -> None:
    """500 tokens of 4,096 float32 are 8 MB in one frame; gRPC's own limit would be 4."""
    wide = {"hidden_size": 4096, "intermediate_size": 16, "num_hidden_layers": 2}
    model = write_tiny_model("llama", models / "wide-hop", overrides=wide)
    ring = await rings(2)
    await ring.load(str(model), ring_plan(model, ring.peers, [1, 2]), 500)
    prompt = tuple(7 + (i * i) % 250 for i in range(501))
    answer = await ring_tokens(ring, prompt, SamplingParams(max_tokens=2))
    assert [token.token for token in answer] == reference_tokens(model, prompt, 2, 500)
    await ring.unload()


async def test_a_prompt_read_tells_its_position(rings: Rings, model: Path) -> None:
    async with by_hand(rings, model) as shard:
        await shard.open("s")
        shard.link.send(Prompt("s", 0, PROMPT[:2], False))
        read = await shard.frames.get()
        assert isinstance(read, PromptRead)
        assert read.position == 2


async def test_a_link_that_is_closed_with_frames_to_send_is_not_lost(rings: Rings) -> None:
    ring = await rings(1)
    await ring.unload()
    peer = ring.peers[0]
    lost: list[DnetError] = []
    async with open_channel(peer.target, None) as channel:
        for _ in range(20):
            link = ring_link(channel, peer.name, DRIVER, 5, lambda _frame: None, lost.append)
            async with link as opened:
                opened.send(Tokens("nobody", 5, (1,)))
    assert lost == []


async def test_a_write_that_finds_the_stream_broken_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever notices first: a write learns only that the call is over, and has to ask it for the reason."""
    async with shard_process("victim") as shard, shard.client() as client:
        call = client._stub.Ring(metadata=((CALLER_KEY, DRIVER),))
        await call.write(codec.encode_ring([Tokens("nobody", 5, (1,))], 0))
        shard.process.kill()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        monkeypatch.setattr(RingLink, "_reader", lambda _link, _on_frame: asyncio.Event().wait())
        lost: list[DnetError] = []
        await RingLink(shard.name, call).run(asyncio.Event(), lambda _frame: None, lost.append)
        (error,) = lost
        assert isinstance(error, PeerLost)
        assert error.peer == shard.name
        assert await call.details() in str(error)


async def test_a_peer_that_hangs_is_lost_for_all_that_is_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when nobody was answering as it happened: who sends next must learn that the ring is broken."""
    monkeypatch.setattr(grpc_link, "PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(grpc_link, "PING_DEADLINE_S", 0.5)
    lost: asyncio.Queue[DnetError] = asyncio.Queue()
    async with AsyncExitStack() as stack:
        shard = await stack.enter_async_context(shard_process("sleeper"))
        client = await stack.enter_async_context(shard.client())
        opening = ring_link(client.channel, shard.name, DRIVER, 5, lambda _frame: None, lost.put_nowait)
        link = await stack.enter_async_context(opening)
        shard.process.send_signal(signal.SIGSTOP)
        assert isinstance(await lost.get(), PeerLost)
        with pytest.raises(PeerLost, match="did not answer a ping"):
            link.send(Tokens("nobody", 5, (1,)))
