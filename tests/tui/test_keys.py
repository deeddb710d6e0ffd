"""Keys of every screen: listed, changed, shown where they hold, never cut off, and each a place to click."""

from __future__ import annotations

import ast
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from textual.binding import Binding
from textual.screen import ModalScreen

import dnet_tui
from dnet_core.demo.cluster import DemoCluster
from dnet_core.demo.endpoint import demo_endpoint
from dnet_core.demo.worlds import Macs
from dnet_core.doctor.finding import Finding, Level
from dnet_core.errors import LoadError, PeerLost
from dnet_tui.app import DnetApp
from dnet_tui.history import ChatSummary, History
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
from tests.fake_coordinator import Answer, FakeCoordinator, words
from tests.tui.conftest import OpenDesk
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
            assert clash(keys, {}, key, own) is None, key
            assert clash(keys, {key.id: "f20"}, key, own) is None, f"{key}: it can be given back"


def test_two_keys_of_one_screen_clash_though_both_come_so() -> None:
    """The test above can fail."""
    keys = DnetApp(lambda: DemoCluster(Macs(1)), LLAMA).all_keys()
    pin = next(key for key in keys if key.id == "plan.pin")
    twice = [*keys, replace(pin, id="plan.another", title="Another")]
    assert clash(twice, {}, pin, "p") == "p is taken: Another"
    leaves = next(key for key in keys if key.id == "app.quit")
    twice = [*keys, replace(pin, id="plan.another", keys="ctrl+q", title="Another")]
    assert clash(twice, {}, leaves, "ctrl+q") == "ctrl+q is taken: Another"


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
    assert (
        clash(keys, {}, take, "space") == "space is typed in a line to write: take one with ctrl, or an F key"
    )
    assert clash(keys, {}, take, "home") == "home moves or edits in a line to write: take another"
    assert clash(keys, {}, take, "f6") is None
    cancel = next(key for key in keys if key.id == "ask.cancel")
    assert clash(keys, {}, cancel, "a") == "a is typed in a line to write: take one with ctrl, or an F key"
    download = next(key for key in keys if key.id == "picker.download")
    assert clash(keys, {}, download, "ctrl+p") == "ctrl+p is taken: Find a command by name"


def test_a_key_that_holds_over_all_screens_is_none_of_another_screen() -> None:
    keys = DnetApp(lambda: DemoCluster(Macs(1)), LLAMA).all_keys()
    leaves = next(key for key in keys if key.id == "app.quit")
    problem = clash(keys, {"settings.tab": "f11"}, leaves, "f11")
    assert problem == "F11 is taken: From the settings to the keys, and back"


@pytest.mark.parametrize("of", ["chat.stop", "prompt.newline", "prompt.page_up"])
@pytest.mark.parametrize(
    ("key", "why"),
    [
        *((key, "moves or edits in the prompt: take another") for key in ("f6", "f7", "ctrl+k", "pagedown")),
        ("up", "↑ moves or edits in the prompt: take another"),
        ("enter", "enter is taken: Send"),
        ("tab", "tab is taken: To the next part of the screen, or the one before"),
        *((key, "is typed in the prompt: take one with ctrl, or an F key") for key in ("a", "space", "ä")),
        ("slash", "/ is typed in the prompt: take one with ctrl, or an F key"),
        ("euro_sign", "is typed in the prompt: take one with ctrl, or an F key"),
    ],
)
def test_a_key_that_is_typed_or_edits_in_the_prompt_is_none_for_anything_else(
    of: str, key: str, why: str
) -> None:
    """The prompt would take it, and nothing else would hear it; or the prompt would lose it."""
    keys = DnetApp(lambda: DemoCluster(Macs(1)), LLAMA).all_keys()
    problem = clash(keys, {}, next(each for each in keys if each.id == of), key)
    assert problem is not None
    assert why in problem


def test_a_key_that_the_prompt_hands_on_stays_with_the_app() -> None:
    keys = DnetApp(lambda: DemoCluster(Macs(1)), LLAMA).all_keys()
    copy = next(each for each in keys if each.id == "app.copy")
    assert clash(keys, {}, copy, "ctrl+c") is None


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
        assert "tab, shift+tab To the next part of the screen, or the one before" in text


@pytest.mark.parametrize("size", [(80, 24), (60, 16), (40, 10)])
async def test_no_key_is_cut_off_and_a_click_on_the_last_one_leaves_the_screen(
    size: tuple[int, int], tmp_path: Path
) -> None:
    async with desk_with(tmp_path, size) as desk:
        for name in SCREENS:
            await open_screen(desk, name)
            bar = desk.app.screen.query_one(KeyBar)
            region = bar.content_region
            assert bar.hints, f"{name}: there is something to do"
            assert desk.app.screen.region.contains_region(region), name
            lines = desk.text().splitlines()[region.y : region.bottom]
            shown = " ".join(line[region.x : region.right].strip() for line in lines)
            for hint in bar.hints:
                assert f"{keys_text(desk.app.first_key(hint.id))} {hint.does}" in shown, name
            assert "…" not in shown, name
            last = bar._placed(bar.size.width)[-1]
            await desk.pilot.click(bar, offset=(last.x, last.y + bar.styles.padding.top))
            await desk.until(lambda: not isinstance(desk.app.screen, ModalScreen))


