"""What must hold whatever the screen shows."""

from __future__ import annotations

import ast
import asyncio
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from textual.binding import Binding
from textual.dom import DOMNode
from textual.widget import Widget
from textual.widgets import Input

import dnet_core
import dnet_tui
from dnet_core.errors import PeerLost
from dnet_tui.app import DnetApp
from dnet_tui.chat import Finished
from dnet_tui.launch import timing_here
from dnet_tui.pace import COST_SHARE, Pace, Timing
from dnet_tui.widgets.layer_strip import LayerStrip, slow_devices
from tests.fake_coordinator import Answer, FakeCoordinator, words
from tests.tui.conftest import MODEL, OpenDesk, still


def own_classes() -> list[type[DOMNode]]:
    modules = [import_module(m.name) for m in pkgutil.walk_packages(dnet_tui.__path__, "dnet_tui.")]
    return [
        member
        for module in modules
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, DOMNode) and member.__module__ == module.__name__
    ]


def test_every_binding_has_an_id_and_a_description() -> None:
    bindings = [b for owner in own_classes() for b in owner.__dict__.get("BINDINGS", [])]
    assert len(bindings) > 10
    for binding in bindings:
        assert isinstance(binding, Binding), binding
        assert binding.id, binding
        assert binding.description, binding
        keys = binding.key.split(",")
        assert not all("alt+" in key for key in keys), f"only with alt: {binding}"
    ids = [binding.id for binding in bindings]
    assert len(set(ids)) == len(ids)


async def test_an_idle_app_draws_nothing_for_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real ticker and paces; only the cursor does not blink."""
    drawn: list[Widget] = []
    refresh = Widget.refresh

    def noting(widget: Widget, *args: Any, **kwargs: Any) -> Widget:
        drawn.append(widget)
        return refresh(widget, *args, **kwargs)

    fake = FakeCoordinator()
    app = DnetApp(lambda: fake, MODEL, timing=Timing(blink=False))
    async with app.run_test() as pilot:
        await fake.gate.arrive()
        await fake.gate.step(5)
        await pilot.press("h", "i", "enter")
        while not fake.ended:
            await fake.gate.step()
        paces = (app._view_pace, app._devices._pace, app._side._pace, app.conversation._stream_pace)
        while any(pace._timer is not None for pace in paces):  # the last flush, late on a busy machine
            await pilot.pause(0.1)
        await pilot.pause()
        assert isinstance(app.conversation.turns[0].phase, Finished)
        monkeypatch.setattr(Widget, "refresh", noting)
        await asyncio.sleep(2)
        assert drawn == []
        await pilot.press("x")
        assert drawn != [], "the measuring works"


def test_the_core_knows_no_screen() -> None:
    for path in Path(dnet_core.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n.split(".")[0] in {"textual", "rich", "dnet_tui"}], path


def test_the_widgets_know_no_coordinator() -> None:
    """Only the launcher meets the coordinator; the parts of the screen know values and events."""
    for path in Path(dnet_tui.__file__).parent.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert ("dnet_core.coordinator" in source) == (path.name == "launch.py"), path
        if path.parent.name in {"widgets", "screens"}:
            assert "dnet_tui.cluster" not in source, path


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Timers:
    """Timers that fire when the test says so."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []
        self.callbacks: list[object] = []

    def __call__(self, delay: float, callback: object) -> Timers:
        self.waits_s.append(delay)
        self.callbacks.append(callback)
        return self

    def stop(self) -> None:
        pass


@pytest.mark.parametrize(("cost_s", "pause_s"), [(0.0, 0.1), (0.01, 0.1), (0.05, 0.2)])
def test_drawing_keeps_to_its_share_and_loses_nothing(cost_s: float, pause_s: float) -> None:
    """`cost_s` is what a flush takes until it is painted; half of it here is painting."""
    clock, timers, flushed = Clock(), Timers(), list[float]()

    def flush() -> None:
        flushed.append(clock.now_s)
        clock.now_s += cost_s / 2

    def paint(callback: Callable[[], None]) -> None:
        clock.now_s += cost_s / 2
        callback()

    pace = Pace(flush, 0.1, clock, timers, paint)  # type: ignore[arg-type]
    for _ in range(5):
        pace.ask()
    assert len(flushed) == 1, "the first at once, the others wait"
    assert timers.waits_s == [pytest.approx(pause_s - cost_s)], "one timer for all that wait"
    assert pause_s == max(0.1, COST_SHARE * cost_s)
    clock.now_s = flushed[0] + pause_s
    timers.callbacks[0]()  # type: ignore[operator]
    assert len(flushed) == 2


