"""A stream of events as its connection sees it: signs of life, errors on the way, a client that goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from dnet_core.api.app import endpoint
from dnet_core.api.errors import ApiError
from dnet_core.api.in_flight import InFlight
from dnet_core.api.stream import HEARTBEAT_S, EventStream
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.errors import NotReady
from tests.api.conftest import MODEL
from tests.ring.processes import local_process
from tests.tiny_models import write_tiny_model


class Connection:
    """The server's side of a connection, as an application is given it."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()
        self.news = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.news.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def forever(ended: list[str]) -> AsyncGenerator[bytes, None]:
    try:
        yield b"data: 1\n\n"
        await asyncio.Event().wait()
    finally:
        ended.append("closed")


async def test_silence_is_broken_and_a_client_that_goes_ends_the_stream() -> None:
    connection = Connection()
    ended: list[str] = []
    errors: list[ApiError] = []
    stream = EventStream(forever(ended), errors.append, InFlight(), heartbeat_s=0.01)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stream({"type": "http"}, connection.receive, connection.send))
        while connection.body.count(b": ") < 3:
            await connection.news.wait()
            connection.news.clear()
        assert ended == []
        connection.gone.set()
    assert ended == ["closed"]
    assert errors == []
    assert connection.body.startswith(b"data: 1\n\n: ")
    assert connection.sent[0]["status"] == 200


async def test_a_client_that_does_not_read_is_not_waited_for_when_the_endpoint_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dnet_core.api.stream.FAREWELL_S", 0.01)
    in_flight, ended, connection = InFlight(), list[str](), Connection()

    async def stuck(message: Any) -> None:
        await connection.send(message)
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    stream = EventStream(forever(ended), lambda _error: None, in_flight, HEARTBEAT_S)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(stream({"type": "http"}, connection.receive, stuck))
        while not connection.body:
            await connection.news.wait()
            connection.news.clear()
        in_flight.stop()
    assert ended == ["closed"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ApiError(429, "later", code="queue_full"), "queue_full"),
        (NotReady("unloaded"), "model_not_ready"),
        (ZeroDivisionError("a bug"), "internal_error"),
    ],
)
async def test_an_error_on_the_way_is_the_last_event(error: Exception, code: str) -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        raise error

    connection = Connection()
    errors: list[ApiError] = []
    await EventStream(events(), errors.append, InFlight(), HEARTBEAT_S)(
        {"type": "http"}, connection.receive, connection.send
    )
    last = connection.body.decode().strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
    assert [told.code for told in errors] == [code]
    assert connection.sent[-1]["more_body"] is False


async def test_a_stream_outlives_its_shards_but_the_last(tmp_path: Any) -> None:
    """The client reads the text that it would have had; when the last shard dies, an error that says so."""
    async with (
        Coordinator(ClusterOptions(local_shards=2)) as ring,
        endpoint(ring, "127.0.0.1", 0) as served,
        openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
    ):
        long_context = {"max_position_embeddings": 8192}  # far more than can be said before a shard dies
        await ring.load(str(write_tiny_model("llama", tmp_path / MODEL, overrides=long_context)))

        async def ask(max_tokens: int) -> openai.AsyncStream[ChatCompletionChunk]:
            return await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                temperature=1.5,
                seed=3,
                max_tokens=max_tokens,
                logit_bias={"1": -100},
            )

        undisturbed = [text_of(chunk) async for chunk in await ask(400)]
        names = [peer.name for peer in ring.peers]
        texts = []
        async for chunk in await ask(400):
            texts.append(text_of(chunk))
            if len(texts) == 10:
                local_process(ring, names[0]).kill()
        assert "".join(texts) == "".join(undisturbed)
        assert chunk.choices[0].finish_reason == "length"
        assert ring.loaded is not None
        assert [assignment.peer for assignment in ring.loaded.plan.assignments] == names[1:]
        assert not served.activity.last_errors
        async with httpx2.AsyncClient(base_url=served.url.removesuffix("/v1")) as raw:
            metrics = (await raw.get("/metrics")).text.splitlines()
        assert {"dnet_rings_lost_total 1", "dnet_recoveries_total 1"} <= set(metrics)

        stream, is_alive = await ask(8000), True
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                if text_of(chunk) and is_alive:
                    is_alive = False
                    local_process(ring, names[1]).kill()
        assert caught.value.code == "ring_failed"
        assert served.activity.last_errors[-1].status == 502


def text_of(chunk: ChatCompletionChunk) -> str:
    return chunk.choices[0].delta.content or ""
