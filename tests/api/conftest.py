"""A real endpoint on a real ring of two shard processes with a tiny random model, and clients for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import openai
import pytest_asyncio

from dnet_core.api.app import Endpoint, endpoint
from dnet_core.coordinator import Coordinator
from tests.conftest import Rings
from tests.tiny_models import write_tiny_model

MODEL = "tiny-llama"
CONTEXT_TOKENS = 8192


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ring(rings: Rings, models: Path) -> Coordinator:
    """Two shards with the tiny model loaded."""
    coordinator = await rings(2)
    model = str(models / MODEL)
    if coordinator.loaded is None or coordinator.loaded.model != model:
        overrides = {"max_position_embeddings": CONTEXT_TOKENS}  # room for answers that a test interrupts
        await coordinator.load(str(write_tiny_model("llama", models / MODEL, overrides=overrides)))
    return coordinator


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(ring: Coordinator) -> AsyncIterator[Endpoint]:
    async with endpoint(ring, "127.0.0.1", 0) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(served: Endpoint) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def raw(served: Endpoint) -> AsyncIterator[httpx2.AsyncClient]:
    """For what the official client would not send."""
    async with httpx2.AsyncClient(base_url=served.url) as made:
        yield made
