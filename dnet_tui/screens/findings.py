"""ctrl+p > Doctor: what usually goes wrong, looked at in the background; and ctrl+p > Open log: its tail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from rich.table import Table
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Log, Static

from dnet_tui.look import fg, look_of
from dnet_tui.widgets.key_bar import Hint, KeyBar

_TAIL_BYTES = 200_000
_FOLLOW_S = 1.0
_SIGNS = {"good": "✓", "warning": "!", "broken": "✗"}


class Finding(Protocol):
    @property
    def check(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def advice(self) -> str | None: ...


Examine = Callable[[], Awaitable[Sequence[Finding]]]


class DoctorScreen(ModalScreen[None]):
    """Runs `examine` once; closing it stops the examination."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss", "Close", id="doctor.close"),
        Binding("r", "again", "Look again", id="doctor.again"),
    ]

    def __init__(self, examine: Examine) -> None:
        super().__init__()
        self._examine = examine
        self._text = Static(id="doctor-text", markup=False)

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="doctor-box"):
            yield self._text
            yield KeyBar(Hint("doctor.again", "looks again"), Hint("doctor.close", "closes"))

    def on_mount(self) -> None:
        box = self.query_one("#doctor-box")
        box.border_title = "Doctor"
        box.focus()
        self.action_again()

    def action_again(self) -> None:
        self._text.update("looking at this machine, its network and the other devices …")
        self._look()

    @work(exclusive=True, group="doctor")
    async def _look(self) -> None:
        findings = await self._examine()
        look = look_of(self.app.current_theme, self.app.theme_variables)
        styles = {"good": fg(look.success), "warning": fg(look.warning), "broken": look.bad}
        table = Table.grid(padding=(0, 2, 0, 0))
        for finding in findings:
            head = Text(f"{_SIGNS[finding.level]} {finding.check}", no_wrap=True)
            head.stylize(styles[finding.level], 0, 1)
            head.stylize(look.dim, 2)
            table.add_row(head, Text(finding.text, look.text))
            if finding.advice is not None:
                table.add_row("", Text(f"→ {finding.advice}", look.text))
        self._text.update(table)


class LogScreen(ModalScreen[None]):
    """Shows the end of the file `path`, and what is written to it from now on."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q", "dismiss", "Close", id="log_file.close")]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._read_bytes = 0
        self._log = Log(id="log-file", max_lines=5000)

    def compose(self) -> ComposeResult:
        with Vertical(id="log-box"):
            yield self._log
            yield KeyBar(Hint("log_file.close", "closes"))

    def on_mount(self) -> None:
        self.query_one("#log-box").border_title = str(self._path)
        self._log.focus()
        self._follow()
        self.set_interval(_FOLLOW_S, self._follow)

    @work(exclusive=True, group="log-file")
    async def _follow(self) -> None:
        text = await asyncio.to_thread(self._news)
        if text:
            self._log.write(text)
        elif not self._read_bytes:
            self.query_one("#log-box").border_subtitle = "nothing was written yet"

    def _news(self) -> str:
        """What was written since the last look; a file that became shorter is read anew."""
        try:
            size = self._path.stat().st_size
            start = self._read_bytes if 0 < self._read_bytes <= size else max(0, size - _TAIL_BYTES)
            with self._path.open("rb") as file:
                file.seek(start)
                content = file.read()
        except OSError as error:
            return f"{error}\n" if not self._read_bytes else ""
        self._read_bytes = start + len(content)
        return content.decode(errors="replace")
