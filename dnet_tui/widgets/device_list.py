"""The devices: one row each where there is width, a small card each beside the chat."""

from __future__ import annotations

from rich.style import Style
from textual.geometry import Size
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dnet_core.types.devices import PeerSource
from dnet_core.types.ring import Assignment
from dnet_tui.look import Look, fg, look_of
from dnet_tui.state import ClusterView, Device, StageSplit, assignment_of, letters, stage_splits
from dnet_tui.units import layers_text, ms_text
from dnet_tui.widgets.paint import Piece, row, two_sides

_TABLE_WIDTH = 60
"""From this width on devices are rows of a table."""
_CARD_LINES = 6


class DeviceList(Widget):
    """Paints the devices of `view`."""

    DEFAULT_CSS = "DeviceList { height: auto; }"

    view: reactive[ClusterView] = reactive(ClusterView(), init=False, repaint=False)

    def watch_view(self, old: ClusterView, new: ClusterView) -> None:
        self.refresh(layout=_num_shown(old) != _num_shown(new))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        shown = _num_shown(self.view)
        return max(1, shown + 1 if width >= _TABLE_WIDTH else shown * _CARD_LINES)

    def render_line(self, y: int) -> Strip:
        width, base = self.content_size.width, self.rich_style
        look = look_of(self.app.current_theme, self.app.theme_variables)
        named = letters(self.view)
        if not named:
            return row([("no devices yet", look.dim)] if y == 0 else [], width, base)
        table = width >= _TABLE_WIDTH
        if table and y == 0:
            return row([(_heading(width), look.dim)], width, base)
        index, line = (y - 1, 0) if table else divmod(y, _CARD_LINES)
        if index >= len(named):
            return Strip.blank(width, base)
        name = list(named)[index]
        card = _Card(self.view, name, named[name], fg(look.device(index), bold=True), look)
        return row(card.as_row(width), width, base) if table else card.line(line, width, base)


def _num_shown(view: ClusterView) -> int:
    return len(letters(view))


def _heading(width: int) -> str:
    where = f"{'address':<22}" if width >= 100 else ""
    return f"{'device':<18}{'layers':<14}{'compute':>9}{'disk':>7}{'network':>9}  ms/tok {'busy':>5}  {where}"


class _Card:
    """The facts of one device, as one row or as a few lines."""

    def __init__(self, view: ClusterView, name: str, letter: str, style: Style, look: Look) -> None:
        self._name = name
        self._letter = letter
        self._style = style
        self._look = look
        self._device: Device | None = next((d for d in view.devices if d.peer.name == name), None)
        self._assignment: Assignment | None = assignment_of(view, name)
        self._split: StageSplit | None = stage_splits(view).get(name)
        self._longest_s = max((split.total_s for split in stage_splits(view).values()), default=0.0)

    @property
    def _lost(self) -> str | None:
        return self._device.lost if self._device is not None else None

    def as_row(self, width: int) -> list[Piece]:
        style = self._look.bad if self._lost else self._style
        pieces: list[Piece] = [(f"{self._letter} {self._name}"[:17].ljust(18), style)]
        if self._lost:
            return [*pieces, (f"lost: {self._lost}", self._look.bad)]
        pieces.append((self._windows()[:13].ljust(14), self._look.text))
        if self._split is None:
            pieces.append((f"{'–':>9}{'–':>7}{'–':>9}{'–':>8}{'–':>6}", self._look.dim))
        else:
            s = self._split
            times = f"{ms_text(s.compute_s):>9}{ms_text(s.disk_s):>7}{ms_text(s.network_s):>9}"
            times += f"{ms_text(s.total_s):>8}"
            pieces.append((f"{times}{s.busy:>6.0%}", self._look.text))
        if width >= 100:
            pieces.append((f"  {self._where()}", self._look.dim))
        return pieces

    def line(self, line: int, width: int, base: Style) -> Strip:
        """Return one of the card's lines."""
        name: list[Piece] = [(f"{self._letter} {self._name}", self._look.bad if self._lost else self._style)]
        match line:
            case 0:
                busy = [(f"{self._split.busy:.0%} busy", self._look.dim)] if self._split else []
                return two_sides(name, list[Piece](busy), width, base)
            case 1 if self._lost:
                return row([(f"  lost: {self._lost}", self._look.bad)], width, base)
            case 1:
                return row([(f"  {self._layers()}", self._look.text)], width, base)
            case 2:
                return row(self._bar(width - 14), width, base)
            case 3:
                return row([(f"  {self._times()}", self._look.dim)], width, base)
            case 4:
                return row([(f"  {self._where()}", self._look.dim)], width, base)
            case _:
                return Strip.blank(width, base)

    def _windows(self) -> str:
        if self._assignment is None:
            return "not in ring"
        return " ".join(layers_text(w.start, w.stop) for w in self._assignment.windows)

    def _layers(self) -> str:
        if self._assignment is None:
            return "no layers: not in the ring"
        disk = f" + {len(self._assignment.streamed)} from disk" if self._assignment.streamed else ""
        return f"L{self._windows()} · {len(self._assignment.resident)} in memory{disk}"

    def _bar(self, cells: int) -> list[Piece]:
        """Time per token against the slowest device: compute solid, disk ▒, network ░."""
        if self._split is None or not self._longest_s:
            return [("  no token measured yet", self._look.dim)]
        s = self._split
        parts = (s.compute_s, s.compute_s + s.disk_s, s.total_s)
        ends = [round(cells * part / self._longest_s) for part in parts]
        bar = "█" * ends[0] + "▒" * (ends[1] - ends[0]) + "░" * (ends[2] - ends[1])
        return [("  ", Style()), (bar, self._style), (f" {ms_text(s.total_s)} ms/tok", self._look.text)]

    def _times(self) -> str:
        if self._split is None:
            return ""
        s = self._split
        return f"compute {ms_text(s.compute_s)} disk {ms_text(s.disk_s)} net {ms_text(s.network_s)} ms"

    def _where(self) -> str:
        if self._device is None:
            return "not seen"
        peer = self._device.peer
        if peer.source is PeerSource.LOCAL:
            return "this device"
        return f"{peer.target} · found by {peer.source}"
