"""What a user does without keys: they only write text, everything else is clicked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.command import CommandPalette
from textual.geometry import Offset
from textual.screen import ModalScreen, Screen
from textual.selection import SELECT_ALL
from textual.widgets import OptionList, TabbedContent

from dnet_core.errors import LoadError, PeerLost
from dnet_tui.chat import Failed, Finished, Queued, Stopped
from dnet_tui.screens.chat_settings import ChatSettingsScreen
from dnet_tui.screens.endpoint import EndpointScreen
from dnet_tui.screens.join import JoinScreen
from dnet_tui.screens.models import ModelPicker
from dnet_tui.screens.plan import PlanScreen
from dnet_tui.screens.settings import PressScreen, SettingsScreen
from dnet_tui.serving import Off, On
from dnet_tui.widgets.chat_log import ChatLog
from dnet_tui.widgets.device_list import DeviceList
from dnet_tui.widgets.key_bar import KeyBar
from tests.fake_coordinator import Answer, FakeCoordinator, words
from tests.tui.conftest import Desk, OpenDesk
from tests.tui.test_keys import SCREENS, desk_with, open_screen
from tests.tui.test_models import Table

CODE = "One:\n\n```\na = 1\n```\n\nTwo:\n\n```\nb = 2\nc = 3\n```\n"


async def click(desk: Desk | Table, text: str, *, nth: int = 0) -> None:
    """Click where `text` stands on the screen, for the `nth` time."""
    rows = (desk.screen_text() if isinstance(desk, Desk) else desk.text()).splitlines()
    found = [(y, line.index(text)) for y, line in enumerate(rows) if text in line]
    y, x = found[nth]
    await desk.pilot.click(offset=(x + min(1, len(text) - 1), y))


async def opens(desk: Table, text: str, kind: type[Screen[Any]]) -> None:
    """A click on `text` opens a screen of this kind, which esc leaves."""
    await click(desk, text)
    await desk.until(lambda: isinstance(desk.app.screen, kind))
    await desk.pilot.press("escape")
    await desk.until(lambda: not isinstance(desk.app.screen, ModalScreen))


@pytest.mark.parametrize("size", [(200, 60), (80, 24), (60, 16), (40, 10), (39, 9)])
async def test_a_click_sends_and_another_stops(open_desk: OpenDesk, size: tuple[int, int]) -> None:
    async with open_desk(size=size) as desk:
        assert "⏎ send" not in desk.screen_text()
        await desk.pilot.press("h", "i")
        await click(desk, "⏎ send")
        assert [turn.prompt for turn in desk.turns] == ["hi"]
        await desk.step(3)
        assert desk.prompt.has_focus
        await click(desk, "■ stop")
        assert isinstance(desk.turns[0].phase, Stopped)
        assert "■ stop " not in desk.screen_text()


async def test_a_click_takes_a_waiting_message_back(open_desk: OpenDesk) -> None:
    async with open_desk(loaded=False) as desk:
        await desk.pilot.press("h", "i")
        await click(desk, "⏎ send")
        assert isinstance(desk.turns[0].phase, Queued)
        await click(desk, "■ stop")
        assert desk.turns == ()
        assert desk.prompt.text == "hi"
        assert "⏎ send" in desk.screen_text()


async def test_a_click_marks_a_turn_and_the_prompt_keeps_the_focus(open_desk: OpenDesk) -> None:
    """Whoever writes on after a click writes; letters are the chat's only when somebody went there by key."""
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.finish()
        assert "edits" not in desk.screen_text()
        await click(desk, "Paris")
        assert "edits · copies · answers again" in desk.screen_text()
        await desk.pilot.press("h", "e", "c")
        assert desk.prompt.text == "hec"
        await click(desk, "⏎ send")
        assert "edits ·" not in desk.screen_text(), "it was about the turn before"


async def test_what_can_be_done_with_a_turn_is_clicked(open_desk: OpenDesk) -> None:
    async with open_desk(FakeCoordinator(answers=[Answer(words(CODE)), Answer(words("No."))])) as desk:
        await desk.say("A question")
        await desk.finish()
        await click(desk, "A question")
        for code in ("b = 2\nc = 3", "a = 1", "b = 2\nc = 3"):
            await click(desk, "copies code")
            assert desk.app.clipboard == code
        await click(desk, "copies ·")
        assert desk.app.clipboard.strip() == CODE.strip()
        await click(desk, "edits")
        assert desk.prompt.text == "A question"
        await click(desk, "esc leaves it")
        assert desk.prompt.text == ""
        assert "editing question" not in desk.screen_text()
        await click(desk, "answers again")
        await desk.finish()
        assert desk.turns[0].answer == "No."
        await click(desk, "older")
        assert desk.turns[0].answer.strip() == CODE.strip()