async def test_esc_reaches_the_ring_before_anything_else_is_drawn(open_desk: OpenDesk) -> None:
    """On a screen with a long answer: the stream is closed within one turn of the loop, without a repaint."""
    long = Answer(words("many words " * 400))
    async with open_desk(FakeCoordinator(answers=[long])) as desk:
        await desk.say("A question")
        await desk.step(100)  # and what they draw
        await desk.pilot.pause()
        happened: list[str] = []
        refresh = desk.app.screen._compositor_refresh

        def noting() -> None:
            happened.append("drawn")
            refresh()

        async def wait() -> None:
            await desk.fake.closed.wait()
            happened.append("closed")

        desk.app.screen._compositor_refresh = noting  # type: ignore[method-assign]
        async with asyncio.TaskGroup() as group:
            group.create_task(wait())
            await asyncio.sleep(0)
            desk.app.action_escape()
        assert happened[0] == "closed"
        assert desk.fake.closed_after == [99]


async def test_over_ssh_nothing_moves_and_the_screen_is_drawn_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert timing_here() == Timing()
    assert (Timing().panels_s, Timing().tick_s) == (1 / 2, 1 / 8), "panels 2, the strip 8 times a second"
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.2 50000 10.0.0.1 22")
    timing = timing_here()
    assert min(timing.view_s, timing.panels_s, timing.tick_s or 0) >= 1
    assert timing.stream_s == Timing().stream_s, "text flows"
    fake = FakeCoordinator(num_layers=400)
    app = DnetApp(lambda: fake, MODEL, timing=timing)
    async with app.run_test() as pilot:
        await fake.gate.arrive()
        await fake.gate.step(5)
        assert app.animation_level == "none"
        assert app._ticker is not None
        assert app._ticker._interval == timing.tick_s
        await pilot.press("h", "i", "enter")
        await fake.gate.step(5)
        assert slow_devices(app._seen), "else nothing would blink"
        app._tick()
        assert app.query_one(LayerStrip).is_dimmed is None


async def test_no_cursor_blinks_where_nothing_is_drawn_by_itself(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        seen = set()
        for key in ("", "ctrl+p", "f3", "ctrl+o", "f2"):
            if key:
                await desk.pilot.press("escape", key)
                await desk.pilot.pause()
            for widget in desk.app.screen.query(Input):
                widget.focus()
                await desk.pilot.pause()
                seen.add(type(desk.app.screen))
                assert not widget.cursor_blink, (desk.app.screen, widget)
            assert not desk.prompt.cursor_blink
        assert len(seen) >= 3


@pytest.mark.parametrize("end", ["done", "stopped", "failed", "left"])
async def test_however_an_answer_ends_all_of_it_is_shown(end: str) -> None:
    """Though the next flush is far away; tokens that came since the last one are not lost."""
    error = PeerLost("shard-2", "gone") if end == "failed" else None
    fake = FakeCoordinator(answers=[Answer(words("one two three four"), error)])
    timing = replace(still(fake.gate), stream_s=1000.0)
    app = DnetApp(lambda: fake, MODEL, timing=timing)
    async with app.run_test() as pilot:
        await fake.gate.arrive()
        await fake.gate.step(5)
        await pilot.pause()
        app.conversation.prompt.insert("Count")
        await pilot.press("enter")
        await fake.gate.step(4)
        await pilot.pause()
        assert app.conversation.turns[0].answer in ("", "one"), "the rest waits for its turn"
        match end:
            case "stopped":
                await pilot.press("escape")
                wanted = "one two three"
            case "left":
                app.conversation.save_unfinished()
                wanted = "one two three"
            case _:
                while not fake.ended:
                    await fake.gate.step()
                wanted = "one two three four"
        await pilot.pause()
        assert app.conversation.turns[0].answer == wanted
        text = "\n".join(strip.text for strip in app.screen._compositor.render_strips())
        assert wanted in text
