"""Where one token spends its time: device after device, each bar where the one before ends.

Token timeline                83.9 ms/token
A ███████████████▒▒                 49.1 ms
B                  ██████░          22.0 ms
C                         ██▒        9.0 ms
"""

from __future__ import annotations

from rich.style import Style
from textual.events import Click

from dnet_tui.figures import DeviceFigures, device_figures
from dnet_tui.look import Look, fg
from dnet_tui.state import prediction_of
from dnet_tui.units import bytes_text, ms_text
from dnet_tui.widgets.device_list import DeviceList
from dnet_tui.widgets.paint import Piece, width_of
from dnet_tui.widgets.panel import Line, Panel

_GLYPHS = "█▒░·"  # compute, disk, network, behind other answers
_NAMES = ("compute", "disk wait", "network", "other answers")


class Timeline(Panel):
    """Paints the mean of the recent laps of `view`; the sum of all bars is the time of a token."""

    DEFAULT_CSS = "Timeline { height: auto; }"

    def lines(self, width: int, room: int, look: Look) -> list[Line]:
        figures = [f for f in device_figures(self.view) if f.assignment is not None]
        measured = [f for f in figures if f.split is not None]
        if not measured:
            return [title("Token timeline", "", width, look), [("no token measured yet", look.dim)]]
        total_s = sum(_parts(f, i) for f in measured for i in range(4))
        lines = [title("Token timeline", f"{ms_text(total_s)} ms/token", width, look)]
        cells = width - 13
        before_s = 0.0
        for f in figures:
            lines.append(_bar(f, before_s, total_s, cells, look))
            before_s += sum(_parts(f, i) for i in range(4))
        lines.append(self._legend(measured, width, look))
        lines += self._comparison(total_s, look)
        return lines

    def _legend(self, measured: list[DeviceFigures], width: int, look: Look) -> Line:
        used = [i for i in range(4) if i < 3 or any(_parts(f, 3) > 1e-4 for f in measured)]
        pieces: Line = []
        for i in used:
            share = sum(_parts(f, i) for f in measured) / sum(
                _parts(f, j) for f in measured for j in range(4)
            )
            piece: Piece = (f"{_GLYPHS[i]} {_NAMES[i]} {share:.0%}", look.dim)
            if width_of(pieces) + len(piece[0]) + 3 <= width:
                pieces += [("   " if pieces else "", Style()), piece]
        return pieces

    def _comparison(self, total_s: float, look: Look) -> list[Line]:
        """The plan's prediction against what is measured; streamed bytes if there are any."""
        lines: list[Line] = []
        prediction = prediction_of(self.view)
        if prediction is not None:
            told = (
                f"predicted {ms_text(prediction.tpot_s)} ms · measured {off_text(total_s, prediction.tpot_s)}"
            )
            lines.append([(told, look.dim)])
        rates = [
            f"{f.letter} {bytes_text(f.split.read_bytes / f.split.read_s)}/s"
            for f in device_figures(self.view)
            if f.split is not None and f.split.read_s > 0
        ]
        if rates:
            lines.append([("from disk  " + " · ".join(rates), look.dim)])
        return lines

    def on_click(self, event: Click) -> None:
        y = event.get_content_offset_capture(self).y
        ring = [f for f in device_figures(self.view) if f.assignment is not None]
        if 1 <= y <= len(ring):
            self.post_message(DeviceList.Opened(ring[y - 1].name))


def _parts(f: DeviceFigures, index: int) -> float:
    s = f.split
    return (s.compute_s, s.disk_s, s.network_s, s.queue_s)[index] if s is not None else 0.0


def _bar(f: DeviceFigures, before_s: float, total_s: float, cells: int, look: Look) -> Line:
    color = look.device(f.index)
    letter: Piece = (f"{f.letter} ", fg(color, bold=True))
    if f.split is None:
        return [letter, ("–", look.dim)]
    at_s = before_s
    edge = min(round(cells * at_s / total_s), cells - 1)
    pieces: Line = [letter, (" " * edge, Style())]
    for index, glyph in enumerate(_GLYPHS):
        at_s += _parts(f, index)
        stop = round(cells * at_s / total_s)
        if index == 0 and stop == edge:  # what a device computes is never invisible
            stop = edge + 1
        if stop > edge:
            pieces.append((glyph * (stop - edge), fg(color)))
            edge = stop
    told = f"{ms_text(f.split.total_s)} ms".rjust(11)
    return [*pieces, (" " * max(0, cells - edge), Style()), (told, look.text)]


def off_text(measured_s: float, predicted_s: float) -> str:
    """How far a measurement is from what was predicted: `+12%`, `as predicted`."""
    off = measured_s / predicted_s - 1
    return f"{off:+.0%}" if abs(off) >= 0.005 else "as predicted"


def title(text: str, right: str, width: int, look: Look) -> Line:
    """The heading of a panel, with a figure at its right edge."""
    gap = " " * max(1, width - len(text) - len(right))
    return [(text, look.text + Style(bold=True)), (gap, Style()), (right, look.dim)]