@pytest.mark.parametrize(
    ("width", "keys"),
    [
        (40, "F1 help · esc stop · ctrl+o model"),
        (60, "F1 help · esc stop · ctrl+o model · ctrl+l cluster"),
        (80, "F1 help · esc stop · ctrl+o model · ctrl+l cluster · ctrl+p more · ctrl+q quit"),
        (100, "F1 help · esc stop · ctrl+o model · ctrl+l cluster · ctrl+p more · ctrl+q quit · ctrl+n new"),
    ],
)
async def test_below_the_prompt_stand_the_keys_that_fit(width: int, keys: str, tmp_path: Path) -> None:
    async with desk_with(tmp_path, (width, 16)) as desk:
        assert desk.text().splitlines()[-1] == keys
        await desk.pilot.press("ctrl+l")
        assert desk.text().splitlines()[-1] == keys
        await desk.pilot.click("#keys", offset=(24, 0))
        assert isinstance(desk.app.screen, ModelPicker)


async def test_without_hints_nothing_is_left() -> None:
    await KeyBar().leave()


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


_KEY_NAMED = re.compile(r"\b(?:ctrl|shift|alt)\+\w|\bF\d{1,2}\b|\besc\b|\benter\b|(?<![\w'-])[b-z] [a-z]+s\b")
_FIXED = {"esc or a click leaves it as it is"}
"""What no setting can change: where the next key is the one to take, esc leaves."""


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every string of a module but for docstrings and the keys of bindings."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str()) as told):
                skipped.add(told)
            case ast.Call(func=ast.Name(id="Binding"), args=[key, *_]):
                skipped.add(key)
            case ast.Call(func=ast.Name(id="Key"), args=[_, _, _, key]):
                skipped.add(key)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.lineno, node.value


def test_no_text_names_a_key_by_itself() -> None:
    """A key that the settings have changed is another one: texts ask which it is (`keys.key_text`)."""
    found = [
        f"{path.name}:{line} {text}"
        for path in Path(dnet_tui.__file__).parent.rglob("*.py")
        for line, text in texts(ast.parse(path.read_text(encoding="utf-8")))
        if " " in text and _KEY_NAMED.search(text) and not any(fixed in text for fixed in _FIXED)
    ]
    assert found == []


def test_a_text_that_names_a_key_is_found() -> None:
    """The test above can fail."""
    told = [
        text for _, text in texts(ast.parse('"a docstring: esc"\nsay(f"{n} tok · esc stops", "u brings")'))
    ]
    assert [bool(_KEY_NAMED.search(text)) for text in told] == [True, True]


CHANGED = {
    "chat.stop": "ctrl+b",
    "chat.again": "ctrl+s",
    "model.pick": "f10",
    "prompt.newline": "f11",
    "app.help": "f13",
}


async def test_texts_on_the_screen_follow_a_key_that_is_changed(open_desk: OpenDesk) -> None:
    broken = Answer(words("Half an answer"), PeerLost("shard-2", "gone"))
    async with open_desk(FakeCoordinator(answers=[broken]), loaded=False) as desk:

        async def change(keys: Mapping[str, str]) -> None:
            desk.app.change(Preferences(keys=dict(keys)))
            await desk.pilot.pause()

        await desk.load()
        assert "enter sends · ctrl+j starts a new line · F1 shows every key" in desk.screen_text()
        await change(CHANGED)
        assert "enter sends · F11 starts a new line · F13 shows every key" in desk.screen_text()
        assert "Ask anything · enter sends · F11 new line" in desk.screen_text()
        await desk.say("A question")
        await desk.step(2)
        assert "ctrl+b stops" in desk.screen_text()
        await change({})
        await desk.say("Another")
        assert "esc takes it back" in desk.screen_text()
        assert "esc stops" in desk.screen_text()
        await change(CHANGED)
        assert "ctrl+b takes it back" in desk.screen_text()
        await desk.pilot.press("ctrl+b")
        await desk.pilot.pause()
        assert [turn.prompt for turn in desk.turns] == ["A question"]
        desk.app.conversation.edit(0)
        await desk.pilot.pause()
        assert "editing question 1 · ctrl+b leaves it as it is" in desk.screen_text()
        await change({})
        assert "editing question 1 · esc leaves it as it is" in desk.screen_text()


async def test_a_failure_names_the_keys_that_help_now(open_desk: OpenDesk) -> None:
    fake = FakeCoordinator(load_error=LoadError("the disk is full"))
    async with open_desk(fake, loaded=False) as desk:
        desk.app.change(Preferences(keys=CHANGED))
        await desk.step()
        assert "ctrl+s tries again · F10 chooses another model" in desk.screen_text()
        assert "No model is loaded · F10 chooses one" in desk.screen_text()
        await desk.say("A question")
        await desk.step()
        assert "✗ no answer · ctrl+s tries again" in desk.screen_text()


async def test_a_notice_does_not_lie_over_the_history_that_it_points_to(tmp_path: Path) -> None:
    async with desk_with(tmp_path) as desk:
        desk.app._tell_recovered((ChatSummary(1, "Of France", "tiny", 0.0, 1, None),))
        await desk.until(lambda: len(desk.app._notifications))
        (told,) = desk.app._notifications
        assert "'Of France' is kept as far as it was written: ctrl+f opens it" in told.message
        await desk.pilot.press("ctrl+f")
        assert not desk.app._notifications
