"""Every test keeps its files in a folder of its own, and rings of processes are shared where they can be."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator

settings.register_profile("default", deadline=None)  # how long an example takes is up to what else runs
settings.load_profile("default")
settings.register_profile("long", max_examples=4000)
"""`pytest --hypothesis-profile=long`: property tests that say no number of their own, for hours."""


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches, settings and logs of the whole run; the sample model is imported once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DNET_HOME", str(tmp_path_factory.mktemp("home")))
        yield


class Rings:
    """Coordinators by number of local shards, started when first asked for and kept for the session.

    One that has lost a shard is replaced: the test that lost it fails, those that follow need not.
    """

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._by_size: dict[int, Coordinator] = {}

    async def __call__(self, shards: int) -> Coordinator:
        known = self._by_size.get(shards)
        if known is None or len(known.peers) < shards:
            coordinator = Coordinator(ClusterOptions(local_shards=shards))
            self._by_size[shards] = await self._stack.enter_async_context(coordinator)
            await coordinator.wait_for_local_shards()
        return self._by_size[shards]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rings() -> AsyncIterator[Rings]:
    async with AsyncExitStack() as stack:
        yield Rings(stack)


@pytest.fixture(scope="session")
def direct_reads(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where files cannot be opened for reads past the cache: the system is asked, not this program."""
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("this system has no O_DIRECT")
    path = tmp_path_factory.mktemp("direct") / "file"
    path.touch()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        assert error.errno == errno.EINVAL
        pytest.skip("this file system has no O_DIRECT")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests of this session put the models that they make."""
    return tmp_path_factory.mktemp("models")
