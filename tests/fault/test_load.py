"""Models that cannot be loaded: a typed error that says why, and shards that can be used as before."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from dnet_core.coordinator import Coordinator
from dnet_core.discover.announcement import Announcement, new_id
from dnet_core.errors import DnetError, LoadError, NotReady, PeerLost, UnknownModel, UnsupportedModel
from dnet_core.events import LoadFailed, LoadProgressed, ModelLoaded
from dnet_core.shard.mlx_thread import MlxThread
from dnet_core.shard.server import ShardServer
from dnet_core.transport import tls
from dnet_core.transport.control import Limits, LoadOrder, LoadStep
from dnet_core.transport.frames import Fault
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import open_channel
from dnet_core.types.devices import PROTOCOL_VERSION
from dnet_core.types.generation import SamplingParams
from dnet_core.types.ring import LayerWindow, RingPlan, split_evenly
from tests.conftest import Rings
from tests.ring_tools import reference_tokens, ring_tokens, statuses
from tests.tiny_models import write_large_random_model, write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100)


@pytest.fixture(scope="module")
def good(models: Path) -> Path:
    return write_tiny_model("llama", models / "good")


def even(model: Path, ring: Coordinator, num_layers: int) -> RingPlan:
    return split_evenly(str(model), num_layers, tuple(peer.name for peer in ring.peers), 1, 512)


async def check_usable(ring: Coordinator, good: Path) -> None:
    """Nothing of the failure is left, and the ring loads and answers."""
    assert ring.loaded is None
    assert not ring.is_changing
    assert [(status.model, status.sessions) for status in await statuses(ring)] == [(None, ())] * 2
    with pytest.raises(NotReady, match="no model"):
        await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=4))
    await ring.load(str(good), even(good, ring, 5), 4)
    answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=4))
    assert [token.token for token in answer] == reference_tokens(good, PROMPT, 4, 4)
    await ring.unload()


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | changes))

    return edit


def truncate(model: Path) -> None:
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def garbage(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes(b"\x93garbage" * 99) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def drop_tensor(model: Path) -> None:
    import mlx.core as mx

    weights = mx.load(str(model / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.eval(weights)
    del weights["model.layers.3.mlp.up_proj.weight"]
    (model / "model.safetensors").unlink()
    mx.save_safetensors(str(model / "model.safetensors"), weights, metadata={"format": "mlx"})


BROKEN: dict[str, tuple[Callable[[Path], None], type[DnetError], str]] = {
    "truncated weights": (truncate, LoadError, "model.safetensors"),
    "garbage for weights": (garbage("model.safetensors"), LoadError, "model.safetensors"),
    "no weights": (remove("model.safetensors"), LoadError, "safetensors"),
    "a tensor is missing": (drop_tensor, DnetError, "layers.3.mlp.up_proj"),
    "garbage for config": (garbage("config.json"), LoadError, "config.json"),
    "no config": (remove("config.json"), UnknownModel, "config.json"),
    "config is no object": (
        lambda model: (model / "config.json").write_text("[1]") and None,
        LoadError,
        "config.json",
    ),
    "unknown architecture": (edit_config(model_type="skynet"), UnsupportedModel, "skynet"),
    "no architecture": (edit_config(model_type=None), DnetError, "model_type"),
    "config of another size": (edit_config(hidden_size=128), DnetError, "shape"),
    "no tokenizer": (remove("tokenizer.json"), LoadError, "tokenizer"),
    "garbage for a tokenizer": (garbage("tokenizer.json"), LoadError, "tokenizer.json"),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_model_is_a_typed_error(what: str, rings: Rings, good: Path, tmp_path: Path) -> None:
    break_it, error, text = BROKEN[what]
    model = tmp_path / "model"
    shutil.copytree(good, model)
    break_it(model)
    ring = await rings(2)
    await ring.unload()
    async with ring.subscribe() as events:
        with pytest.raises(error) as failure:
            await ring.load(str(model), even(model, ring, 5), 4)
        assert text in str(failure.value)
        assert "Traceback" not in str(failure.value)
        told = await anext(events)
        while not isinstance(told, LoadFailed):
            told = await anext(events)
        assert told.message == str(failure.value)
    await check_usable(ring, good)


async def test_a_failed_load_leaves_nothing_of_the_model_before(rings: Rings, good: Path) -> None:
    ring = await rings(2)
    await ring.load(str(good), even(good, ring, 5), 4)
    with pytest.raises(UnknownModel):
        await ring.load("/no/such/model", None, 4)
    await check_usable(ring, good)


async def test_weights_that_only_one_shard_finds_broken(rings: Rings, good: Path, tmp_path: Path) -> None:
    """The header is sound and the file long enough when the load begins; then the second half is gone."""
    model = write_large_random_model(tmp_path / "model", layers=8, hidden=256, num_files=8)
    ring = await rings(2)
    await ring.unload()
    certificate = tls.issue(tls.ClusterKey.generate(), "here")
    here = Announcement(new_id(), "here", "1", PROTOCOL_VERSION, 0, 0, "default")
    order = LoadOrder(str(model), 8, (LayerWindow(0, 8),), (), 0, 512, 16, None, Limits(None, 0, 32))
    with MlxThread() as thread:
        async with ShardServer(here, thread, tls.channel_credentials(certificate), None) as shard:
            loading = shard.load(order)  # goes on only when it is asked
            report = await anext(loading)
            while report.step is not LoadStep.READ or report.done_bytes == 0:
                report = await anext(loading)
            assert report.done_bytes < report.total_bytes
            for file in sorted(model.glob("*.safetensors")):
                os.truncate(file, 4096)
            with pytest.raises(LoadError, match="cannot be read"):
                async for _ in loading:
                    pass
            assert shard.status().model is None
            again = replace(order, model=str(good), num_layers=5, windows=(LayerWindow(0, 5),))
            assert [r async for r in shard.load(again)][-1].step is LoadStep.READY
    with pytest.raises(LoadError):
        await ring.load(str(model), even(model, ring, 8), 4)
    await check_usable(ring, good)


@pytest.mark.parametrize("reports", [1, 3, 6])
async def test_a_load_that_is_cancelled_leaves_the_shards_empty(
    reports: int, rings: Rings, good: Path, models: Path
) -> None:
    model = models / "cancelled-load"
    if not model.exists():
        write_large_random_model(model, layers=8, hidden=512)
    ring = await rings(2)
    await ring.unload()
    empty = await statuses(ring)
    async with ring.subscribe() as events:
        loading = asyncio.create_task(ring.load(str(model), even(model, ring, 8), 4))
        seen = 0
        while seen < reports:
            event = await anext(events)
            assert not isinstance(event, ModelLoaded)
            seen += isinstance(event, LoadProgressed)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
    for before, after in zip(empty, await statuses(ring), strict=True):
        assert after.model is None
        assert after.active_bytes < before.active_bytes + 1_000_000, "a layer has 11 MB"
    await check_usable(ring, good)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20])
async def test_a_load_that_is_cancelled_while_the_model_before_is_unloaded(
    steps: int, rings: Rings, good: Path
) -> None:
    """After so many steps of the event loop: a moment later nothing is loaded anywhere."""
    ring = await rings(2)
    await ring.load(str(good), even(good, ring, 5), 4)
    loading = asyncio.create_task(ring.load(str(good), even(good, ring, 5), 4))
    for _ in range(steps):
        await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    await check_usable(ring, good)


async def test_a_ring_that_was_unloaded_loses_nobody(rings: Rings, good: Path) -> None:
    """Its shards may end or lose one another from then on: that is no news of them."""
    ring = await rings(2)
    await ring.load(str(good), even(good, ring, 5), 4)
    driver = ring._driver()
    lost: list[str] = []
    driver._on_lost = lambda _driver, error: lost.append(error.peer)
    await ring.unload()
    name = ring.peers[1].name
    driver._receive(Fault("s", name, PeerLost.__name__, f"{name} left the ring: it closed the stream"))
    assert lost == []


async def test_two_loads_at_once(rings: Rings, good: Path) -> None:
    ring = await rings(2)
    first = asyncio.create_task(ring.load(str(good), even(good, ring, 5), 4))
    async with ring.subscribe() as events:
        await anext(events)
        with pytest.raises(NotReady, match="being loaded"):
            await ring.load(str(good), even(good, ring, 5), 4)
        with pytest.raises(NotReady, match=r"loading|no model"):
            await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=1))
    loaded = await first
    assert ring.loaded == loaded
    await ring.unload()


async def test_two_heads_cannot_load_one_shard_at_once(rings: Rings, models: Path) -> None:
    """The shard itself refuses the second order, whoever gives it."""
    model = models / "two-heads"
    write_large_random_model(model, layers=8, hidden=512)
    ring = await rings(1)
    await ring.unload()
    order = LoadOrder(str(model), 8, (LayerWindow(0, 8),), (), 0, 512, 16, None, Limits(None, 0, 32))
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(open_channel(ring.peers[0].target, None)) for _ in "ab"]
        one, two = (ShardClient(ring.peers[0].name, channel) for channel in channels)
        first = one.load(order)
        await anext(first)
        with pytest.raises(NotReady, match="already loading"):
            await anext(two.load(order))
        await first.aclose()
        async with asyncio.timeout(10):
            while True:  # the shard hears of the cancel a moment later
                try:
                    reports = [report async for report in two.load(order)]
                except NotReady:
                    continue
                break
        assert reports[-1].fingerprint
        await two.unload()
