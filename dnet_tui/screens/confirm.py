"""A question before something is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Static

from dnet_tui.widgets.key_bar import Hint, KeyBar


class ConfirmScreen(ModalScreen[bool]):
    """Names what would stop; enter or the key of quitting says yes, esc says no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,y", "answer(True)", "Yes", id="confirm.yes", priority=True),
        Binding("escape,n", "answer(False)", "No", id="confirm.no"),
    ]

    def __init__(self, title: str, reasons: Sequence[str]) -> None:
        super().__init__()
        self._title_text = title
        self._reasons = reasons

    def compose(self) -> ComposeResult:
        with Vertical(id="confirm-box"):
            yield Static("\n".join(f"• {reason}" for reason in self._reasons), markup=False)
            yield KeyBar(Hint("confirm.yes", "quits"), Hint("confirm.no", "stays"))

    def on_mount(self) -> None:
        self.query_one("#confirm-box").border_title = self._title_text

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)
