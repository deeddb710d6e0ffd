"""A stream that has nothing to say shows that it lives: while a prompt is read, while a shard is replaced."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dnet_core.api.app import EndpointOptions, endpoint
from dnet_core.api.stream import HEARTBEAT_S
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.events import RingLost
from tests.api.conftest import MODEL
from tests.ring.processes import local_process
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

OFTEN = EndpointOptions(heartbeat_s=0.01)


async def test_it_is_often_enough() -> None:
    """Clients and proxies give up on a stream that is silent for long; 15 s is what was asked for."""
    assert EndpointOptions().heartbeat_s == HEARTBEAT_S <= 15


async def lines_of(raw: httpx2.AsyncClient, **fields: Any) -> AsyncGenerator[str, None]:
    """What a stream sends, without the empty lines."""
    body = {
        "model": MODEL,
        "stream": True,
        "temperature": 1.5,
        "seed": 3,
        "logit_bias": {"1": -100},
        **fields,
    }
    async with raw.stream("POST", "/chat/completions", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line:
                yield line


def content_of(line: str) -> str:
    """What a chunk adds to the answer; nothing for comments."""
    if not line.startswith("data: {"):
        return ""
    chunk = json.loads(line.removeprefix("data: "))
    assert "error" not in chunk, chunk
    return "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])


async def test_while_a_prompt_is_read(ring: Coordinator) -> None:
    text = "a prompt that takes its time " + "word " * 400
    async with (
        endpoint(ring, "127.0.0.1", 0, options=OFTEN) as served,
        httpx2.AsyncClient(base_url=served.url) as raw,
    ):
        lines = [
            line async for line in lines_of(raw, messages=[{"role": "user", "content": text}], max_tokens=4)
        ]
    first = next(place for place, line in enumerate(lines) if content_of(line))
    assert '"role":"assistant"' in lines[0], "the head of the answer does not wait for the prompt"
    silence = lines[1:first]
    assert silence
    assert all(line.startswith(":") for line in silence), silence
    assert lines[-1] == "data: [DONE]"


async def test_while_others_have_their_turn(ring: Coordinator) -> None:
    """Headers, the head of the answer and comments come at once; the prompt is read later."""
    hi = [{"role": "user", "content": "hi"}]
    one = replace(OFTEN, sessions=1)
    async with (
        endpoint(ring, "127.0.0.1", 0, options=one) as served,
        httpx2.AsyncClient(base_url=served.url) as raw,
        aclosing(lines_of(raw, messages=hi)) as running,
    ):
        async for line in running:
            if content_of(line):
                break
        async with aclosing(lines_of(raw, messages=hi, max_tokens=2)) as waiting:
            assert '"role":"assistant"' in await anext(waiting)
            assert (await anext(waiting)).startswith(":")
            assert served.activity.requests_total == len(served.activity.requests) == 2
            await running.aclose()
            told = [line async for line in waiting]
    assert "".join(map(content_of, told))
    assert told[-1] == "data: [DONE]"


async def test_while_a_shard_is_replaced(tmp_path: Path) -> None:
    """Its layers are loaded by the other one, which reads prompt and answer again."""
    asked = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 300}
    async with (
        Coordinator(ClusterOptions(local_shards=2)) as ring,
        endpoint(ring, "127.0.0.1", 0, options=OFTEN) as served,
        httpx2.AsyncClient(base_url=served.url, timeout=60) as raw,
        ring.subscribe() as events,
    ):
        long_context = {"max_position_embeddings": 4096}
        await ring.load(str(write_tiny_model("llama", tmp_path / MODEL, overrides=long_context)))
        undisturbed = "".join([content_of(line) async for line in lines_of(raw, **asked)])
        told = signs = 0
        text = ""
        async with aclosing(lines_of(raw, **asked)) as lines:
            async for line in lines:
                text += content_of(line)
                told += line.startswith("data: ")
                signs = signs + 1 if line.startswith(":") and told > 10 else 0
                if told == 10:
                    local_process(ring, ring.peers[1].name).kill()
                    while not isinstance(await anext(events), RingLost):
                        pass
                    told += 1
                if signs == 5:
                    break
            else:
                raise AssertionError("nothing was heard while the answer paused")
        assert undisturbed.startswith(text)
