"""A plan changed while its model is loaded: from the facts that were measured for it, on a real ring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.errors import InfeasiblePlan, NotReady, RequestError
from dnet_core.events import (
    DevicesMeasured,
    Event,
    MeasurementProgressed,
    MemoryReported,
    ModelLoaded,
    PlanMade,
    PlanStarted,
)
from dnet_core.types.generation import SamplingParams
from dnet_core.types.plan import Pin, Solution
from dnet_core.types.ring import LayerWindow
from tests.conftest import Rings
from tests.ring_tools import reference_tokens, ring_tokens
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100)
GREEDY = SamplingParams(temperature=0.0, max_tokens=8)


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return write_tiny_model("llama", models / "replanned")


def windows(solution: Solution) -> dict[str, tuple[LayerWindow, ...]]:
    return {a.peer: a.windows for a in solution.plan.assignments}


async def placed(ring: Coordinator, model: Path) -> list[Event]:
    """Load `model` as the coordinator finds best; returns what it told."""
    told: list[Event] = []
    async with ring.subscribe() as events:
        await ring.load(str(model))
        while not isinstance(event := await anext(events), ModelLoaded):
            told.append(event)
    return told


async def test_the_facts_are_told_before_the_plan(rings: Rings, model: Path) -> None:
    ring = await rings(2)
    told = await placed(ring, model)
    started, measured, made = (e for e in told if isinstance(e, PlanStarted | DevicesMeasured | PlanMade))
    assert isinstance(started, PlanStarted)
    assert isinstance(measured, DevicesMeasured)
    assert isinstance(made, PlanMade)
    names = {peer.name for peer in ring.peers}
    assert {device.peer for device in measured.request.devices} == names
    assert {(link.source, link.target) for link in measured.request.links} == {
        (a, b) for a in names for b in names if a != b
    }
    assert measured.request.model.num_layers == made.solution.plan.num_layers == 5
    counts = [
        (e.subject, e.num_done, e.num_total)
        for e in told[told.index(started) : told.index(measured)]
        if isinstance(e, MeasurementProgressed)
    ]
    assert counts[:3] == [("devices", 0, 2), ("devices", 1, 2), ("devices", 2, 2)]
    assert counts[3:] in ([], [("links", 0, 2), ("links", 1, 2)]), (
        "links that are known are not measured again"
    )


async def test_a_moved_boundary_is_predicted_and_loaded_without_measuring(rings: Rings, model: Path) -> None:
    ring = await rings(2)
    await placed(ring, model)
    a, b = (peer.name for peer in ring.peers)
    edited = await ring.predict({a: (LayerWindow(0, 1),), b: (LayerWindow(1, 5),)})
    assert [d.num_layers for d in edited.prediction.devices] == [1, 4]
    assert ring.loaded is not None, "asking changes nothing"
    assert ring.loaded.plan != edited.plan
    assert ring.prepared is not None
    assert ring.prepared.solution.plan == ring.loaded.plan
    async with ring.subscribe() as events:
        await ring.load(str(model), edited)
        told = []
        while not isinstance(event := await anext(events), ModelLoaded):
            told.append(event)
    assert ring.loaded.plan == edited.plan
    assert [e.solution for e in told if isinstance(e, PlanMade)] == [edited]
    assert not [e for e in told if isinstance(e, PlanStarted | DevicesMeasured)]
    answer = await ring_tokens(ring, PROMPT, GREEDY)
    assert [token.token for token in answer] == reference_tokens(model, PROMPT, 8, 4)


async def test_residency_is_edited_and_streamed(rings: Rings, model: Path) -> None:
    ring = await rings(2)
    await placed(ring, model)
    assert ring.prepared is not None
    own = windows(ring.prepared.solution)
    first = next(iter(own))
    edited = await ring.predict(own, {first: 1})
    late = next(a for a in edited.plan.assignments if a.peer == first).streamed
    assert len(late) == len(own[first][0]) - 1
    assert edited.prediction.streamed_bytes_per_token > 0
    await ring.load(str(model), edited)
    answer = await ring_tokens(ring, PROMPT, GREEDY)
    assert [token.token for token in answer] == reference_tokens(model, PROMPT, 8, 4)


async def test_what_is_no_plan_says_why_and_leaves_the_ring_alone(rings: Rings, model: Path) -> None:
    ring = await rings(2)
    await placed(ring, model)
    a, b = (peer.name for peer in ring.peers)
    loaded, prepared = ring.loaded, ring.prepared
    with pytest.raises(RequestError, match="reached layer 1"):
        await ring.predict({a: (LayerWindow(0, 1),), b: (LayerWindow(2, 5),)})
    with pytest.raises(RequestError, match="keep 9 of 1"):
        await ring.predict({a: (LayerWindow(0, 1),), b: (LayerWindow(1, 5),)}, {a: 9})
    with pytest.raises((RequestError, InfeasiblePlan), match="no device is left"):
        await ring.replan(excluded=(a, b))
    assert ring.loaded is loaded
    assert ring.prepared is prepared
    assert len(await ring_tokens(ring, PROMPT, GREEDY)) == 8


async def test_a_device_is_left_out_or_pinned(rings: Rings, model: Path) -> None:
    ring = await rings(2)
    await placed(ring, model)
    a, b = (peer.name for peer in ring.peers)
    alone = await ring.replan(excluded=(a,))
    assert windows(alone) == {b: (LayerWindow(0, 5),)}
    assert "excluded by you" in next(r.text for r in alone.reasons if r.peer == a)
    pinned = await ring.replan(pins=(Pin(a, (LayerWindow(0, 4),)),))
    assert windows(pinned)[a] == (LayerWindow(0, 4),)
    again = await ring.replan()
    assert ring.prepared is not None
    assert again == ring.prepared.solution, "automatic is what load had found"


async def test_there_is_nothing_to_change_before_the_first_plan() -> None:
    async with Coordinator(ClusterOptions(local_shards=0)) as ring:
        with pytest.raises(NotReady, match="load a model first"):
            await ring.replan()
        with pytest.raises(NotReady, match="load a model first"):
            await ring.predict({})


async def test_shards_tell_what_they_hold_while_somebody_listens(rings: Rings, model: Path) -> None:
    ring = await rings(2)
    await ring.unload()
    names = {peer.name for peer in ring.peers}
    async with ring.subscribe() as events:
        empty = await held(events, names)
        await ring.load(str(model))
        loaded = await held(events, names, more_than=empty)
    for name in names:
        assert loaded[name].memory_total_bytes == empty[name].memory_total_bytes > 0
    async with ring.subscribe() as events:
        again = await held(events, names)
    assert all(again[name].active_bytes > empty[name].active_bytes for name in names), (
        "who comes later hears it, too, though nothing changed"
    )


async def held(
    events: AsyncIterator[Event], names: set[str], more_than: Mapping[str, MemoryReported] | None = None
) -> dict[str, MemoryReported]:
    """Wait until each of `names` has told what it holds, more than in `more_than`."""
    told: dict[str, MemoryReported] = {}
    while set(told) < names:
        event = await anext(events)
        if isinstance(event, MemoryReported) and (
            more_than is None or event.active_bytes > more_than[event.peer].active_bytes
        ):
            assert event.peak_bytes >= event.active_bytes
            told[event.peer] = event
    return told
