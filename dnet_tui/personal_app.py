"""The half of the application that is about its person: conversation, history, settings, keys, copying.

The other half (`dnet_tui.app`) is about the cluster; it says what can answer and what quitting would stop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.events import Click, DescendantFocus
from textual.screen import ModalScreen
from textual.signal import Signal
from textual.widgets import Input, TextArea

from dnet_tui.chat import ChatSettings
from dnet_tui.clipboard import copy_text, uses_pbcopy
from dnet_tui.conversation import Conversation, Ring
from dnet_tui.history import ChatSummary, History, HistoryError
from dnet_tui.keys import EVERYWHERE, Key, Owner, clash, key_of, key_text, keys_now, own_bindings
from dnet_tui.pace import Timing
from dnet_tui.preferences import THEMES, Preferences, save_preferences
from dnet_tui.screens.ask import AskScreen
from dnet_tui.screens.chat_settings import ChatSettingsScreen
from dnet_tui.screens.confirm import ConfirmScreen
from dnet_tui.screens.help import HelpScreen
from dnet_tui.screens.history import HistoryResult, HistoryScreen
from dnet_tui.screens.settings import PressScreen, SettingsScreen
from dnet_tui.widgets.chat_log import ChatLog
from dnet_tui.widgets.form import Choice, Form, Toggle
from dnet_tui.widgets.key_bar import KeyBar
from dnet_tui.widgets.prompt import Prompt

_TWICE_S = 2.0


def _as_they_are(settings: ChatSettings) -> ChatSettings:
    return settings


@dataclass(frozen=True, slots=True)
class Personal:
    """What is kept of the person between two starts. The default keeps nothing."""

    preferences: Preferences = field(default_factory=Preferences)
    preferences_path: Path | None = None
    notices: tuple[str, ...] = ()
    """What is to be said at the start, about the settings' file."""
    was_killed: bool = False
    """Whether the app did not end by itself the last time."""
    override: Callable[[ChatSettings], ChatSettings] = _as_they_are
    """Puts what the command line says over the settings of new chats."""
    history: History | None = None
    exports: Path = field(default_factory=Path.home)
    """Where exports go if the settings do not say."""


PERSONAL_BINDINGS: list[BindingType] = [
    Binding("escape", "escape", "Stop", id="chat.stop",
            tooltip="Stop; take a waiting message back; to the prompt"),
    Binding("ctrl+n", "new_chat", "New", id="chat.new", tooltip="Start a new conversation"),
    Binding("ctrl+f", "history", "History", id="chat.history", tooltip="Find, open, export earlier chats"),
    Binding("ctrl+r", "regenerate", "Again", id="chat.again",
            tooltip="Answer the last question again"),
    Binding("f8", "edit", "Edit", id="chat.edit", tooltip="Edit the last question and ask again"),
    Binding("ctrl+t", "thoughts", "Thoughts", id="chat.thoughts",
            tooltip="Show or hide what the model thought"),
    Binding("ctrl+g", "copy_code", "Copy code", id="chat.copy_code",
            tooltip="Copy the newest code; again: the one before"),
    Binding("f3", "chat_settings", "This chat", id="chat.settings",
            tooltip="This chat: system prompt, thinking, sampling"),
    Binding("f2", "settings", "Settings", id="app.settings",
            tooltip="Settings, themes and keys"),
    Binding("f1", "help", "Help", id="app.help", tooltip="Show every key"),
    Binding("ctrl+c", "copy_or_quit", "Copy", id="app.copy", priority=True,
            tooltip="Copy what is selected; twice: quit"),
]  # fmt: skip


