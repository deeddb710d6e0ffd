"""Work that outlives whoever asked for it ends with the coordinator, and says so."""

from __future__ import annotations

import asyncio

import pytest

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.errors import RequestError


async def test_work_that_the_end_comes_before_is_cancelled() -> None:
    async with Coordinator(ClusterOptions(local_shards=0)) as coordinator:
        late = coordinator.keep_on(asyncio.sleep(0))
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await late


async def test_results_and_failures_are_handed_on() -> None:
    async def fail() -> None:
        raise RequestError("no")

    async with Coordinator(ClusterOptions(local_shards=0)) as coordinator:
        assert await coordinator.keep_on(asyncio.sleep(0, "done")) == "done"
        with pytest.raises(RequestError, match="no"):
            await coordinator.keep_on(fail())
