"""One line to write, over whatever is on the screen."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input

from dnet_tui.widgets.key_bar import Hint, KeyBar


class AskScreen(ModalScreen[str | None]):
    """Asks for a line of text; enter gives it, esc gives None. An empty line is not taken."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Take it", id="ask.take", priority=True),
        Binding("escape", "dismiss", "Cancel", id="ask.cancel"),
    ]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title_text = title
        self._text = text

    def compose(self) -> ComposeResult:
        with Vertical(id="ask-box"):
            yield Input(self._text, id="ask-input", compact=True, select_on_focus=False)
            yield KeyBar(Hint("ask.take", "takes it"), Hint("ask.cancel", "leaves it"))

    def on_mount(self) -> None:
        self.query_one("#ask-box").border_title = self._title_text

    def action_take(self) -> None:
        text = self.query_one(Input).value.strip()
        if text:
            self.dismiss(text)
