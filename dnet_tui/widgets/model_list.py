"""The list of models: sections of rows, one of them highlighted; painted, not mounted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from dnet_core.types.models import Fits, ModelOrigin, TooBig
from dnet_tui.catalogue import Row, Section, fit_text
from dnet_tui.look import Look, fg, look_of
from dnet_tui.units import bytes_text
from dnet_tui.widgets.paint import Piece
from dnet_tui.widgets.paint import row as painted
from dnet_tui.work import Transfer

_FIT_CELLS, _SHORT_FIT_CELLS = 33, 25


class ModelList(ScrollView, can_focus=True):
    """Shows `sections`; `chosen` is the id of the highlighted model, None while there is none."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", id="models.up"),
        Binding("down,j", "move(1)", "Down", id="models.down"),
        Binding("pageup", "move(-10)", "Page up", id="models.page_up"),
        Binding("pagedown", "move(10)", "Page down", id="models.page_down"),
        Binding("home,g", "move(-9999)", "First", id="models.first"),
        Binding("end,G", "move(9999)", "Last", id="models.last"),
    ]
    DEFAULT_CSS = "ModelList { height: auto; scrollbar-size-vertical: 1; overflow-x: hidden; }"

    sections: reactive[tuple[Section, ...]] = reactive((), init=False, repaint=False)
    chosen: reactive[str | None] = reactive(None, init=False)
    now_s: reactive[float] = reactive(0.0, init=False)

    @dataclass
    class Picked(Message):
        """A row was clicked twice, or once where it was highlighted already."""

        model: str

    def __init__(self) -> None:
        super().__init__(id="models")
        self.was_moved = False  # by the user: then what is highlighted stays
        self._lines: list[Row | str] = []  # a string is the title of a section

    @property
    def rows(self) -> list[Row]:
        return [line for line in self._lines if isinstance(line, Row)]

    @property
    def row(self) -> Row | None:
        """The highlighted one."""
        return next((row for row in self.rows if row.entry.id == self.chosen), None)

    def watch_sections(self, sections: tuple[Section, ...]) -> None:
        lines: list[Row | str] = []
        for section in sections:
            lines += [*([""] if lines else []), section.title, *section.rows]
        self._lines = lines
        if self.row is None:
            self.chosen = self.rows[0].entry.id if self.rows else None
        self.virtual_size = Size(self.scrollable_content_region.width, len(lines))
        self._show_chosen()
        self.refresh(layout=True)

    def watch_chosen(self) -> None:
        self._show_chosen()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max(1, len(self._lines))

    def on_resize(self, event: Resize) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._lines))
        self._show_chosen()

    def _show_chosen(self) -> None:
        """Keep the highlighted row on the screen, with the title above it where it is the first."""
        for y, line in enumerate(self._lines):
            if isinstance(line, Row) and line.entry.id == self.chosen:
                top = y - 1 if y and isinstance(self._lines[y - 1], str) else y
                self.scroll_to_region(Region(0, top, 1, y - top + 1), animate=False)

    def action_move(self, steps: int) -> None:
        rows = self.rows
        if rows:
            self.was_moved = True
            at = next((i for i, row in enumerate(rows) if row.entry.id == self.chosen), 0)
            self.chosen = rows[max(0, min(len(rows) - 1, at + steps))].entry.id

    def on_click(self, event: Click) -> None:
        y = event.get_content_offset_capture(self).y + self.scroll_offset.y
        line = self._lines[y] if 0 <= y < len(self._lines) else None
        if isinstance(line, Row):
            again = line.entry.id == self.chosen
            self.was_moved = True
            self.chosen = line.entry.id
            if again:
                self.post_message(self.Picked(line.entry.id))

    def render_line(self, y: int) -> Strip:
        look = look_of(self.app.current_theme, self.app.theme_variables)
        width, base = self.scrollable_content_region.width, self.rich_style
        index = y + self.scroll_offset.y
        if index >= len(self._lines):
            return Strip.blank(width, base)
        line = self._lines[index]
        if isinstance(line, str):
            return painted([(line, fg(look.primary))], width, base)
        if line.entry.id == self.chosen:
            base = base + Style(bgcolor=look.raised.rich_color, bold=True, reverse=look.is_ansi or None)
        return painted(self._pieces(line, width, look), width, base)

    def _pieces(self, row: Row, width: int, look: Look) -> list[Piece]:
        wide, narrow = width >= 92, width < 70
        mark, style = _mark(row, look)
        owner, slash, name = row.entry.id.rpartition("/")
        cells = width - 3 - 9 - (_SHORT_FIT_CELLS if narrow else 7 + _FIT_CELLS) - (11 if wide else 0)
        shown = f"{owner}{slash}{name}" if len(row.entry.id) <= cells else name
        shown = shown if len(shown) <= cells else shown[: cells - 1] + "…"
        quantization = row.entry.quantization or "–"
        size = bytes_text(row.size_bytes) if row.size_bytes else "–"
        layers = f"{row.num_layers} layers" if row.num_layers else "–"
        pieces: list[Piece] = [
            (f" {mark} ", style),
            *_name(shown, cells, look),
            ("" if narrow else f"{quantization:>6} ", look.dim),
            (f"{size:>8} ", look.text),
        ]
        if wide:
            pieces.append((f"{layers:>10} ", look.dim))
        return [*pieces, *self._fit(row, look, is_short=narrow)]

    def _fit(self, row: Row, look: Look, *, is_short: bool) -> list[Piece]:
        if row.transfer is not None:
            return self._bar(row.transfer, "", look)
        if row.arrival is not None:
            moving = row.arrival.moving
            if moving is None:
                return [(f"  {row.arrival.step} …", fg(look.accent))]
            return self._bar(moving, " " + row.arrival.verb, look)
        match row.fit:
            case Fits(num_streamed=0):
                style = fg(look.vivid(look.success))
            case Fits():
                style = fg(look.vivid(look.warning))
            case TooBig():
                style = look.bad
            case _:
                style = look.dim
        return [(f"  {fit_text(row.fit, is_short=is_short)}", style)]

    def _bar(self, transfer: Transfer, what: str, look: Look) -> list[Piece]:
        share = transfer.done_bytes / max(1, transfer.total_bytes)
        filled = round(share * 16)
        bar = "━" * filled + "╌" * (16 - filled)
        late = transfer.is_stalled(self.now_s)
        style = look.bad if late else fg(look.accent)
        return [(f"  {bar} {'stalled' if late else f'{share:.0%}{what}'}", style)]


def _name(shown: str, cells: int, look: Look) -> list[Piece]:
    owner, slash, name = shown.rpartition("/")
    return [(owner + slash, look.dim), (name.ljust(cells - len(owner + slash)), look.text)]


def _mark(row: Row, look: Look) -> tuple[str, Style]:
    """Loaded, here, partly here, on its way, locked; nothing for what would have to be fetched."""
    if row.is_loaded:
        return "●", fg(look.success)
    if row.transfer is not None or row.arrival is not None:
        return "↓", fg(look.accent)
    if row.entry.is_here:
        return "✓", fg(look.success)
    if row.entry.origin is ModelOrigin.PARTIAL:
        return "◐", fg(look.warning)
    return ("⊘", look.dim) if row.entry.is_gated else (" ", look.dim)
