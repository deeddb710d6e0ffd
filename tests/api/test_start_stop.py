"""The endpoint is switched on and off beside a chat on the same coordinator."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing
from typing import Any

import httpx2
import openai
import pytest

from dnet_core.api.app import endpoint
from dnet_core.coordinator import Coordinator
from dnet_core.errors import PortTaken
from dnet_core.generate.driver import Driver
from dnet_core.http_server import GRACE_S
from dnet_core.tasks import TaskScope
from dnet_core.types.generation import (
    FinishReason,
    GenerationDone,
    GenerationRequest,
    Message,
    Role,
    SamplingParams,
    TokenText,
)
from tests.api.conftest import MODEL
from tests.api.test_chat import until_busy
from tests.ring_tools import until_idle

pytestmark = pytest.mark.asyncio(loop_scope="session")

HI = [{"role": "user", "content": "hi"}]
LONG = {"temperature": 1.5, "logit_bias": {"1": -100}}  # never ends by itself: the end of sequence is out


def client_of(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)


async def test_on_and_off_beside_a_chat(ring: Coordinator) -> None:
    sampling = SamplingParams(max_tokens=300, logit_bias=((1, -100.0),))
    chat = ring.generate(GenerationRequest((Message(Role.USER, "the fox"),), sampling))
    texts: list[str] = []

    async def talk() -> GenerationDone:
        async with aclosing(chat) as events:
            async for event in events:
                if isinstance(event, TokenText):
                    texts.append(event.text)
                elif isinstance(event, GenerationDone):
                    return event
        raise AssertionError("a generation ends with GenerationDone")

    async with TaskScope() as tasks:
        talking = tasks.start(talk())
        ports = []
        for _ in range(3):
            async with endpoint(ring, "127.0.0.1", 0) as served, client_of(served.url) as client:
                answer = await client.chat.completions.create(
                    model=MODEL, messages=HI, max_tokens=3, extra_body={"temperature": 0}
                )
                assert answer.choices[0].finish_reason in ("length", "stop")
                ports.append(served.port)
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", served.port))
        done = await talking
    assert len(ports) == 3
    assert (done.finish_reason, done.completion_tokens, len(texts)) == (FinishReason.LENGTH, 300, 300)


async def test_stopping_ends_what_is_in_flight(ring: Coordinator) -> None:
    """Streamed or not, the client is told why; then the shards drop the sessions."""
    async with TaskScope() as tasks:
        async with endpoint(ring, "127.0.0.1", 0) as served:
            client, raw = client_of(served.url), httpx2.AsyncClient(base_url=served.url)
            stream = await client.chat.completions.create(
                model=MODEL, messages=HI, stream=True, extra_body=LONG
            )
            await anext(aiter(stream))
            whole = tasks.start(raw.post("/chat/completions", json={"messages": HI, **LONG}))
            async with aclosing(served.watch()) as changes:
                async for activity in changes:
                    if len(activity.requests) == 2:
                        break
            assert {request.path for request in activity.requests} == {"/v1/chat/completions"}
            await until_busy(ring)
        assert served.activity.requests == ()
        with pytest.raises(openai.APIError) as caught:
            async for _ in stream:
                pass
        assert caught.value.code == "endpoint_stopped"
        response = await whole
        assert (response.status_code, response.json()["error"]["code"]) == (503, "endpoint_stopped")
        assert {failed.status for failed in served.activity.last_errors} == {503}
        await client.close()
        await raw.aclose()
    await until_idle(ring)


async def refused(raw: httpx2.AsyncClient) -> int:
    """The status of the first request that is not served any more."""
    while (response := await raw.get("/models")).status_code == 200:
        pass
    return response.status_code


async def test_a_client_is_told_also_when_the_shards_take_long_to_stop(
    ring: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    close = Driver._close

    async def slow(driver: Driver, *arguments: Any) -> None:
        await asyncio.sleep(3 * GRACE_S)
        await close(driver, *arguments)

    async with TaskScope() as tasks:
        async with endpoint(ring, "127.0.0.1", 0) as served:
            raw = httpx2.AsyncClient(base_url=served.url)
            whole = tasks.start(raw.post("/chat/completions", json={"messages": HI, **LONG}))
            await until_busy(ring)
            monkeypatch.setattr(Driver, "_close", slow)
            late = tasks.start(refused(raw))
        response = await whole
        assert await late == 503, "nothing new is served meanwhile"
        assert (response.status_code, response.json()["error"]["code"]) == (503, "endpoint_stopped")
        await raw.aclose()
    await until_idle(ring)


async def test_changes_are_told(ring: Coordinator) -> None:
    async with (
        endpoint(ring, "127.0.0.1", 0) as served,
        httpx2.AsyncClient(base_url=served.url) as raw,
        aclosing(served.watch()) as changes,
    ):
        assert (await anext(changes)).requests_total == 0
        change = asyncio.ensure_future(anext(changes))
        await raw.post("/chat/completions", json={})
        told = await change
        while not told.last_errors or told.requests:
            told = await anext(changes)
        assert (told.requests_total, told.last_errors[0].status) == (1, 400)


async def test_a_taken_port_names_a_free_one(ring: Coordinator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match="another program uses it") as caught:
            async with endpoint(ring, "127.0.0.1", port):
                raise AssertionError("the port is taken")
        assert caught.value.free_port is not None
        assert caught.value.free_port > port
        async with endpoint(ring, "127.0.0.1", caught.value.free_port) as served:
            assert served.port == caught.value.free_port
