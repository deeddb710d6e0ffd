"""The coordinator's library on a real shard: what fits, downloads beside a chat, and their end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.discover.static import parse_target
from dnet_core.errors import RequestError
from dnet_core.events import DownloadEnded, DownloadProgressed
from dnet_core.files import replace_text
from dnet_core.settings import paths
from dnet_core.store import shelf
from dnet_core.store.catalog import SAMPLE_ID
from dnet_core.store.imports import ORIGIN_NAME
from dnet_core.transport import tls
from dnet_core.types.models import Fits, ModelOrigin, TooBig
from tests.ring.processes import shard_process
from tests.unit.store.hub_server import Hub, hub_of_one_model, in_one_large_file


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_of_one_model(tmp_path, monkeypatch) as hub:
        yield hub


async def test_the_solver_says_what_would_fit_before_anything_is_loaded(hub: Hub) -> None:
    async with Coordinator(ClusterOptions(local_shards=1)) as ring:
        sample = await ring.library.fit(SAMPLE_ID)
        assert isinstance(sample, Fits)
        assert (sample.num_layers, sample.num_streamed) == (30, 0)
        assert sample.tokens_per_s > 0.1
        tiny = await ring.library.fit("tiny/llama")
        assert isinstance(tiny, Fits)
        assert tiny.tokens_per_s > sample.tokens_per_s
        assert not [name for name, span in hub.contents() if name.endswith("safetensors") and span is None], (
            "only headers were asked for"
        )
        largest = (await ring.library.well_known())[-1]
        assert largest.size_bytes is not None
        assert largest.size_bytes > 200e9
        fit = await ring.library.fit(largest.id)
        assert isinstance(fit, TooBig) or fit.num_streamed > 0
        assert ring.loaded is None


async def test_a_plan_and_the_library_do_not_measure_over_one_another() -> None:
    """As at the first start: the picker asks what fits while the sample is placed. Neither loses a device."""
    async with Coordinator(ClusterOptions(local_shards=2)) as ring:
        await ring.wait_for_local_shards()
        ring.forget_measurements()
        prepared, fit = await asyncio.gather(ring.prepare(SAMPLE_ID), ring.library.fit(SAMPLE_ID))
        names = {peer.name for peer in ring.peers}
        assert {device.peer for device in prepared.request.devices} == names
        assert {a.peer for a in prepared.solution.plan.assignments} == names
        assert isinstance(fit, Fits)
        assert fit.num_devices == 2


async def test_a_download_runs_beside_everything_else_and_ends(hub: Hub) -> None:
    async with Coordinator(ClusterOptions(local_shards=1)) as ring, ring.subscribe() as events:
        with pytest.raises(RequestError, match="not on the hub"):
            ring.library.start_download("not a model")
        ring.library.start_download("tiny/llama")
        assert ring.library.downloading == ("tiny/llama",)
        with pytest.raises(RequestError, match="being fetched"):
            await ring.library.delete("tiny/llama")
        progress: list[DownloadProgressed] = []
        async with asyncio.timeout(60):
            async for event in events:
                if isinstance(event, DownloadProgressed):
                    progress.append(event)
                if isinstance(event, DownloadEnded):
                    assert event == DownloadEnded("tiny/llama", None)
                    break
        assert progress[-1].done_bytes == progress[-1].total_bytes > 0
        here = {entry.id: entry for entry in await ring.library.here()}
        assert here["tiny/llama"].origin is ModelOrigin.CACHED
        assert await ring.library.delete("tiny/llama") > 0


async def test_the_note_of_a_download_is_kept_beside_the_event_loop(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is flushed to the disk, which may take long on a busy one."""
    threads: list[threading.Thread] = []

    def watched(work: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            threads.append(threading.current_thread())
            work(*arguments)

        return call

    monkeypatch.setattr(shelf, "begin_fetch", watched(shelf.begin_fetch))
    monkeypatch.setattr(shelf, "end_fetch", watched(shelf.end_fetch))
    async with Coordinator(ClusterOptions(local_shards=1)) as ring, ring.subscribe() as events:
        ring.library.start_download("tiny/llama")
        async for event in events:
            if isinstance(event, DownloadEnded):
                assert event.problem is None
                break
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_cancelling_a_download_keeps_what_came(hub: Hub) -> None:
    in_one_large_file(hub)
    hub.stall_after_bytes = 5 * 2**19
    async with Coordinator(ClusterOptions(local_shards=1)) as ring, ring.subscribe() as events:
        ring.library.start_download("tiny/llama")
        async with asyncio.timeout(60):
            async for event in events:
                if isinstance(event, DownloadProgressed) and event.done_bytes > 2**20:
                    ring.library.cancel_download("tiny/llama")
                if isinstance(event, DownloadEnded):
                    assert event.problem == "stopped"
                    break
        assert ring.library.downloading == ()
        partial = next(entry for entry in await ring.library.here() if entry.id == "tiny/llama")
        assert partial.origin is ModelOrigin.PARTIAL
        assert partial.size_bytes is not None
        assert 0 < partial.here_bytes < partial.size_bytes


async def test_a_download_that_is_stopped_at_once_is_over(hub: Hub) -> None:
    async with Coordinator(ClusterOptions(local_shards=1)) as ring, ring.subscribe() as events:
        ring.library.start_download("tiny/llama")
        ring.library.cancel_download("tiny/llama")  # before its task has had its first turn
        async with asyncio.timeout(60):
            async for event in events:
                if isinstance(event, DownloadEnded):
                    assert event == DownloadEnded("tiny/llama", "stopped")
                    break
        assert ring.library.downloading == ()


async def test_a_gated_model_says_what_to_do(hub: Hub) -> None:
    hub.gated.add("tiny/llama")
    async with Coordinator(ClusterOptions(local_shards=1)) as ring, ring.subscribe() as events:
        ring.library.start_download("tiny/llama")
        async with asyncio.timeout(60):
            async for event in events:
                if isinstance(event, DownloadEnded):
                    assert event.problem is not None
                    assert "set HF_TOKEN" in event.problem
                    break


async def test_devices_of_other_machines_say_which_models_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines: one has imported a model, and both have the sample. One that is gone says nothing."""
    key = tls.find_key(None, paths().cluster_key)
    async with AsyncExitStack() as stack:
        with monkeypatch.context() as there:
            there.setenv("DNET_HOME", str(tmp_path))
            replace_text(paths().cluster_key, key.text)
            (paths().models / "mine").mkdir(parents=True)
            (paths().models / "mine" / ORIGIN_NAME).write_text("{}")
            studio = await stack.enter_async_context(shard_process("studio"))
        mini = await stack.enter_async_context(shard_process("mini"))
        static = tuple(parse_target(shard.target) for shard in (studio, mini))
        options = ClusterOptions(local_shards=1, static=static)
        ring = await stack.enter_async_context(Coordinator(options))
        async with asyncio.timeout(60), ring.subscribe() as events:
            while len(ring.peers) < 3:
                await anext(events)
        told = await ring.library.elsewhere()
        assert set(told) == {"studio", "mini"}, "this machine's own are asked for by `here`"
        assert {SAMPLE_ID, "mine"} <= told["studio"]
        assert SAMPLE_ID in told["mini"]
        assert "mine" not in told["mini"]
        mini.process.kill()
        await mini.ended()
        assert set(await ring.library.elsewhere()) == {"studio"}
