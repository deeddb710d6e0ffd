"""The endpoint of a simulated cluster: it looks switched on, and nothing listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NoActivity:
    """Nobody can ask."""

    requests: tuple[()] = ()
    requests_total: int = 0
    last_errors: tuple[()] = ()


@dataclass(frozen=True, slots=True)
class DemoEndpoint:
    """Speaks the interface of `dnet_core.api.app.Endpoint`."""

    host: str
    port: int
    api_keys: tuple[str, ...]

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"

    async def watch(self) -> AsyncGenerator[NoActivity, None]:
        """Once; nothing ever changes."""
        yield NoActivity()
        await asyncio.Event().wait()


@asynccontextmanager
async def demo_endpoint(host: str, port: int, api_keys: tuple[str, ...]) -> AsyncIterator[DemoEndpoint]:
    yield DemoEndpoint(host, port, api_keys)