class PersonalApp(App[None], inherit_bindings=False):
    """Holds the conversation, which its subclass puts on the screen."""

    BINDINGS: ClassVar[list[BindingType]] = PERSONAL_BINDINGS
    FIXED_KEYS: ClassVar[tuple[Key, ...]] = (
        Key("app.palette", EVERYWHERE, "Find a command by name", "ctrl+p", fixed=True, goes_first=True),
        Key(
            "focus.next",
            EVERYWHERE,
            "To the next part of the screen, or the one before",
            "tab,shift+tab",
            fixed=True,
        ),
        Key("prompt.send", "in the prompt", "Send", "enter", fixed=True),
        Key("prompt.recall", "in the prompt", "Previous message (in an empty prompt)", "up", fixed=True),
    )

    def __init__(self, ring: Callable[[], Ring | None], timing: Timing, personal: Personal) -> None:
        super().__init__()
        self._personal = personal
        self.preferences = personal.preferences
        self._timing = timing
        if not timing.animates:
            self.animation_level = "none"
        self.keys_changed = Signal[None](self, "keys changed")
        self._pressed_s: float | None = None  # when ctrl+c was pressed last, for nothing
        self.help_notes = ""
        settings = personal.override(personal.preferences.chat)
        self.conversation = Conversation(ring, settings, timing, personal.history)

    # --- what the subclass says -------------------------------------------------------------------------

    def key_owners(self) -> Iterable[Owner]:
        """The parts of the screen with keys of their own, each with what people call it."""
        yield Owner(EVERYWHERE, PersonalApp)
        yield Owner("in the prompt", Prompt, is_written_in=True)
        yield Owner("in the chat (tab goes there)", ChatLog)
        yield Owner("in the history", HistoryScreen, is_over=True)
        yield Owner("in the settings", SettingsScreen, is_over=True)
        yield Owner("in the settings of a chat", ChatSettingsScreen, is_over=True)
        yield Owner("in a form", Form, is_over=True)
        yield Owner("on a switch of the settings", Toggle, is_over=True)
        yield Owner("on a choice of the settings", Choice, is_over=True)
        yield Owner("in a line to write", AskScreen, is_over=True, is_written_in=True)
        yield Owner("in a question", ConfirmScreen, is_over=True)
        yield Owner("in this help", HelpScreen, is_over=True)

    def what_stops(self) -> tuple[str, ...]:
        """What quitting now would stop or lose, a sentence each; empty: quit without asking."""
        return ()

    # --- start and end ----------------------------------------------------------------------------------

    def start_personal(self) -> None:
        """Apply the settings and open the history. Called when the screen is mounted."""
        self._apply(self.preferences)
        for notice in self._personal.notices:
            self.notify(notice, title="Settings", severity="warning", timeout=20, markup=False)
        if self._personal.history is not None:
            self._open_history(self._personal.history)

    async def stop_personal(self) -> None:
        """Return when everything that was said is saved."""
        if self._personal.history is not None:
            self.conversation.save_unfinished()
            await self._personal.history.close()

    @work(exclusive=True, group="history")
    async def _open_history(self, history: History) -> None:
        history.on_problem = partial(self._tell_history, severity="error")
        try:
            message = await history.open()
            self.conversation.prompt.recall_from(await history.prompts())
            if message is not None:
                self._tell_history(message)
            if self._personal.was_killed:
                self._tell_recovered(await history.chats(limit=1))
            newest = await history.newest() if self.preferences.reopen_last_chat else None
            if newest is not None and not self.conversation.turns:
                self.conversation.show(await history.read(newest))
        except HistoryError as error:
            self._tell_history(f"{error}. Chats are not saved.", severity="error")

    def _tell_recovered(self, newest: tuple[ChatSummary, ...]) -> None:
        """Say what is left of a session that was killed."""
        key = key_text(self, "chat.history")
        kept = f" '{newest[0].title}' is kept as far as it was written: {key} opens it." if newest else ""
        self._tell_history(f"dnet-tui was killed the last time.{kept}")

    def _tell_history(self, message: str, severity: str = "warning") -> None:
        is_error = severity == "error"
        self.notify(
            message, title="History", severity="error" if is_error else "warning", timeout=20, markup=False
        )

    @on(DescendantFocus)
    def _calm_cursor(self, event: DescendantFocus) -> None:
        """Cursors blink only where something may be drawn by itself, those of Textual's palette, too."""
        if isinstance(event.widget, Input | TextArea):
            event.widget.cursor_blink = self._timing.blink

    # --- settings ---------------------------------------------------------------------------------------

    def _apply(self, preferences: Preferences) -> None:
        keys = self._lawful_keys(preferences.keys)
        self.preferences = preferences.model_copy(update={"keys": keys})
        self.theme = THEMES[preferences.theme]
        self.set_keymap(keys)
        self.keys_changed.publish(None)
        self.conversation.unfolds = preferences.show_thoughts
        self.conversation.take_defaults(self._personal.override(preferences.chat))

    def _lawful_keys(self, changed: dict[str, str]) -> dict[str, str]:
        """`changed` without keys that clash, which a file can hold; says which they are."""
        keys, lawful = self.all_keys(), dict(changed)
        for key in keys:
            if key.id not in lawful:
                continue
            problems = [clash(keys, lawful, key, new) for new in lawful[key.id].split(",")]
            problem = next((p for p in problems if p is not None), None)
            if problem is not None:
                del lawful[key.id]
                self.notify(
                    f"'{key.title}' keeps its own key: {problem}",
                    title="Keys", severity="warning", timeout=20, markup=False,
                )  # fmt: skip
        return lawful

    @on(SettingsScreen.Changed)
    def _take_preferences(self, message: SettingsScreen.Changed) -> None:
        self.change(message.preferences)

    def change(self, preferences: Preferences) -> None:
        """Let `preferences` hold from now on, and keep them."""
        if preferences == self.preferences:
            return
        self._apply(preferences)
        if self._personal.preferences_path is not None:
            self._keep(self._personal.preferences_path, preferences)

    @work(exclusive=True, group="preferences")
    async def _keep(self, path: Path, preferences: Preferences) -> None:
        try:
            await asyncio.to_thread(save_preferences, path, preferences)
        except OSError as error:
            self.notify(f"not saved: {error}", title="Settings", severity="error", markup=False)

    # --- keys -------------------------------------------------------------------------------------------

    def all_keys(self) -> list[Key]:
        """Everything that keys do, with the keys that this program comes with."""
        keys = list(self.FIXED_KEYS)
        for owner in self.key_owners():
            keys += [key_of(binding, owner) for binding in own_bindings(owner.kind)]
        scopes = list(dict.fromkeys(key.scope for key in keys))
        return sorted(keys, key=lambda key: (key.is_over, scopes.index(key.scope)))

    def first_key(self, binding_id: str) -> str:
        """The first of the keys that do it now."""
        return keys_now(self._own_keys[binding_id], self.preferences.keys).split(",")[0]

    @cached_property
    def _own_keys(self) -> dict[str, Key]:
        return {key.id: key for key in self.all_keys()}

    async def on_click(self, event: Click) -> None:
        """A click beside what lies over the screen leaves it; the second one of a double click does not."""
        over = self.screen
        is_first = isinstance(over, ModalScreen) and event.widget is over and event.chain == 1
        if is_first and over.get_widget_at(*event.screen_offset)[0] is over:
            for bar in over.query(KeyBar):
                await bar.leave()

    def action_help(self) -> None:
        changed = self.preferences.keys
        groups: dict[str, list[tuple[str, str]]] = {}
        for key in self.all_keys():
            groups.setdefault(key.scope, []).append((keys_now(key, changed), key.title))
        self.push_screen(HelpScreen(groups, self.help_notes))

    def action_settings(self) -> None:
        path = self._personal.preferences_path
        note = f"kept in {path}" if path is not None else "kept until you quit"
        self.push_screen(SettingsScreen(self.preferences, self.all_keys(), note))

    def action_escape(self) -> None:
        self.conversation.escape()

    def action_new_chat(self) -> None:
        self.conversation.new()

    def action_regenerate(self) -> None:
        self.conversation.regenerate()

    def action_edit(self) -> None:
        self.conversation.edit_pointed()

    def action_thoughts(self) -> None:
        shows = self.conversation.unfolds = not self.conversation.unfolds
        if not any(turn.reply.thought for turn in self.conversation.turns):
            self.notify(
                f"No answer here has thoughts; where one has, they are {'shown' if shows else 'folded'}."
            )

    def action_copy_code(self) -> None:
        self.conversation.copy_code()

    def action_chat_settings(self) -> None:
        model = self.conversation.model
        screen = ChatSettingsScreen(
            self.conversation.settings,
            model.recommended if model is not None else None,
            can_think=model is None or bool(model.thinking_switches),
        )
        self.push_screen(screen, self._configure)

    def _configure(self, settings: ChatSettings | None) -> None:
        if settings is not None:
            self.conversation.configure(settings)

    def action_history(self) -> None:
        if self._personal.history is None:
            self.notify("Chats are not kept here.", severity="warning")
            return
        told = self.preferences.export_folder
        folder = Path(told).expanduser() if told else self._personal.exports
        now_s = self._timing.now().timestamp()
        screen = HistoryScreen(self._personal.history, self.conversation.number, folder, now_s)
        self.clear_notifications()  # one says where the last chat is, and would lie over it
        self.push_screen(screen, self._after_history)

    def _after_history(self, result: HistoryResult | None) -> None:
        if result is None:
            return
        if self.conversation.number in result.deleted:
            self.conversation.new()
        if result.opened is not None and result.opened != self.conversation.number:
            self._open_chat(result.opened)

    @work(exclusive=True, group="open chat")
    async def _open_chat(self, chat: int) -> None:
        assert self._personal.history is not None, "it was chosen there"
        try:
            self.conversation.show(await self._personal.history.read(chat))
        except HistoryError as error:
            self._tell_history(str(error), severity="error")

    # --- copying and quitting ---------------------------------------------------------------------------

    def copy_to_clipboard(self, text: str) -> None:
        """Copy `text`: on the Mac in front of you with pbcopy, else through the terminal."""
        if uses_pbcopy():
            self._copy_by_command(text)
        else:
            super().copy_to_clipboard(text)

    @work(group="copy")
    async def _copy_by_command(self, text: str) -> None:
        await copy_text(text, super().copy_to_clipboard)

    def action_copy_or_quit(self) -> None:
        """Copy what is selected; with nothing selected quit when pressed twice."""
        now_s = self._timing.clock()
        if self._selected:
            self.copy_selection()
        elif self._pressed_s is not None and now_s - self._pressed_s <= _TWICE_S:
            self.exit()
        else:
            self._pressed_s = now_s
            self.notify(f"{key_text(self, 'app.copy')} again quits.", timeout=_TWICE_S)

    @property
    def _selected(self) -> str:
        written = self.focused.selected_text if isinstance(self.focused, TextArea | Input) else ""
        return written or self.screen.get_selected_text() or ""

    def copy_selection(self) -> None:
        if self._selected:
            self.copy_to_clipboard(self._selected)
        self.notify("Copied." if self._selected else "Nothing is selected.")

    async def action_quit(self) -> None:
        """Quit, asking once when something would stop; asked, this says yes."""
        reasons = self.what_stops()
        if isinstance(self.screen, ConfirmScreen):
            self.screen.action_answer(answer=True)
        elif reasons:
            self.push_screen(ConfirmScreen("Quit?", reasons), self._quit)
        else:
            self.exit()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A key that is pressed to be given to something does nothing else."""
        top = self.screen_stack[-1] if self.screen_stack else None
        return not (action in ("quit", "copy_or_quit", "command_palette") and isinstance(top, PressScreen))

    def _quit(self, sure: bool | None) -> None:
        if sure:
            self.exit()

    # --- palette ----------------------------------------------------------------------------------------

    def commands_of(self, bindings: Iterable[BindingType]) -> Iterable[SystemCommand]:
        """What these bindings do, each with its key."""
        for binding in bindings:
            assert isinstance(binding, Binding), "all are written out"
            assert binding.id is not None, "every binding has an id"
            is_quitting = binding.action == "copy_or_quit"  # when nothing is selected: by its key only
            run = self.copy_selection if is_quitting else partial(self.run_action, binding.action)
            yield SystemCommand(binding.description, f"{key_text(self, binding.id)} · {binding.tooltip}", run)

    def personal_commands(self) -> Iterable[SystemCommand]:
        """What the palette offers of this half."""
        yield from self.commands_of(PERSONAL_BINDINGS)
        yield SystemCommand("Copy answer", "The newest one", self.conversation.copy_answer)
        yield SystemCommand("Copy chat", "All of it, as Markdown", self.conversation.copy_chat)
        for theme in THEMES:
            choose = partial(self._choose_theme, theme)
            yield SystemCommand(f"Theme: {theme}", "Change the colours, and keep them", choose)

    def _choose_theme(self, theme: str) -> None:
        self.change(Preferences.model_validate({**self.preferences.model_dump(), "theme": theme}))
