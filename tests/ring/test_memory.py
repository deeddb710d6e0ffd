"""A shard holds the bytes of its own layers, and gives them back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dnet_core.coordinator import Coordinator
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.types.generation import SamplingParams
from dnet_core.types.ring import RingPlan
from tests.conftest import Rings
from tests.ring_tools import ring_plan, ring_tokens, statuses
from tests.tiny_models import write_large_random_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

LAYERS = 6
SLACK_BYTES = 300_000  # norms, rotary tables, random state; a layer has 11 MB


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    """Six equal layers of 11 MB; the embedding, 1 MB, is also the head."""
    return write_large_random_model(models / "memory", layers=LAYERS, hidden=512, vocab=512, num_files=3)


def owned_bytes(model: Path, plan: RingPlan, peer: str) -> int:
    """What the checkpoint's headers say that `peer` must hold."""
    (assignment,) = (a for a in plan.assignments if a.peer == peer)
    total = 0
    for name, tensor in read_checkpoint(model).tensors.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        if layer is not None:
            is_owned = int(layer[1]) in assignment.layers
        elif "embed" in name:
            is_owned = peer in (plan.head, plan.tail)
        else:
            is_owned = peer == plan.tail
        total += tensor.num_bytes if is_owned else 0
    return total


async def held_bytes(ring: Coordinator) -> dict[str, int]:
    return {status.name: status.active_bytes for status in await statuses(ring)}


@pytest.mark.parametrize(
    ("shards", "ends", "rounds"),
    [(1, [6], 1), (2, [3, 6], 1), (2, [1, 3, 5, 6], 2), (3, [1, 5, 6], 1)],
)
async def test_a_shard_holds_what_it_owns(
    shards: int, ends: list[int], rounds: int, rings: Rings, model: Path
) -> None:
    ring = await rings(shards)
    await ring.unload()
    empty = await held_bytes(ring)
    peaks = {status.name: status.peak_bytes for status in await statuses(ring)}
    plan = ring_plan(model, ring.peers, ends, rounds)
    await ring.load(str(model), plan, 16)
    await ring_tokens(ring, range(7, 107), SamplingParams(max_tokens=4))
    for status in await statuses(ring):
        owned = owned_bytes(model, plan, status.name)
        assert status.prefix_bytes > 0, "the session has left its KV behind"
        held = status.active_bytes - status.prefix_bytes - empty[status.name]
        assert owned <= held <= owned + SLACK_BYTES
        # Not even for a moment was there more than the own layers, the KV and a chunk's workspace.
        workspace = 4_000_000
        assert status.peak_bytes <= max(peaks[status.name], empty[status.name] + owned + workspace)
    await ring.unload()
    for name, still_held in (await held_bytes(ring)).items():
        assert still_held <= empty[name] + SLACK_BYTES


async def test_half_the_layers_are_half_the_bytes(rings: Rings, model: Path) -> None:
    whole = read_checkpoint(model).weight_bytes
    ring = await rings(2)
    await ring.unload()
    empty = await held_bytes(ring)
    await ring.load(str(model), ring_plan(model, ring.peers, [3, 6]), 16)
    for name, held in (await held_bytes(ring)).items():
        assert 0.48 * whole < held - empty[name] < 0.53 * whole


async def test_loading_again_and_again_holds_no_more(rings: Rings, model: Path) -> None:
    ring = await rings(2)
    plans = [ring_plan(model, ring.peers, ends) for ends in ([1, 6], [5, 6], [1, 6])]
    held = []
    for plan in plans:
        await ring.load(str(model), plan, 16)
        held.append(await held_bytes(ring))
    assert held[2] == pytest.approx(held[0], abs=SLACK_BYTES)
    assert held[1] != pytest.approx(held[0], abs=SLACK_BYTES)
