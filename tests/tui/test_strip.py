"""The layer strip in letters, for any number of layers in any width."""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.color import Color

from dnet_core.events import LoadProgressed, LoadStarted, ModelLoaded, PeerJoined, PeerLeft
from dnet_core.types.ring import Assignment, LayerWindow, RingPlan, split_evenly
from dnet_tui.look import Look
from dnet_tui.state import ClusterView, fold, letters
from dnet_tui.widgets.layer_strip import Fill, LayerStrip, half_cells, plain_glyph, strip_labels
from tests.fake_coordinator import FakeCoordinator, peer
from tests.tui.conftest import OpenDesk

SIZES = [(layers, width) for layers in (16, 32, 61, 94, 126) for width in (60, 78, 118, 198)]


WHITE = Look(True, *(Color.parse("white") for _ in range(9)))


def ready(plan: RingPlan) -> ClusterView:
    view = ClusterView()
    for assignment in plan.assignments:
        view = fold(view, PeerJoined(peer(assignment.peer)))
    return fold(view, ModelLoaded(plan, 1.0))


@pytest.mark.parametrize(("layers", "width"), SIZES)
@pytest.mark.parametrize("rounds", [1, 2])
def test_every_layer_is_there_in_order_and_evenly(layers: int, width: int, rounds: int) -> None:
    plan = split_evenly("m", layers, ("x", "y", "z"), rounds, 128)
    halves = half_cells(ready(plan), plan, width)
    shown = [half.layer for half in halves]
    assert len(halves) == 2 * width
    assert shown == sorted(shown)
    counts = [shown.count(layer) for layer in range(layers)]
    assert max(counts) - min(counts) <= 1, "no layer is wider than another by more than half a cell"
    if layers <= 2 * width:
        assert min(counts) >= 1
    owners = {layer: "xyz".index(name) for window, name in plan.path for layer in window.layers}
    assert all(half.owner == owners[half.layer] for half in halves)


def test_streamed_loading_and_lost_layers_look_different() -> None:
    x = Assignment("x", (LayerWindow(0, 4),), (2, 3), 1)
    y = Assignment("y", (LayerWindow(4, 8),), (), 0)
    plan = RingPlan("m", 8, 1, 128, 16, (x, y))

    def fills(view: ClusterView) -> str:
        sign = {Fill.RESIDENT: "r", Fill.STREAMED: "s", Fill.EMPTY: ".", Fill.LOST: "x"}
        return "".join(sign[half.fill] for half in half_cells(view, plan, 4))

    assert fills(ready(plan)) == "rrssrrrr"
    loading = fold(fold(ClusterView(), LoadStarted(plan)), LoadProgressed("x", 3, 4))
    assert fills(loading) == "rrs....."
    assert fills(fold(ready(plan), PeerLeft("y", "asleep"))) == "rrssxxxx"


async def test_without_colour_letters_carry_everything(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    x = Assignment("x", (LayerWindow(0, 20),), tuple(range(10, 20)), 2)
    y = Assignment("y", (LayerWindow(20, 30),), (), 0)
    plan = RingPlan("m", 30, 1, 128, 16, (x, y))
    fake = FakeCoordinator(devices=("x", "y"), plan=lambda model: plan)
    async with open_desk(fake, size=(62, 24)) as desk:
        lines = desk.screen_text().splitlines()
        assert lines[1].strip() == "A" * 20 + "▒" * 20 + "B" * 20
        assert lines[2].split() == ["A", "x", "0–19", "(10", "disk)", "B", "y", "20–29"]


async def test_the_layer_under_the_mouse_is_named(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        assert await desk.pilot.hover("#strip", offset=(41, 0))
        assert "L15 · B shard-2 · in memory" in desk.screen_text()
        await desk.pilot.hover("#chat", offset=(5, 5))
        assert "A shard-1 0–14" in desk.screen_text()


def six(layers: int, rounds: int) -> RingPlan:
    """Six unequal devices; the third and fifth stream every third of their layers."""
    shares = [5, 3, 1, 4, 2, 1]
    slots = [share for _ in range(rounds) for share in shares]
    spare = layers - len(slots)  # every window has a layer
    edges = [i + spare * sum(slots[:i]) // sum(slots) for i in range(len(slots) + 1)]
    assignments = []
    for index, name in enumerate(("studio", "mbp-16", "mini", "air", "a-long-name", "m")):
        windows = tuple(LayerWindow(edges[s], edges[s + 1]) for s in range(index, len(slots), 6))
        own = [layer for window in windows for layer in window.layers]
        streamed = tuple(own[::3]) if index in (2, 4) else ()
        assignments.append(Assignment(name, windows, streamed, 1 if streamed else 0))
    return RingPlan("m", layers, rounds, 128, 16, tuple(assignments))


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_strip_in_letters_is_as_agreed(rounds: int, snapshot: SnapshotAssertion) -> None:
    """Both rows without colour, for every number of layers in every width."""
    text = []
    for layers, width in SIZES:
        plan = six(layers, rounds)
        view = ready(plan)
        named = list(letters(view).values())
        halves = half_cells(view, plan, width)
        bar = "".join(plain_glyph(half, named) for half in halves[::2])
        labels = "".join(piece for piece, _ in strip_labels(view, plan, width, WHITE))
        assert len(bar) == width
        assert len(labels) <= width
        text += [f"{layers} layers in {width}", bar, labels, ""]
    assert "\n".join(text) == snapshot


@pytest.mark.parametrize(("num_layers", "blinks"), [(30, False), (400, True)])
async def test_a_window_that_an_eye_can_follow_blinks(
    num_layers: int, blinks: bool, open_desk: OpenDesk
) -> None:
    """From 250 ms on; 2.1 ms a layer here, half of them on each device."""
    async with open_desk(FakeCoordinator(num_layers=num_layers)) as desk:
        strip = desk.app.query_one(LayerStrip)
        await desk.say("A question")
        await desk.step(5)
        shares = strip._glows()
        assert all(resident < 1.0 for resident, _ in shares), "nothing ticks: what each computes, no blink"
        strip.is_dimmed = False
        bright = strip._glows()
        assert (bright != shares) == blinks
        strip.is_dimmed = True
        assert (strip._glows() != bright) == blinks
        await desk.finish()
        assert strip._glows()[0] == strip._glows()[1], "calm again"
        desk.app._ticker = desk.app.set_interval(1000, desk.app._tick)
        desk.app._sync_ticker()
        assert strip.is_dimmed is None, "the ticker is paused: no half of a blink stays"


async def test_what_computes_and_what_reads_is_bright(open_desk: OpenDesk) -> None:
    """A device is the brighter the more it computes, its streamed layers the more its disk reads."""
    x = Assignment("x", (LayerWindow(0, 15),), tuple(range(5, 15)), 2)
    y = Assignment("y", (LayerWindow(15, 30),), (), 0)
    fake = FakeCoordinator(devices=("x", "y"), plan=lambda model: RingPlan(model, 30, 1, 128, 16, (x, y)))
    async with open_desk(fake, size=(62, 24)) as desk:
        strip = desk.app.query_one(LayerStrip)
        at_rest = strip._glows()
        assert len(set(at_rest)) == 1
        assert at_rest[0][0] == at_rest[0][1]
        await desk.say("A question")
        await desk.step(5)
        (x_computes, x_reads), (y_computes, y_reads) = strip._glows()
        assert y_computes > x_computes > at_rest[0][0]
        assert x_reads > y_reads == at_rest[0][1]
        await desk.finish()
        assert strip._glows() == at_rest, "calm again"
