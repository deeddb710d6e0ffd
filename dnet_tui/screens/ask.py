"""One line to write, over whatever is on the screen."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input


class AskScreen(ModalScreen[str | None]):
    """Asks for a line of text; enter gives it, esc gives None. An empty line is not taken."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel", id="ask.cancel")]

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title_text = title
        self._text = text

    def compose(self) -> ComposeResult:
        with Vertical(id="ask-box"):
            yield Input(self._text, id="ask-input", compact=True, select_on_focus=False)

    def on_mount(self) -> None:
        box = self.query_one("#ask-box")
        box.border_title = self._title_text
        box.border_subtitle = "enter takes it · esc leaves it"

    @on(Input.Submitted)
    def _take(self, event: Input.Submitted) -> None:
        event.stop()
        if event.value.strip():
            self.dismiss(event.value.strip())
