"""F1: every key, taken from the bindings themselves, so that it cannot be out of date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from rich.console import Group
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from dnet_tui.keys import keys_text
from dnet_tui.widgets.key_bar import Hint, KeyBar


class HelpScreen(ModalScreen[None]):
    """Lists (keys, what they do) under the name of the part where they hold; esc, F1 or q closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,q", "dismiss", "Close", id="help.close")]

    def __init__(self, groups: Mapping[str, Sequence[tuple[str, str]]], notes: str) -> None:
        super().__init__()
        self._groups = groups
        self._notes = notes

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help-box"):
            yield Static(self._table(), id="help-keys")
            yield Static(self._notes, id="help-notes", markup=False)
            yield KeyBar(Hint("help.close", "closes"))

    def on_mount(self) -> None:
        box = self.query_one("#help-box")
        box.border_title = "Keys"
        box.focus()

    def _table(self) -> Group:
        parts: list[Text | Table] = []
        for title, keys in self._groups.items():
            table = Table.grid(padding=(0, 1))
            table.add_column(no_wrap=True, width=20)
            table.add_column()
            for key, does in keys:
                table.add_row(f"  {keys_text(key)}", does)
            parts += [Text(title, style="bold"), table]
        return Group(*parts)
