"""F2: every setting with what it means, and every key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import Key as KeyEvent
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static, TabbedContent, TabPane
from textual.widgets.option_list import Option

from dnet_tui.keys import Key, clash, keys_now, keys_text
from dnet_tui.preferences import Preferences
from dnet_tui.widgets.form import FORM_HINTS, Form
from dnet_tui.widgets.key_bar import Hint, KeyBar
from dnet_tui.widgets.pick_list import PickList

_CLOSE = Hint("settings.close", "closes")
_HINTS = {
    "tab-settings": (*FORM_HINTS, Hint("settings.tab", "keys"), _CLOSE),
    "tab-keys": (
        Hint("settings.change_key", "changes a key"),
        Hint("settings.reset_key", "gives it its own back"),
        Hint("settings.reset_keys", "resets all"),
        Hint("settings.tab", "settings"),
        _CLOSE,
    ),
}
"""What can be done in each tab."""


class SettingsScreen(ModalScreen[None]):
    """Edits `preferences`; each lawful change is told as `Changed` at once. `keys` are those to remap."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f2", "dismiss", "Close", id="settings.close"),
        Binding("enter", "change_key", "Change a key", id="settings.change_key"),
        Binding("x,delete", "reset_key", "Its own key again", id="settings.reset_key"),
        Binding("ctrl+r", "reset_keys", "All keys as they were", id="settings.reset_keys"),
        Binding(
            "f6",
            "tab",
            "Settings or keys",
            id="settings.tab",
            tooltip="From the settings to the keys, and back",
        ),
    ]

    @dataclass
    class Changed(Message):
        preferences: Preferences

    def __init__(self, preferences: Preferences, keys: Sequence[Key], note: str) -> None:
        """`note` says where the settings are kept."""
        super().__init__()
        self._preferences = preferences
        self._all_keys = keys
        self._keys = [key for key in keys if not key.fixed]
        self._note = note

    def compose(self) -> ComposeResult:
        with Vertical(id="settings-tabs-box"):
            with TabbedContent():
                with TabPane("Settings", id="tab-settings"), VerticalScroll(can_focus=False):
                    yield Form(self._preferences, frozenset({"keys"}))
                    yield Static(self._note, classes="form-hint", markup=False)
                with TabPane("Keys", id="tab-keys"):
                    yield PickList(id="keys-list", compact=True, markup=False)
                    yield Static("", classes="form-hint", id="keys-note", markup=False)
            yield KeyBar(*_HINTS["tab-settings"])

    def on_mount(self) -> None:
        box = self.query_one("#settings-tabs-box")
        box.border_title = "Settings"
        box.border_subtitle = "changes hold at once"
        self.query_one(Form).focus_first()
        self.query_one("#keys-note").display = False

    def on_resize(self) -> None:
        self.call_after_refresh(self._fill_keys)

    @on(TabbedContent.TabActivated)
    def _show_hints(self) -> None:
        self.query_one(KeyBar).hints = _HINTS[self.query_one(TabbedContent).active]

    @on(Form.Changed)
    def _take(self, event: Form.Changed) -> None:
        assert isinstance(event.value, Preferences), "the form was made from some"
        self._set(event.value.model_copy(update={"keys": self._preferences.keys}))

    def action_tab(self) -> None:
        tabs = self.query_one(TabbedContent)
        is_keys = tabs.active == "tab-settings"
        tabs.active = "tab-keys" if is_keys else "tab-settings"
        if is_keys:
            self.query_one("#keys-list").focus()
        else:
            self.query_one(Form).focus_first()

    def _set(self, preferences: Preferences) -> None:
        self._preferences = preferences
        self.post_message(self.Changed(preferences))

    # --- keys -------------------------------------------------------------------------------------------

    def _fill_keys(self) -> None:
        shown = self.query_one("#keys-list", OptionList)
        at = shown.highlighted
        cells = max(30, self.query_one("#settings-tabs-box").content_size.width - 4)
        changed = self._preferences.keys
        options: list[Option] = []
        scope = ""
        for key in self._keys:
            if key.scope != scope:
                scope = key.scope
                options.append(Option(Text(scope, style="dim"), disabled=True))
            mark = "*" if key.id in changed else " "
            line = Text(no_wrap=True)
            line.append(f"{mark}{keys_text(keys_now(key, changed)):<20}", "bold")
            line.append(f" {key.title}")
            line.truncate(cells, overflow="ellipsis")
            options.append(Option(line, id=key.id))
        shown.clear_options()
        shown.add_options(options)
        shown.highlighted = at if at is not None else 1  # the first is a heading

    @property
    def _highlighted(self) -> Key | None:
        """The key that is highlighted, while the keys are shown."""
        shown = self.query_one("#keys-list", OptionList)
        if self.query_one(TabbedContent).active != "tab-keys" or shown.highlighted is None:
            return None
        return self._key(shown.get_option_at_index(shown.highlighted).id)

    def _key(self, key_id: str | None) -> Key:
        return next(key for key in self._keys if key.id == key_id)

    def _say(self, text: str) -> None:
        note = self.query_one("#keys-note", Static)
        note.update(text)
        note.display = bool(text)

    @on(OptionList.OptionSelected, "#keys-list")
    def action_change_key(self) -> None:
        key = self._highlighted
        if key is not None:
            self._change_key(key)

    @work(exclusive=True, group="key")
    async def _change_key(self, key: Key) -> None:
        pressed = await self.app.push_screen_wait(PressScreen(key.title))
        if pressed is None:
            return
        problem = clash(self._all_keys, self._preferences.keys, key, pressed)
        if problem is not None:
            self._say(f"✗ {problem}")
            return
        self._set_keys({**self._preferences.keys, key.id: pressed})

    def action_reset_key(self) -> None:
        key = self._highlighted
        if key is None or key.id not in self._preferences.keys:
            return
        rest = {i: k for i, k in self._preferences.keys.items() if i != key.id}
        for own in key.keys.split(","):
            problem = clash(self._all_keys, rest, key, own)
            if problem is not None:
                self._say(f"✗ {problem}")
                return
        self._set_keys(rest)

    def action_reset_keys(self) -> None:
        self._set_keys({})

    def _set_keys(self, keys: dict[str, str]) -> None:
        self._set(self._preferences.model_copy(update={"keys": keys}))
        self._say("")
        self._fill_keys()


class PressScreen(ModalScreen[str | None]):
    """Waits for the key that shall do `title`; esc or a click leaves it as it is."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title_text = title

    def compose(self) -> ComposeResult:
        with Vertical(id="press-box"):
            yield Static(
                f"Press the new key for\n{self._title_text}\n\nesc or a click leaves it as it is",
                markup=False,
            )

    def on_key(self, event: KeyEvent) -> None:
        event.stop()
        event.prevent_default()
        self.dismiss(None if event.key == "escape" else event.key)

    def on_click(self) -> None:
        self.dismiss(None)