async def test_a_click_tries_again_what_failed(open_desk: OpenDesk) -> None:
    answers = [Answer((), PeerLost("shard-2", "gone")), Answer(words("Yes."))]
    async with open_desk(FakeCoordinator(answers=answers)) as desk:
        await desk.say("A question")
        await desk.finish()
        assert isinstance(desk.turns[0].phase, Failed)
        await click(desk, "tries again")
        await desk.finish()
        assert isinstance(desk.turns[0].phase, Finished)


async def test_a_drag_selects_and_leaves_the_focus_and_marks_nothing(open_desk: OpenDesk) -> None:
    async with open_desk(FakeCoordinator(answers=[Answer(words("One line.  \nAnother line."))])) as desk:
        await desk.say("A question")
        await desk.finish()
        await click(desk, "A question")
        y = next(i for i, line in enumerate(desk.screen_text().splitlines()) if "One line" in line)
        await desk.pilot.mouse_down(offset=(2, y))
        await desk.pilot.hover(offset=(8, y + 1))
        await desk.pilot.mouse_up(offset=(8, y + 1))
        await desk.pilot.press("ctrl+c")
        assert desk.app.clipboard == "One line.\nAnother", "as it was said: without the mark of the turn"
        assert desk.prompt.has_focus


async def test_a_double_click_selects_a_word(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.finish()
        y, line = next((i, x) for i, x in enumerate(desk.screen_text().splitlines()) if "capital" in x)
        chat = desk.app.query_one(ChatLog)
        at = Offset(line.index("capital") + 3, y) - chat.region.offset
        await desk.pilot.click(chat, offset=at, times=2)
        assert desk.app.screen.get_selected_text() == "capital"


async def test_a_double_click_behind_wide_characters_selects_the_word_below_it(open_desk: OpenDesk) -> None:
    async with open_desk(FakeCoordinator(answers=[Answer(words("日本の 首都は the capital city."))])) as desk:
        await desk.say("A question")
        await desk.finish()
        y, line = next((i, x) for i, x in enumerate(desk.screen_text().splitlines()) if "capital" in x)
        chat = desk.app.query_one(ChatLog)
        at = Offset(cell_len(line[: line.index("capital")]), y) - chat.region.offset
        await desk.pilot.click(chat, offset=at, times=2)
        assert desk.app.screen.get_selected_text() == "capital"
        marked = desk.app.screen.get_component_rich_style("screen--selection").bgcolor
        strip = desk.app.screen._compositor.render_strips()[y]
        assert "".join(s.text for s in strip if s.style and s.style.bgcolor == marked) == "capital"


async def test_what_can_be_done_with_a_turn_is_not_copied_with_it(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.finish()
        before = desk.app.query_one(ChatLog).get_selection(SELECT_ALL)
        await click(desk, "Paris")
        assert "edits · copies" in desk.screen_text()
        assert desk.app.query_one(ChatLog).get_selection(SELECT_ALL) == before


async def test_a_click_beside_what_is_open_leaves_it(tmp_path: Path) -> None:
    async with desk_with(tmp_path, (200, 60)) as desk:
        for name in SCREENS:
            if name == "log":  # beside it is nothing
                continue
            await open_screen(desk, name)
            box = desk.app.screen.children[-1]
            await desk.pilot.click(offset=box.region.center)
            assert isinstance(desk.app.screen, ModalScreen), name
            await desk.pilot.click(offset=(1, 58))
            await desk.until(lambda: not isinstance(desk.app.screen, ModalScreen))
            assert desk.app.conversation.prompt.has_focus, name


async def test_a_double_click_opens_a_device_and_leaves_it_open(tmp_path: Path) -> None:
    async with desk_with(tmp_path, (200, 60)) as desk:
        await desk.pilot.click(DeviceList, offset=(3, 2), times=2)
        await desk.until(lambda: isinstance(desk.app.screen, ModalScreen))
        await desk.pilot.pause()
        assert isinstance(desk.app.screen, ModalScreen)


async def test_the_strip_and_the_devices_leave_the_focus_in_the_prompt(tmp_path: Path) -> None:
    async with desk_with(tmp_path, (200, 60)) as desk:
        for selector, at in (("#strip", (40, 0)), ("DeviceList", (3, 2)), ("#activity-lines", (3, 0))):
            await desk.pilot.click(selector, offset=at)
            await desk.pilot.pause()
            if isinstance(desk.app.screen, ModalScreen):
                await click(desk, "esc closes")
                await desk.until(lambda: not isinstance(desk.app.screen, ModalScreen))
            await desk.pilot.press("k")
        assert desk.app.conversation.prompt.text == "kkk"


async def test_the_filter_of_the_log_is_left_for_the_prompt(tmp_path: Path) -> None:
    async with desk_with(tmp_path, (200, 60)) as desk:
        await click(desk, "/ filters")
        await desk.pilot.press("m", "b", "p")
        await desk.until(lambda: "esc shows all" in desk.text())
        await click(desk, "esc shows all")
        await desk.pilot.press("h", "i")
        assert desk.app.conversation.prompt.text == "hi"


async def test_what_is_written_where_it_means_nothing_goes_to_the_prompt(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        desk.app.query_one(ChatLog).focus()
        await desk.pilot.press("H", "i")
        assert desk.prompt.text == "Hi"


async def test_a_double_click_does_not_answer_what_its_first_click_asks(tmp_path: Path) -> None:
    async with desk_with(tmp_path) as desk:
        await open_screen(desk, "models")
        await click(desk, "Qwen3-8B-4bit")
        await desk.until(lambda: "enter loads" in desk.text())
        await desk.pilot.click(desk.app.screen.query_one(KeyBar), offset=(2, 0), times=2)
        assert "enter downloads and loads it" in desk.text()
        await desk.pilot.click(desk.app.screen.query_one(KeyBar), offset=(2, 0))
        await desk.until(lambda: not isinstance(desk.app.screen, ModalScreen))


async def test_a_key_is_chosen_with_the_mouse_and_given_back(tmp_path: Path) -> None:
    async with desk_with(tmp_path, keys={"chat.new": "f6"}) as desk:
        await open_screen(desk, "settings")
        await click(desk, "Keys")
        await desk.until(lambda: desk.app.screen.query_one(TabbedContent).active == "tab-keys")
        shown = desk.app.screen.query_one("#keys-list", OptionList)
        await click(desk, "everywhere")
        await click(desk, "Start a new conversation")
        assert shown.highlighted == shown.get_option_index("chat.new"), "not asked for a key yet"
        await click(desk, "Start a new conversation")
        await desk.until(lambda: isinstance(desk.app.screen, PressScreen))
        await click(desk, "a click leaves it")
        await desk.until(lambda: not isinstance(desk.app.screen, PressScreen))
        await click(desk, "gives it its own back")
        assert desk.app.preferences.keys == {}


async def test_the_parts_of_the_status_line_open_what_they_tell_of(tmp_path: Path) -> None:
    async with desk_with(tmp_path, (120, 24)) as desk:
        desk.app.start_endpoint()
        await desk.until(lambda: "API :8080" in desk.text())
        for text, kind in (
            ("dnet", CommandPalette),
            ("Llama-3", ModelPicker),
            ("API", EndpointScreen),
        ):
            await opens(desk, text, kind)
        await click(desk, "2 devices")
        assert desk.app.screen.has_class("-cluster")
        await desk.pilot.click("#status", offset=(90, 0))
        await desk.pilot.pause()
        assert not isinstance(desk.app.screen, ModalScreen), "nothing stands there"


async def test_what_a_click_would_do_is_underlined(tmp_path: Path) -> None:
    def underlined(desk: Table) -> str:
        strips = desk.app.screen._compositor.render_strips()
        return "".join(s.text for strip in strips for s in strip if s.style and s.style.underline)

    async with desk_with(tmp_path, (200, 60)) as desk:
        await desk.pilot.hover("#status", offset=(10, 0))
        assert underlined(desk) == "●2 devices"
        bar = desk.app.query_one("#keys", KeyBar)
        await desk.pilot.hover(bar, offset=(1, 0))
        assert underlined(desk) == "F1 help"


async def test_a_wide_screen_has_every_command_to_click(tmp_path: Path) -> None:
    async with desk_with(tmp_path, (200, 60)) as desk:
        for text, kind in (
            ("settings", SettingsScreen),
            ("F12 plan", PlanScreen),
            ("more", CommandPalette),
            ("this chat", ChatSettingsScreen),
            ("adds a device", JoinScreen),
        ):
            await opens(desk, text, kind)


async def test_what_is_told_of_a_model_that_cannot_be_loaded_is_clicked(open_desk: OpenDesk) -> None:
    fake = FakeCoordinator(load_error=LoadError("no weights here"))
    async with open_desk(fake, loaded=False) as desk:
        while "tries again" not in desk.screen_text():
            await desk.step()
        await click(desk, "chooses another model")
        await desk.pilot.pause()
        assert isinstance(desk.app.screen, ModelPicker)
        await desk.pilot.press("escape")
        fake.load_error = None
        await click(desk, "tries again")
        await desk.load()
        assert "tries again" not in desk.screen_text()


async def test_what_is_told_over_a_screen_covers_none_of_its_keys(tmp_path: Path) -> None:
    async with desk_with(tmp_path) as desk:
        desk.app._disable_notifications = False  # as `run_test` leaves them
        desk.app.start_endpoint()
        await desk.until(lambda: isinstance(desk.app.endpoint, On))
        desk.app.action_endpoint_panel()
        await desk.until(lambda: "copies curl" in desk.text())
        await click(desk, "copies curl")
        await desk.until(lambda: "Copied: a curl command." in desk.text())
        await click(desk, "switches it off")
        await desk.until(lambda: isinstance(desk.app.endpoint, Off))
