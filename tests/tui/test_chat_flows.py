"""What a person does with conversations: keep, find, edit, compare, copy, configure."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList, Static, TabbedContent

from dnet_core.types.generation import Message, Role
from dnet_tui import personal_app
from dnet_tui.chat import Finished, Queued, Reading, Stopped
from dnet_tui.clipboard import copy_text, uses_pbcopy
from dnet_tui.history import ChatSummary, History, SavedChat
from dnet_tui.personal_app import Personal, PersonalApp
from dnet_tui.preferences import Preferences, load_preferences
from dnet_tui.screens.history import HistoryScreen
from dnet_tui.screens.settings import PressScreen, SettingsScreen
from dnet_tui.widgets.chat_log import NUM_RENDERED, ChatLog
from tests.fake_coordinator import Answer, FakeCoordinator, words
from tests.tui.conftest import MODEL, Desk, OpenDesk

CODE = Answer(("First:\n\n```python\n", "a = 1\n", "```\n\nthen\n\n```sh\n", "ls -l\nls\n", "```\n"))
THOUGHTFUL = Answer(words("It is **Paris**."), thoughts=words("The user asks for a capital."))


@pytest.fixture
def kept(tmp_path: Path) -> Callable[..., Personal]:
    """What is kept of a person, in one folder: called again it is the next start."""

    def make(**preferences: object) -> Personal:
        path = tmp_path / "terminal.json"
        found, notices = load_preferences(path)
        return Personal(
            preferences=Preferences.model_validate({**found.model_dump(), **preferences}),
            preferences_path=path,
            notices=notices,
            history=History(tmp_path / "chats.db"),
            exports=tmp_path / "exports",
        )

    return make


Kept = Callable[..., Personal]


async def settled(desk: Desk, holds: Callable[[], bool]) -> None:
    """Let the app work until `holds`."""
    async with asyncio.timeout(10):
        while not holds():
            await desk.pilot.pause()
            await asyncio.sleep(0.005)


def history_of(desk: Desk) -> History:
    history = desk.app._personal.history
    assert history is not None
    return history


async def chats(desk: Desk) -> tuple[ChatSummary, ...]:
    return await history_of(desk).chats()


async def open_history(desk: Desk, num_chats: int) -> OptionList:
    await desk.pilot.press("ctrl+f")
    await settled(desk, lambda: isinstance(desk.app.screen, HistoryScreen))
    shown = desk.app.screen.query_one(OptionList)
    await settled(desk, lambda: shown.option_count == num_chats)
    return shown


async def ask(desk: Desk, *questions: str) -> None:
    for question in questions:
        await desk.say(question)
        await desk.finish()


# --- keeping and finding --------------------------------------------------------------------------------


async def test_a_chat_is_kept_found_and_gone_on_with(open_desk: OpenDesk, kept: Kept) -> None:
    answers = [Answer(words("Red")), Answer(words("Oats"))]
    async with open_desk(FakeCoordinator(answers=answers), personal=kept()) as desk:
        await ask(desk, "A colour?")
        await desk.pilot.press("ctrl+n")
        await ask(desk, "A grain?")
        assert [chat.title for chat in await chats(desk)] == ["A grain?", "A colour?"]
    async with open_desk(personal=kept()) as desk:
        assert desk.turns == ()
        await open_history(desk, 2)
        assert "x deletes" in desk.screen_text()
        await desk.pilot.press("slash", *"red")
        shown = desk.app.screen.query_one(OptionList)
        await settled(desk, lambda: shown.option_count == 1)
        await settled(desk, lambda: "↓ to the list · esc clears the search" in desk.screen_text())
        assert "x deletes" not in desk.screen_text(), "x is typed here"
        await desk.pilot.press("down", "enter")
        await settled(desk, lambda: len(desk.turns) == 1)
        assert desk.turns[0].answer == "Red"
        assert "Red" in desk.screen_text()
        await ask(desk, "Another?")
        assert desk.fake.requests[0].messages == (
            Message(Role.USER, "A colour?"),
            Message(Role.ASSISTANT, "Red"),
            Message(Role.USER, "Another?"),
        )
        found = await chats(desk)
        assert [(chat.title, chat.num_turns) for chat in found] == [("A colour?", 2), ("A grain?", 1)]


async def test_the_mouse_chooses_a_chat_and_opens_it(open_desk: OpenDesk, kept: Kept) -> None:
    answers = [Answer(words("One.")), Answer(words("Two."))]
    async with open_desk(FakeCoordinator(answers=answers), personal=kept()) as desk:
        await ask(desk, "First")
        await desk.pilot.press("ctrl+n")
        await ask(desk, "Second")
        shown = await open_history(desk, 2)
        assert shown.highlighted == 0
        await desk.pilot.click(shown, offset=(4, 1))
        assert shown.highlighted == 1, "so that it can be renamed or deleted"
        assert isinstance(desk.app.screen, HistoryScreen)
        await desk.pilot.click(shown, offset=(4, 1))
        await settled(desk, lambda: bool(desk.turns) and desk.turns[0].prompt == "First")


async def test_a_long_title_leaves_room_for_when_it_was(open_desk: OpenDesk, kept: Kept) -> None:
    async with open_desk(personal=kept()) as desk:
        await ask(desk, "A question so long that it cannot stand in one line with anything else " * 2)
        await open_history(desk, 1)
        line = next(line for line in desk.screen_text().splitlines() if "● A question" in line)
        assert "… " in line
        assert line.rstrip("│ ").endswith("1 turn")


async def test_titles_are_as_wide_as_the_terminal_is_now(open_desk: OpenDesk, kept: Kept) -> None:
    async with open_desk(personal=kept(), size=(100, 24)) as desk:
        for question in ("A short one", "long " * 30):
            await ask(desk, question)
            await desk.pilot.press("ctrl+n")
        shown = await open_history(desk, 2)
        await desk.pilot.press("down", "up", "down")
        for width in (60, 80):
            await desk.pilot.resize_terminal(width, 24)
            await settled(desk, lambda: "… " in desk.screen_text() and "1 turn" in desk.screen_text())
            (line,) = (line for line in desk.screen_text().splitlines() if "long long" in line)
            assert "1 turn" in line
            assert line.rstrip(" │").endswith("1 turn")
            assert shown.highlighted == 1


async def test_rename_delete_bring_back_and_export(open_desk: OpenDesk, kept: Kept, tmp_path: Path) -> None:
    async with open_desk(personal=kept()) as desk:
        await ask(desk, "A question")
        await open_history(desk, 1)
        await desk.pilot.press("r")
        await settled(desk, lambda: desk.app.screen.query("#ask-input").first(Input).has_focus)
        desk.app.screen.query_one("#ask-input", Input).value = "New name"
        await desk.pilot.press("enter")
        await settled(desk, lambda: "New name" in desk.screen_text())
        await desk.pilot.press("e")
        await settled(desk, lambda: "written:" in desk.screen_text())
        assert "The capital of France" in (tmp_path / "exports" / "new-name.md").read_text(encoding="utf-8")
        told = json.loads((tmp_path / "exports" / "new-name.json").read_text(encoding="utf-8"))
        assert told["turns"][0]["prompt"] == "A question"
        await desk.pilot.press("x")
        await settled(desk, lambda: "u brings it back" in desk.screen_text())
        assert await chats(desk) == ()
        await desk.pilot.press("u")
        await settled(desk, lambda: "● New name" in desk.screen_text())
        await desk.pilot.press("x")
        await settled(desk, lambda: "u brings it back" in desk.screen_text())
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert desk.turns == (), "the chat that was open is gone from the screen, too"


async def test_a_partial_answer_is_kept_when_the_app_ends(open_desk: OpenDesk, kept: Kept) -> None:
    async with open_desk(personal=kept()) as desk:
        await desk.say("A question")
        await desk.step(4)
        assert desk.turns[0].answer == "The capital of"
        await desk.pilot.press("ctrl+q")
    async with open_desk(personal=kept(reopen_last_chat=True)) as desk:
        await settled(desk, lambda: bool(desk.turns))
        assert desk.turns[0].answer == "The capital of"
        assert desk.turns[0].phase == Stopped(3)
        await desk.pilot.press("up")
        assert desk.prompt.text == "A question", "prompts are kept, too"


async def test_a_message_that_is_taken_back_leaves_nothing(open_desk: OpenDesk, kept: Kept) -> None:
    async with open_desk(personal=kept(), loaded=False) as desk:
        await desk.say("Early")
        assert len(await chats(desk)) == 1, "what waits is kept"
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert await chats(desk) == ()


async def test_a_file_that_cannot_be_used_is_said_and_the_chat_goes_on(
    open_desk: OpenDesk, kept: Kept, tmp_path: Path
) -> None:
    (tmp_path / "chats.db").mkdir()
    async with open_desk(personal=kept()) as desk:
        await settled(desk, lambda: "cannot be used" in notices(desk))
        await ask(desk, "A question")
        assert isinstance(desk.turns[0].phase, Finished)


def notices(desk: Desk) -> str:
    return "\n".join(notification.message for notification in desk.app._notifications)


# --- editing, versions, thoughts ------------------------------------------------------------------------


async def test_edit_and_resend_asks_from_there_and_keeps_the_old_chat(
    open_desk: OpenDesk, kept: Kept
) -> None:
    answers = [Answer(words(text)) for text in ("one", "two", "three")]
    async with open_desk(FakeCoordinator(answers=answers), personal=kept()) as desk:
        await ask(desk, "First?", "Second?")
        desk.app.query_one(ChatLog).focus()
        await desk.pilot.press("k", "e")
        assert desk.prompt.text == "First?"
        assert "editing question 1" in desk.screen_text()
        await desk.pilot.press(*" Really?", "enter")
        await desk.finish()
        assert [(turn.prompt, turn.answer) for turn in desk.turns] == [("First? Really?", "three")]
        assert [m.content for m in desk.fake.requests[2].messages] == ["First? Really?"]
        found = await chats(desk)
        assert [(chat.title, chat.num_turns) for chat in found] == [("First? Really?", 1), ("First?", 2)]


async def test_esc_leaves_a_question_as_it_was(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await ask(desk, "First?")
        await desk.pilot.press("f8")
        assert desk.prompt.text == "First?"
        await desk.pilot.press("escape")
        assert desk.prompt.text == ""
        assert "editing" not in desk.screen_text()
        await ask(desk, "Second?")
        assert len(desk.turns) == 2


async def test_what_was_being_written_is_there_again_after_an_edit(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await ask(desk, "First?")
        desk.prompt.insert("a draft")
        await desk.pilot.press("f8", "f8", "escape")
        assert desk.prompt.text == "a draft"
        await desk.pilot.press("f8", *" Really?", "enter")
        assert desk.prompt.text == "a draft"
        await desk.finish()
        assert [turn.prompt for turn in desk.turns] == ["First? Really?"]
        await desk.pilot.press("f8", "ctrl+n")
        assert desk.prompt.text == "a draft"


async def test_again_while_a_model_loads_waits_for_it(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await ask(desk, "First?")
        await desk.pilot.press("f5", "ctrl+r")
        assert "sends when ready" in desk.screen_text()
        await desk.load()
        await desk.finish()
        assert len(desk.turns[0].replies) == 2


async def test_regenerate_keeps_the_answers_and_the_chosen_one_counts(
    open_desk: OpenDesk, kept: Kept
) -> None:
    answers = [Answer(words(text)) for text in ("Red", "Green", "Fine")]
    async with open_desk(FakeCoordinator(answers=answers), personal=kept()) as desk:
        await ask(desk, "A colour?")
        await desk.pilot.press("ctrl+r")
        await desk.finish()
        assert "answer 2 of 2" in desk.screen_text()
        assert "Green" in desk.screen_text()
        desk.app.query_one(ChatLog).focus()
        await desk.pilot.press("left")
        await desk.pilot.pause()
        assert "answer 1 of 2" in desk.screen_text()
        assert "Red" in desk.screen_text()
        await desk.pilot.press("left")
        assert desk.turns[0].shown == 0, "there is none before the first"
        desk.prompt.focus()
        await ask(desk, "Why?")
        assert desk.fake.requests[2].messages[1] == Message(Role.ASSISTANT, "Red")
    async with open_desk(personal=kept(reopen_last_chat=True)) as desk:
        await settled(desk, lambda: bool(desk.turns))
        assert [reply.text for reply in desk.turns[0].replies] == ["Red", "Green"]
        assert desk.turns[0].answer == "Red"


async def test_thoughts_are_folded_apart_and_not_sent_again(open_desk: OpenDesk) -> None:
    async with open_desk(FakeCoordinator(answers=[THOUGHTFUL])) as desk:
        await desk.say("The capital?")
        await desk.step(4)
        await settled(desk, lambda: "▸ thinking 0.18 s · 3 tok" in desk.screen_text())
        assert "The user asks" not in desk.screen_text()
        while not desk.fake.ended:
            await desk.step()  # each heard in its time, which is told
        await settled(desk, lambda: "▸ thought 0.45 s · 6 tok" in desk.screen_text())
        assert "It is Paris." in desk.screen_text()
        await desk.pilot.press("ctrl+t")
        await settled(desk, lambda: "▾ thought" in desk.screen_text())
        assert "│ The user asks for a capital." in desk.screen_text()
        await desk.pilot.press("ctrl+t")
        await settled(desk, lambda: "The user asks" not in desk.screen_text())
        y = next(i for i, line in enumerate(desk.screen_text().splitlines()) if "▸ thought" in line)
        await desk.pilot.click(offset=(5, y))
        await settled(desk, lambda: "│ The user asks" in desk.screen_text())  # a click unfolds, too
        desk.prompt.focus()
        await ask(desk, "Sure?")
        assert desk.fake.requests[1].messages[1] == Message(Role.ASSISTANT, "It is **Paris**.")


async def test_older_turns_are_rendered_when_the_view_comes_near(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await ask(desk, "seed")
        total = 2 * NUM_RENDERED + 5
        turn = desk.turns[0]
        desk.app.conversation.turns = ()
        desk.app.conversation.turns = tuple(
            type(turn)(f"question number {i}", turn.replies) for i in range(total)
        )
        await desk.pilot.pause()
        chat = desk.app.query_one(ChatLog)
        assert len(chat._lines) == NUM_RENDERED
        assert f"question number {total - 1}" in desk.screen_text()
        chat.focus()
        await desk.pilot.press("home")
        await desk.pilot.pause()
        assert len(chat._lines) == 2 * NUM_RENDERED
        assert f"question number {total - NUM_RENDERED}" in desk.screen_text(), "the view stays where it is"
        for _ in range(2):
            await desk.pilot.press("home")
            await desk.pilot.pause()
        assert len(chat._lines) == total
        await desk.pilot.press("end")
        await desk.pilot.pause()
        assert f"question number {total - 1}" in desk.screen_text()


# --- how this chat asks ---------------------------------------------------------------------------------


async def test_the_settings_of_a_chat_reach_its_requests_and_stay_with_it(
    open_desk: OpenDesk, kept: Kept
) -> None:
    fake = FakeCoordinator(thinking_switches=("enable_thinking",))
    async with open_desk(fake, personal=kept(), size=(100, 50)) as desk:
        await ask(desk, "First?")
        await desk.pilot.press("f3")
        await desk.pilot.pause()
        screen = desk.app.screen
        for name, text in (("system", "Be brief."), ("temperature", "0"), ("top_k", "40"), ("seed", "7")):
            screen.query_one(f"#field-{name}", Input).value = text
        screen.query_one("#field-temperature", Input).value = "900"
        screen.query_one("#field-thinking").value = "off"  # type: ignore[attr-defined]
        await desk.pilot.pause()
        assert "✗ must be less than or equal to 100" in desk.screen_text()
        screen.query_one("#field-min_p", Input).value = "a lot"
        await desk.pilot.pause()
        assert "✗ must be a number" in desk.screen_text()
        assert not any("None" in str(told.content) for told in desk.app.screen.query(Static))
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert "temperature must be less than or equal to 100: it stays as it was." in notices(desk)
        await ask(desk, "Second?")
        request = desk.fake.requests[1]
        assert request.messages[0] == Message(Role.SYSTEM, "Be brief.")
        assert (request.sampling.temperature, request.sampling.top_k, request.sampling.seed) == (0.0, 40, 7)
        assert request.sampling.min_p == 0.0, "what is not lawful changes nothing"
        assert request.template_kwargs == (("enable_thinking", False),)
        await desk.pilot.press("ctrl+n")
        await ask(desk, "Third?")
        assert desk.fake.requests[2].messages == (Message(Role.USER, "Third?"),), "a new chat is new"
    async with open_desk(personal=kept()) as desk:
        shown = await open_history(desk, 2)
        await desk.pilot.press("j", "enter")
        await settled(desk, lambda: len(desk.turns) == 2)
        assert shown is not None
        assert desk.app.conversation.settings.system == "Be brief."
        assert desk.app.conversation.settings.thinks is False


async def test_a_model_that_cannot_be_told_to_think_has_no_switch(open_desk: OpenDesk) -> None:
    async with open_desk(size=(100, 50)) as desk:
        await desk.pilot.press("f3")
        await desk.pilot.pause()
        assert not desk.app.screen.query("#field-thinking")
        assert "cannot be told whether to think" in desk.screen_text()


# --- settings -------------------------------------------------------------------------------------------


async def open_settings(desk: Desk) -> SettingsScreen:
    await desk.pilot.press("f2")
    await desk.pilot.pause()
    assert isinstance(desk.app.screen, SettingsScreen)
    return desk.app.screen


async def test_settings_hold_at_once_and_after_a_restart(
    open_desk: OpenDesk, kept: Kept, tmp_path: Path
) -> None:
    path = tmp_path / "terminal.json"
    async with open_desk(personal=kept(), size=(100, 50)) as desk:
        screen = await open_settings(desk)
        screen.query_one("#field-theme").value = "light"  # type: ignore[attr-defined]
        await desk.pilot.pause()
        assert desk.app.theme == "textual-light"
        screen.query_one("#field-temperature", Input).value = "0.25"
        screen.query_one("#field-system_prompt", Input).value = "Be kind."
        screen.query_one("#field-max_tokens", Input).value = "0"
        await desk.pilot.pause()
        assert "✗ must be greater than or equal to 1" in desk.screen_text()
        screen.query_one("#field-show_thoughts").focus()
        await desk.pilot.press("space")
        await settled(desk, lambda: path.exists() and '"show_thoughts": true' in path.read_text())
        await desk.pilot.press("escape")
        await ask(desk, "A question")
        request = desk.fake.requests[0]
        assert request.sampling.temperature == 0.25
        assert request.sampling.max_tokens is None
        assert request.messages[0] == Message(Role.SYSTEM, "Be kind.")
    async with open_desk(FakeCoordinator(answers=[THOUGHTFUL]), personal=kept()) as desk:
        assert desk.app.theme == "textual-light"
        await ask(desk, "A question")
        assert "│ The user asks for a capital." in desk.screen_text(), "thoughts are unfolded, as was set"


async def test_a_settings_file_that_is_wrong_is_said_on_the_screen(
    open_desk: OpenDesk, kept: Kept, tmp_path: Path
) -> None:
    (tmp_path / "terminal.json").write_text('{"temperature": 900, "keys": {"chat.new": "ctrl+f"}}')
    async with open_desk(personal=kept()) as desk:
        assert "'temperature' (line 1)" in notices(desk)
        assert "ctrl+f is taken" in notices(desk)
        await desk.pilot.press("ctrl+f")
        await settled(desk, lambda: isinstance(desk.app.screen, HistoryScreen))


async def test_a_form_is_walked_with_arrows(open_desk: OpenDesk, kept: Kept) -> None:
    async with open_desk(personal=kept()) as desk:
        screen = await open_settings(desk)
        assert "↓ next field · ↑ field before · F6 keys · esc closes" in desk.screen_text()
        await desk.pilot.press("down")
        assert desk.app.focused is screen.query_one("#field-show_thoughts")
        await desk.pilot.pause()
        assert "○ off · enter switches" in desk.screen_text()
        await desk.pilot.press("up")
        assert desk.app.focused is screen.query_one("#field-theme")
        await desk.pilot.press("enter", "down", "enter")
        await settled(desk, lambda: desk.app.theme == "textual-light")
        await desk.pilot.press("f6")
        await settled(desk, lambda: "enter changes a key" in desk.screen_text())
        assert desk.app.focused is screen.query_one("#keys-list")
        await desk.pilot.press("down", "f6")
        await settled(desk, lambda: "next field" in desk.screen_text())
        assert desk.app.focused is screen.query_one("#field-theme")


async def test_a_key_is_changed_shown_refused_and_given_back(open_desk: OpenDesk, kept: Kept) -> None:
    async with open_desk(personal=kept(), size=(100, 40)) as desk:
        screen = await open_settings(desk)
        screen.query_one(TabbedContent).active = "tab-keys"
        keys = screen.query_one("#keys-list", OptionList)
        keys.focus()
        await desk.pilot.pause()

        async def give(key: str) -> None:
            keys.highlighted = keys.get_option_index("chat.new")
            await desk.pilot.press("enter")
            await settled(desk, lambda: isinstance(desk.app.screen, PressScreen))
            await desk.pilot.press(key)
            await settled(desk, lambda: desk.app.screen is screen)
            await desk.pilot.pause()

        await give("ctrl+f")
        assert "✗ ctrl+f is taken: Find, open, export earlier chats" in desk.screen_text()
        await give("z")
        assert "z is typed in the prompt" in desk.screen_text()
        await give("f6")
        assert "✗ F6 moves or edits in the prompt" in desk.screen_text()
        await give("ctrl+q")
        assert "✗ ctrl+q is taken: Stop the shards and quit" in desk.screen_text()
        await give("ctrl+p")
        assert "✗ ctrl+p is taken: Find a command by name" in desk.screen_text()
        assert desk.app.preferences.keys == {}
        await give("f10")
        assert desk.app.preferences.keys == {"chat.new": "f10"}
        await desk.pilot.press("escape")
        await ask(desk, "A question")
        await desk.pilot.press("ctrl+n")
        assert len(desk.turns) == 1, "the old key does nothing"
        await desk.pilot.press("f1")
        await desk.pilot.pause()
        line = next(line for line in desk.screen_text().splitlines() if "Start a new conversation" in line)
        assert "F10" in line
        await desk.pilot.press("escape", "f10")
        assert desk.turns == ()
        screen = await open_settings(desk)
        screen.query_one(TabbedContent).active = "tab-keys"
        keys = screen.query_one("#keys-list", OptionList)
        keys.focus()
        await desk.pilot.pause()
        keys.highlighted = keys.get_option_index("chat.new")
        await desk.pilot.press("x")
        assert desk.app.preferences.keys == {}


def test_no_two_keys_clash_as_they_come() -> None:
    app = PersonalApp(lambda: None, personal_app.Timing(), Personal())
    assert app._lawful_keys({}) == {}
    keys = app.all_keys()
    for key in keys:
        for own in key.keys.split(","):
            assert personal_app.clash(keys, {}, key, own) is None, key


# --- copying, quitting, the prompt ----------------------------------------------------------------------


async def test_code_is_copied_the_newest_first(open_desk: OpenDesk) -> None:
    async with open_desk(FakeCoordinator(answers=[CODE])) as desk:
        await desk.pilot.press("ctrl+g")
        assert "No code" in notices(desk)
        await ask(desk, "Code?")
        copied = []
        for _ in range(3):
            await desk.pilot.press("ctrl+g")
            copied.append(desk.app.clipboard)
        assert copied == ["ls -l\nls", "a = 1", "ls -l\nls"]
        assert "2 lines, 1 of 2 from the end" in notices(desk)


async def test_the_code_of_another_chat_is_copied_from_its_newest(open_desk: OpenDesk) -> None:
    async with open_desk(FakeCoordinator(answers=[CODE])) as desk:
        await ask(desk, "A question")
        talk = desk.app.conversation
        talk.copy_code(0)
        assert desk.app.clipboard == "ls -l\nls"
        talk.show(SavedChat(7, "", MODEL, 0.0, talk.settings, desk.turns))
        talk.copy_code(0)
        assert desk.app.clipboard == "ls -l\nls"


async def test_answer_and_chat_are_copied_from_the_palette(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await ask(desk, "The capital?")
        commands = {c.title: c.callback for c in desk.app.get_system_commands(desk.app.screen)}
        commands["Copy answer"]()
        assert desk.app.clipboard == "The capital of France is **Paris**."
        commands["Copy chat"]()
        assert desk.app.clipboard == "> The capital?\n\nThe capital of France is **Paris**."


async def test_on_a_mac_pbcopy_is_used(open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []

    async def copy(text: str, by_terminal: Callable[[str], None]) -> None:
        copied.append(text)

    monkeypatch.setattr(personal_app, "uses_pbcopy", lambda: True)
    monkeypatch.setattr(personal_app, "copy_text", copy)
    async with open_desk() as desk:
        await ask(desk, "The capital?")
        desk.app.conversation.copy_answer()
        await settled(desk, lambda: bool(copied))
        assert copied == ["The capital of France is **Paris**."]


@pytest.mark.parametrize(
    ("platform", "over_ssh", "uses"),
    [("darwin", False, True), ("darwin", True, False), ("linux", False, False)],
)
def test_the_clipboard_is_that_of_the_machine_in_front(platform: str, over_ssh: bool, uses: bool) -> None:
    assert uses_pbcopy(platform, over_ssh=over_ssh) == uses


async def test_what_the_copying_command_does_not_take_the_terminal_is_given(tmp_path: Path) -> None:
    given: list[str] = []
    file = tmp_path / "clipboard"
    await copy_text("Grüße", given.append, ("sh", "-c", f"cat > {file}"))
    assert file.read_text(encoding="utf-8") == "Grüße"
    assert given == []
    for command in (("false",), ("no-such-command",)):
        await copy_text("again", given.append, command)
    assert given == ["again", "again"]


async def test_over_ssh_the_terminal_is_told_to_copy(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await ask(desk, "The capital?")
        written: list[str] = []
        desk.app._driver.write = written.append  # type: ignore[union-attr,method-assign]
        desk.app.conversation.copy_answer()
        text = base64.b64encode(b"The capital of France is **Paris**.").decode()
        assert f"\x1b]52;c;{text}\a" in "".join(written)


async def test_ctrl_c_copies_a_selection_and_twice_quits(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.pilot.press(*"abc", "shift+left", "ctrl+c")
        assert desk.app.clipboard == "c"
        await desk.pilot.press("end", "ctrl+c")
        assert "ctrl+c again quits." in notices(desk)
        assert desk.app._exit is False
        await desk.pilot.press("ctrl+c")
        assert desk.app._exit is True


async def test_quitting_asks_once_when_something_would_stop(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_desk() as desk:
        monkeypatch.setattr(desk.app, "what_stops", lambda: ("the endpoint serves 2 requests",))
        await desk.pilot.press("ctrl+q")
        await desk.pilot.pause()
        assert "the endpoint serves 2 requests" in desk.screen_text()
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert desk.app._exit is False
        await desk.pilot.press("ctrl+q", "ctrl+q")
        assert desk.app._exit is True


async def test_a_large_paste_is_one_message(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        text = "\n".join(f"line {i} " + "x" * 200 for i in range(2000))
        desk.prompt.insert(text)
        await desk.pilot.press("enter")
        await desk.pilot.pause()
        assert desk.turns[0].prompt == text
        assert isinstance(desk.turns[0].phase, Reading | Queued)


async def test_ctrl_c_and_ctrl_q_hold_over_every_screen(open_desk: OpenDesk, kept: Kept) -> None:
    async with open_desk(personal=kept()) as desk:
        await desk.pilot.press("ctrl+o")
        await desk.pilot.press("slash", *"llama", "shift+home", "ctrl+c")
        assert desk.app.clipboard == "llama"
        await desk.pilot.press("ctrl+c")
        assert desk.app._exit is False, "something is selected: that is copied"
        await desk.pilot.press("escape", "ctrl+c")
        assert "ctrl+c again quits" in notices(desk)
        await desk.pilot.press("ctrl+q")
        assert desk.app._exit is True


async def test_end_in_an_empty_prompt_goes_to_the_newest_turn(open_desk: OpenDesk) -> None:
    long = Answer(tuple(f"line {i}\n\n" for i in range(60)))
    async with open_desk(FakeCoordinator(answers=[long])) as desk:
        await ask(desk, "A question")
        chat = desk.app.query_one(ChatLog)
        await desk.pilot.press("pageup", "pageup")
        assert chat.scroll_y < chat.max_scroll_y
        await desk.pilot.press("end")
        await desk.pilot.pause()
        assert chat.scroll_y == chat.max_scroll_y


async def test_what_was_open_after_an_answer_is_collected_after_a_later_one(open_desk: OpenDesk) -> None:
    class Knot:
        def __init__(self) -> None:
            self.itself = self

    async with open_desk() as desk:
        desk.app._timing = replace(desk.app._timing, sets_aside=True)
        knot = Knot()
        is_there = weakref.ref(knot)
        gc.freeze()
        del knot
        try:
            await desk.say("A question")
            await desk.pilot.press("f1")
            await desk.finish()
            assert is_there() is not None, "not while a screen is open, which would be set aside, too"
            await desk.pilot.press("escape")
            await ask(desk, "Another")
            for _ in range(400):  # it comes after the screen is drawn
                if is_there() is None:
                    return
                await asyncio.sleep(0.05)
            raise AssertionError("it is never collected")
        finally:
            gc.unfreeze()
