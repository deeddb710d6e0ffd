"""The event-loop side of a shard in this process: what comes at the wrong moment, from callers that go."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from dnet_core.discover.announcement import Announcement, new_id
from dnet_core.errors import NotReady, RequestError
from dnet_core.grammar.matcher import GrammarTokenizer, Matcher
from dnet_core.shard.mlx_thread import MlxThread
from dnet_core.shard.server import ShardServer
from dnet_core.tasks import beside
from dnet_core.transport import tls
from dnet_core.transport.control import Arrival, Limits, LoadOrder, Purpose, SessionOrder
from dnet_core.transport.frames import Cancel, DriverFrame, Prompt, PromptRead
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import open_channel
from dnet_core.transport.grpc_server import Endpoints, serve
from dnet_core.types.devices import PROTOCOL_VERSION
from dnet_core.types.generation import SamplingParams
from dnet_core.types.ring import LayerWindow
from tests.tiny_models import write_tiny_model

LAYERS = 5
PROMPT = (5, 17, 42, 9, 100)
DRIVER = "driver:here"
GRAMMAR = '{"grammars": [{"lark_grammar": "start: /[a-f]+/"}]}'


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("server"))


@dataclass(frozen=True, slots=True)
class Here:
    """A shard with the whole model, and what it tells its driver."""

    server: ShardServer
    thread: MlxThread
    frames: asyncio.Queue[DriverFrame]
    listening: asyncio.Task[None]

    async def settled(self) -> None:
        """Everything that waited for the compute thread is done."""
        await self.thread.call(lambda: None)


def announcement() -> Announcement:
    return Announcement(new_id(), "here", "1", PROTOCOL_VERSION, 0, 0, "default")


@asynccontextmanager
async def here(directory: Path) -> AsyncIterator[Here]:
    certificate = tls.issue(tls.ClusterKey.generate(), "here")
    order = LoadOrder(
        str(directory), LAYERS, (LayerWindow(0, LAYERS),), (), 0, 512, 16, None, Limits(None, 0, 32)
    )
    frames: asyncio.Queue[DriverFrame] = asyncio.Queue()

    async def listen(server: ShardServer) -> None:
        async for told in server.driver_frames(DRIVER):
            for frame in told:
                frames.put_nowait(frame)

    with MlxThread() as thread:
        async with ShardServer(announcement(), thread, tls.channel_credentials(certificate), None) as server:
            async for _ in server.load(order):
                pass
            async with beside(listen(server)) as listening:
                await asyncio.sleep(0)  # its driver is there
                yield Here(server, thread, frames, listening)


def session(grammar: str | None = None) -> SessionOrder:
    sampling = SamplingParams(max_tokens=6, seed=1, grammar=grammar)
    return SessionOrder("s", len(PROMPT), 6, (), (), (), sampling, 1, (), Purpose.ANSWER, None)


@pytest.mark.parametrize("how", ["a call", "a frame", "its driver goes", "the model goes"])
async def test_a_session_that_is_closed_while_its_grammar_is_made_is_not_opened(
    how: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling, go_on = threading.Event(), threading.Event()
    compile_it = GrammarTokenizer.matcher

    def slow(self: GrammarTokenizer, grammar: str, answered: tuple[int, ...] = ()) -> Matcher:
        compiling.set()
        go_on.wait()
        return compile_it(self, grammar, answered)

    monkeypatch.setattr(GrammarTokenizer, "matcher", slow)
    async with here(directory) as shard:
        opening = asyncio.create_task(shard.server.open_session(DRIVER, session(GRAMMAR)))
        await asyncio.to_thread(compiling.wait)
        match how:
            case "a call":
                await shard.server.close_session("s", None)
            case "a frame":
                shard.server.receive(Arrival(Cancel("s"), 0.0, 0.0))
            case "its driver goes":
                shard.listening.cancel()
                await asyncio.wait([shard.listening])
            case "the model goes":
                await shard.server.unload()
        go_on.set()
        with pytest.raises((NotReady, RequestError)):
            await opening
        await shard.settled()
        assert shard.server.status().sessions == ()
        assert shard.server.status().kv_taken_bytes == 0


async def test_callers_that_do_not_wait_are_served_all_the_same(directory: Path) -> None:
    """A close and a drop come while a step is computed, and their deadlines end before it does."""
    async with here(directory) as shard:
        await shard.server.open_session(DRIVER, session())
        shard.server.receive(Arrival(Prompt("s", 0, PROMPT, False), 0.0, 0.0))
        assert isinstance(await shard.frames.get(), PromptRead)

        async def gone(call: asyncio.Task[object]) -> None:
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

        step = threading.Event()
        shard.thread.post(step.wait)  # type: ignore[arg-type]
        await gone(asyncio.create_task(shard.server.close_session("s", "kept")))
        step.set()
        await shard.settled()
        assert shard.server.status().sessions == ()
        assert shard.server.status().prefixes == ("kept",)
        step.clear()
        shard.thread.post(step.wait)  # type: ignore[arg-type]
        await gone(asyncio.create_task(shard.server.drop_prefixes(("kept",))))
        step.set()
        await shard.settled()
        assert shard.server.status().prefixes == ()


async def test_a_link_is_measured_when_the_other_side_has_imported_what_it_needs() -> None:
    certificate = tls.issue(tls.ClusterKey.generate(), "here")
    credentials = tls.channel_credentials(certificate)
    endpoints = Endpoints("127.0.0.1", 0, None, tls.server_credentials(certificate))
    imported = threading.Event()
    told: list[str] = []

    async def measure(shard: ShardClient) -> None:
        async with shard.echo():
            told.append("measured")

    with MlxThread() as thread:
        async with ShardServer(announcement(), thread, credentials, None) as server:
            thread.post(imported.wait)  # type: ignore[arg-type]
            async with (
                serve(server, endpoints) as port,
                open_channel(f"127.0.0.1:{port}", credentials) as channel,
                asyncio.TaskGroup() as tasks,
            ):
                shard = ShardClient("here", channel)
                tasks.create_task(measure(shard))
                for _ in range(20):  # it answers all others meanwhile
                    await shard.describe()
                told.append("imported")
                imported.set()
    assert told == ["imported", "measured"]
