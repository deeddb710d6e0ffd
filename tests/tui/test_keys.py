"""Keys of every screen: listed, changed, shown where they hold, never cut off, and each a place to click."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.binding import Binding
from textual.screen import ModalScreen

from dnet_core.demo.cluster import DemoCluster
from dnet_core.demo.endpoint import demo_endpoint
from dnet_core.demo.worlds import Macs
from dnet_core.doctor.finding import Finding, Level
from dnet_tui.app import DnetApp
from dnet_tui.history import History
from dnet_tui.keys import clash, keys_text
from dnet_tui.pace import Timing
from dnet_tui.personal_app import Personal
from dnet_tui.preferences import Preferences
from dnet_tui.screens.models import ModelPicker
from dnet_tui.screens.plan import PlanScreen
from dnet_tui.service_app import Services
from dnet_tui.serving import On
from dnet_tui.state import Ready
from dnet_tui.widgets.device_list import DeviceList
from dnet_tui.widgets.key_bar import KeyBar
from tests.tui.test_invariants import own_classes
from tests.tui.test_models import LLAMA, Sand, Table

KEYS = {
    "models": "ctrl+o",
    "endpoint": "f4",
    "plan": "f12",
    "join": "f9",
    "settings": "f2",
    "this chat": "f3",
    "help": "f1",
    "history": "ctrl+f",
}
OTHERS: dict[str, Callable[[DnetApp], object]] = {
    "device": lambda app: app.post_message(DeviceList.Opened("mbp-16")),
    "doctor": lambda app: app.open_doctor(),
    "log": lambda app: app.open_log(),
}
SCREENS = [*KEYS, *OTHERS, "question"]


@asynccontextmanager
async def desk_with(
    tmp_path: Path, size: tuple[int, int] = (80, 24), keys: Mapping[str, str] | None = None
) -> AsyncIterator[Table]:
    """Two simulated Macs, a history, an endpoint, a log and a doctor; `keys` are changed ones."""
    log = tmp_path / "log"
    log.write_text("a line\n")

    async def examine() -> tuple[Finding, ...]:
        return (Finding("disk", Level.GOOD, "there is room"),)

    services = Services(
        lambda _, wish: demo_endpoint(wish.host, wish.port, wish.api_keys), log=log, examine=examine
    )
    preferences = Preferences(keys=dict(keys or {}))
    personal = Personal(preferences, history=History(tmp_path / "chats.db"))
    sand = Sand()
    demo = DemoCluster(Macs(2), pause=sand.pause, clock=sand.clock)
    timing = Timing(stream_s=0, view_s=0, tick_s=None, blink=False, clock=sand.clock)
    app = DnetApp(lambda: demo, LLAMA, personal, timing, services)
    async with app.run_test(size=size) as pilot:
        desk = Table(app, pilot, demo, sand)
        await desk.until(lambda: isinstance(app.view.model, Ready))
        yield desk


async def open_screen(desk: Table, name: str) -> None:
    if name == "question":
        desk.app.start_endpoint()
        await desk.until(lambda: isinstance(desk.app.endpoint, On))
        await desk.pilot.press("ctrl+q")
    elif name in KEYS:
        await desk.pilot.press(KEYS[name])
    else:
        OTHERS[name](desk.app)
    await desk.until(lambda: isinstance(desk.app.screen, ModalScreen))
    await desk.pilot.pause()


def test_every_key_of_every_screen_is_listed_and_can_be_changed(tmp_path: Path) -> None:
    app = DnetApp(lambda: DemoCluster(Macs(1)), LLAMA)
    known = {key.id for key in app.all_keys()}
    declared = {b.id for o in own_classes() for b in o.__dict__.get("BINDINGS", ()) if isinstance(b, Binding)}
    assert declared <= known
    for screen in ("the model picker", "the plan", "the history", "the endpoint's panel"):
        assert any(screen in key.scope for key in app.all_keys()), screen


def test_no_two_keys_of_one_screen_clash_as_they_come() -> None:
    app = DnetApp(lambda: DemoCluster(Macs(1)), LLAMA)
    keys = app.all_keys()
    for key in keys:
        for own in key.keys.split(","):
            if own != "escape":  # it leaves what is open, whatever that is
                assert clash(keys, {}, key, own) is None, key


def test_a_key_that_is_taken_is_taken_on_its_own_screen_only() -> None:
    app = DnetApp(lambda: DemoCluster(Macs(1)), LLAMA)
    keys = app.all_keys()
    download = next(key for key in keys if key.id == "picker.download")
    assert clash(keys, {}, download, "x") == "x is taken: Take it off this machine"
    assert clash(keys, {}, download, "f4") is None, "the endpoint's key does nothing while the picker is open"


def test_a_key_over_a_line_to_write_is_none_that_is_typed_there() -> None:
    app = DnetApp(lambda: DemoCluster(Macs(1)), LLAMA)
    keys = app.all_keys()
    take = next(key for key in keys if key.id == "ask.take")
    assert clash(keys, {}, take, "a") == "a is typed in a line to write: take one with ctrl, or an F key"
    assert clash(keys, {}, take, "f6") is None
    download = next(key for key in keys if key.id == "picker.download")
    assert clash(keys, {}, download, "ctrl+p") == "ctrl+p is taken: Find a command by name"


async def test_changed_keys_do_what_the_old_ones_did_and_stand_where_they_hold(tmp_path: Path) -> None:
    keys = {
        "picker.download": "b",
        "plan.more": "m",
        "history.close": "z",
        "device.next": "w",
        "join.key": "y",
        "endpoint.close": "f7",
    }
    async with desk_with(tmp_path, (120, 40), keys) as desk:
        await desk.open()
        await desk.choose("mlx-community/Qwen3-8B-4bit")
        assert "b downloads only" in desk.text()
        await desk.pilot.press("b")
        assert "enter downloads it" in desk.text()
        await desk.pilot.press("escape", "escape")
        await open_screen(desk, "plan")
        assert "m more" in desk.text()
        before = desk.text()
        await desk.pilot.press("right")
        assert desk.text() == before, "the old key does nothing"
        await desk.pilot.press("m")
        await desk.until(lambda: "by hand" in desk.text())
        await desk.pilot.press("escape")
        await open_screen(desk, "join")
        assert "y shows the key" in desk.text()
        await desk.pilot.press("y")
        assert "demo-key-of-no-cluster" in desk.text()
        await desk.pilot.press("escape")
        await open_screen(desk, "device")
        assert "w next" in desk.text()
        await desk.pilot.press("w")
        await desk.until(lambda: "studio ─" in desk.text().replace("A ", ""))
        await desk.pilot.press("escape")
        await open_screen(desk, "endpoint")
        assert "F7 closes" in desk.text()
        await desk.pilot.press("f7")
        await open_screen(desk, "history")
        assert "z closes" in desk.text()
        await desk.pilot.press("z")
        await desk.pilot.pause()
        assert not isinstance(desk.app.screen, ModalScreen)


async def test_help_groups_the_keys_of_all_screens(tmp_path: Path) -> None:
    async with desk_with(tmp_path, (100, 200), {"picker.download": "b"}) as desk:
        await open_screen(desk, "help")
        text = " ".join(desk.text().replace("│", " ").split())
        assert text.index("everywhere") < text.index("in the model picker") < text.index("in the plan")
        picker = text[text.index("in the model picker") : text.index("in the endpoint's panel")]
        assert "b Fetch it without loading it" in picker
        assert "One layer more streams from disk" in text


@pytest.mark.parametrize("size", [(80, 24), (60, 16)])
@pytest.mark.parametrize("name", SCREENS)
async def test_no_key_is_cut_off(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    async with desk_with(tmp_path, size) as desk:
        await open_screen(desk, name)
        bar = desk.app.screen.query_one(KeyBar)
        region = bar.content_region
        assert bar.hints, "there is something to do"
        assert desk.app.screen.region.contains_region(region)
        lines = desk.text().splitlines()[region.y : region.bottom]
        shown = " ".join(line[region.x : region.right].strip() for line in lines)
        for hint in bar.hints:
            assert f"{keys_text(desk.app.first_key(hint.id))} {hint.does}" in shown
        assert "…" not in shown


@pytest.mark.parametrize("name", SCREENS)
async def test_a_click_on_a_key_does_what_the_key_does(name: str, tmp_path: Path) -> None:
    """Here the last one, which leaves the screen."""
    async with desk_with(tmp_path) as desk:
        await open_screen(desk, name)
        bar = desk.app.screen.query_one(KeyBar)
        last = bar._placed(bar.size.width)[-1]
        await desk.pilot.click(bar, offset=(last.x, last.y + bar.styles.padding.top))
        await desk.until(lambda: not isinstance(desk.app.screen, ModalScreen))


async def test_a_narrow_screen_has_its_keys_below_the_prompt(tmp_path: Path) -> None:
    async with desk_with(tmp_path, (60, 16)) as desk:
        lines = desk.text().splitlines()
        assert lines[-1] == "F1 help · esc stop · ctrl+o model · ctrl+l cluster"
        await desk.pilot.click("#narrow-keys", offset=(24, 0))
        assert isinstance(desk.app.screen, ModelPicker)


async def test_speed_and_endpoint_stand_together_in_80_columns(tmp_path: Path) -> None:
    async with desk_with(tmp_path) as desk:
        desk.app._status.speeds = (0.61, 14.7)
        await desk.pilot.pause()
        assert desk.text().splitlines()[0].endswith("first token 0.61 s  14.7 tok/s")
        desk.app.start_endpoint()
        await desk.until(lambda: isinstance(desk.app.endpoint, On))
        await desk.pilot.pause()
        assert desk.text().splitlines()[0].endswith("14.7 tok/s  API :8080")


async def test_a_plan_is_edited_and_loaded_with_the_mouse_alone(tmp_path: Path) -> None:
    async with desk_with(tmp_path, (120, 40)) as desk:
        await open_screen(desk, "plan")
        before = desk.app.view.plan

        async def click(does: str) -> None:
            bar = desk.app.screen.query_one(KeyBar)
            placed = next(p for p in bar._placed(bar.size.width) if p.hint.does == does)
            await desk.pilot.click(bar, offset=(placed.x, placed.y + bar.styles.padding.top))

        await click("fewer")
        await desk.until(lambda: "by hand" in desk.text())
        await click("loads")
        await desk.until(lambda: not isinstance(desk.app.screen, PlanScreen))
        await desk.until(lambda: isinstance(desk.app.view.model, Ready) and desk.app.view.plan != before)
