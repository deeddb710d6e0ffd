"""Metrics in Prometheus' format, pages of other origins, and a queue that is full, at a real endpoint."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx2
import openai
import pytest

from dnet_core.api.app import EndpointOptions, endpoint
from dnet_core.coordinator import Coordinator
from tests.api.conftest import MODEL
from tests.api.test_chat import HELLO, plain
from tests.ring_tools import until_idle

pytestmark = pytest.mark.asyncio(loop_scope="session")

SAMPLE = re.compile(r'(\w+)(\{\w+="[^"]*"(?:,\w+="[^"]*")*\})? (\S+)')


async def metrics(raw: httpx2.AsyncClient) -> dict[str, float]:
    response = await raw.get(str(raw.base_url).removesuffix("/v1/") + "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in response.text.splitlines() if not line.startswith("#")]
    samples = [SAMPLE.fullmatch(line) for line in lines]
    assert all(samples), lines
    return {f"{m[1]}{m[2] or ''}": float(m[3]) for m in samples if m}


async def test_what_happens_is_counted(client: openai.AsyncOpenAI, raw: httpx2.AsyncClient) -> None:
    before = await metrics(raw)
    answer = await plain(client, n=2, max_tokens=5)
    assert answer.usage is not None
    after = await metrics(raw)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown("dnet_completion_tokens_total") == answer.usage.completion_tokens
    assert grown("dnet_prompt_tokens_total") == 2 * answer.usage.prompt_tokens
    assert grown("dnet_cached_prompt_tokens_total") == 2 * (answer.usage.prompt_tokens - 1), (
        "read once for both"
    )
    assert grown('dnet_sessions_total{finish_reason="length"}') == 2
    assert grown("dnet_time_to_first_token_seconds_count") == 2
    assert grown("dnet_time_per_output_token_seconds_count") == answer.usage.completion_tokens - 2
    route = 'method="POST",route="/v1/chat/completions",status="200"'
    assert grown(f"dnet_http_requests_total{{{route}}}") == 1
    assert after[f'dnet_model_loaded{{model="{MODEL}"}}'] == 1
    assert (after["dnet_devices"], after["dnet_sessions_running"]) == (2, 0)
    computed = [name for name in after if "stage_seconds_total" in name and 'stage="compute"' in name]
    assert len(computed) == 2
    assert all(after[name] > 0 for name in computed)


async def test_pages_of_allowed_origins(ring: Coordinator) -> None:
    async with (
        endpoint(ring, "127.0.0.1", 0, options=EndpointOptions(origins=("https://ok.example",))) as served,
        httpx2.AsyncClient(base_url=served.url) as raw,
    ):
        headers = {"origin": "https://ok.example"}
        response = await raw.get("/models", headers=headers)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://ok.example"
        asking = {**headers, "access-control-request-method": "POST"}
        assert (await raw.options("/chat/completions", headers=asking)).status_code == 200
        response = await raw.get("/models", headers={"origin": "https://evil.example"})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers


async def test_a_full_queue(ring: Coordinator) -> None:
    options = EndpointOptions(sessions=1, waiting=1)
    long: Any = {
        "model": MODEL,
        "messages": HELLO,
        "stream": True,
        "temperature": 1.5,
        "logit_bias": {"1": -100},
    }
    async with (
        endpoint(ring, "127.0.0.1", 0, options=options) as served,
        openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
        httpx2.AsyncClient(base_url=served.url) as raw,
    ):
        runs = await client.chat.completions.create(**long)
        while not (await anext(runs)).choices[0].delta.content:
            pass
        waits = asyncio.ensure_future(plain(client, max_tokens=1))
        while (await metrics(raw))["dnet_sessions_waiting"] < 1:
            pass
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(**{**long, "stream": stream})
            assert caught.value.code == "queue_full"
            assert int(caught.value.response.headers["retry-after"]) >= 1
            assert caught.value.response.headers["x-should-retry"] == "true"
        await runs.close()
        assert (await waits).choices[0].finish_reason == "length"
    await until_idle(ring)


async def test_an_endpoint_may_stop_while_it_streams(ring: Coordinator) -> None:
    """What was being answered is stopped on every shard, and the coordinator goes on."""
    async with endpoint(ring, "127.0.0.1", 0) as served:
        client = openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0)
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, temperature=1.5, logit_bias={"1": -100}
        )
        await anext(stream)
    await client.close()
    await until_idle(ring)
    assert ring.loaded is not None
