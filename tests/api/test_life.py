"""Before a model is there, while it loads, models and health, and the `dnet-api` process itself."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import httpx2
import openai
import psutil
import pytest

from dnet_core.api.app import Endpoint, endpoint
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.tasks import TaskScope
from tests.api.conftest import CONTEXT_TOKENS, MODEL
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_models(client: openai.AsyncOpenAI) -> None:
    (listed,) = [model async for model in client.models.list()]
    assert (listed.id, listed.object, listed.owned_by) == (MODEL, "model", "dnet")
    assert listed.created > 1_700_000_000
    extra = listed.model_extra or {}
    assert extra["context_length"] == extra["max_model_len"] == extra["meta"]["n_ctx"] == CONTEXT_TOKENS
    assert await client.models.retrieve(MODEL) == listed


async def test_health(served: Endpoint) -> None:
    async with httpx2.AsyncClient() as raw:
        health = (await raw.get(f"http://127.0.0.1:{served.port}/health")).json()
    assert (health["status"], health["model"], health["devices"]) == ("ok", MODEL, 2)


async def test_without_a_model() -> None:
    async with (
        Coordinator(ClusterOptions()) as empty,
        endpoint(empty, "127.0.0.1", 0) as served,
        openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
        httpx2.AsyncClient() as raw,
    ):
        assert [model async for model in client.models.list()] == []
        health = await raw.get(f"http://127.0.0.1:{served.port}/health")
        assert (health.status_code, health.json()["status"]) == (503, "model_not_loaded")
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="x", messages=[{"role": "user", "content": "hi"}])
        assert (caught.value.status_code, caught.value.code) == (503, "model_not_loaded")


async def test_while_a_model_loads(tmp_path: Path) -> None:
    model = write_tiny_model("llama", tmp_path / MODEL)
    async with (
        Coordinator(ClusterOptions()) as coordinator,
        endpoint(coordinator, "127.0.0.1", 0) as served,
        httpx2.AsyncClient(base_url=served.url) as raw,
        TaskScope() as tasks,
    ):
        loading = tasks.start(coordinator.load(str(model)))
        await asyncio.sleep(0)  # let it begin
        assert coordinator.is_changing
        response = await raw.post("/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["x-should-retry"] == "true"
        await loading
        assert (await raw.get(served.url.removesuffix("/v1") + "/health")).status_code == 200


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "dnet_core.main", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def line_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode()


async def test_the_process_serves_and_ends_cleanly(tmp_path: Path) -> None:
    model = write_tiny_model("llama", tmp_path / MODEL)
    process = await start("--shards", "2", "--http-port", "0", "--no-mdns", "--model", str(model))
    listens = await line_of(process)
    url = listens.split(" listens on ")[1].split(";")[0]
    assert "ready" in await line_of(process)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], max_tokens=3
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 3
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    await ends_cleanly(process, signal.SIGTERM)
    assert psutil.wait_procs(children, timeout=0)[1] == []


async def test_the_process_ends_at_ctrl_c() -> None:
    process = await start("--no-load", "--http-port", "0", "--no-mdns")
    assert "nothing is loaded" in await line_of(process)
    await ends_cleanly(process, signal.SIGINT)


async def ends_cleanly(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    process.send_signal(number)
    _, stderr = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, stderr) == (0, b"")
