"""One device in words and bars: as a card, as two lines, as a row of a table.

╭─ C mini ─────────────────────────────╮
│ M4 Pro 20c · 9.2 TFLOPS              │
│ RAM ████████████▏·····   18.1/24 GB  │   used of all; the tick is what models may take
│ L78–89 · 8 in RAM + 4 disk           │
│ → D Ethernet 0.9 ms · disk 5.2 GB/s  │
│ ▂▂▂▃▂▂▂▂▂▂▃▂▂▂▂▂          9.1 ms/tok │   of the slowest device's time, from zero
│ compute 6.4 · disk 2.6 · net 0.1     │
╰──────────────────────────── 12% busy ╯
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.style import Style

from dnet_tui.figures import DeviceFigures
from dnet_tui.look import Look, fg
from dnet_tui.units import (
    bytes_text,
    chip_text,
    flops_text,
    hop_text,
    medium_text,
    ms_text,
    progress_bytes_text,
)
from dnet_tui.widgets.paint import Piece, width_of
from dnet_tui.widgets.panel import Line
from dnet_tui.work import Transfer

UNKNOWN = "–"
_WARN, _FULL = 0.85, 0.95  # of all the machine's memory
_LEVELS = "▁▂▃▄▅▆▇█"
_MEDIUM_SHORT = {"Thunderbolt": "TB", "this machine": "here"}


@dataclass(frozen=True, slots=True)
class Card:
    """What a device is painted from: its figures, and what it is measured against."""

    figures: DeviceFigures
    longest_s: float  # the slowest device's time per token: the height of the bars
    look: Look
    selected: bool = False
    now_s: float = 0.0  # by the clock of what is on its way

    @property
    def color(self) -> Style:
        if self.figures.problem is not None:
            return self.look.bad
        return fg(self.look.device(self.figures.index))

    @property
    def frame(self) -> Style:
        """Of a device that does nothing the frame is quiet."""
        quiet = self.figures.assignment is None and self.figures.problem is None
        return self.look.dim if quiet and not self.selected else self.color

    @property
    def title(self) -> Piece:
        mark = "✗ " if self.figures.problem is not None else ""
        return f"{mark}{self.figures.letter} {self.figures.name}", self.color + Style(bold=True)

    @property
    def mark(self) -> Piece:
        """Before the letter in lists: whether the device is the chosen one."""
        return "▸ " if self.selected else "  ", self.color

    @property
    def busy(self) -> str:
        split = self.figures.split
        return f"{split.busy:.0%} busy" if split is not None else ""

    @property
    def arriving(self) -> tuple[str, Transfer] | None:
        """What is on its way to the device: the model's files, then its layers; None when nothing is."""
        f = self.figures
        if f.fetch is not None:
            return "↓", f.fetch
        return ("loads", f.read) if f.read is not None and f.read.missing else None

    @property
    def arriving_text(self) -> str:
        """`↓ 0.3/4.6 GB · 110 MB/s · 31 s left`, `loads ...`; empty when nothing is on its way."""
        if self.arriving is None:
            return ""
        sign, transfer = self.arriving
        return f"{sign} {transfer.text(max(self.now_s, transfer.moved_s))}"

    @property
    def arriving_share(self) -> str:
        """The same in few letters: `↓ 43%`."""
        if self.arriving is None:
            return ""
        sign, transfer = self.arriving
        return f"{sign} {transfer.done_bytes / max(1, transfer.total_bytes):.0%}"

    @property
    def why(self) -> str:
        """Why the device is not in the ring; that it is not stands beside this."""
        return (self.figures.reason or "").removeprefix("left out: ")

    # --- the lines --------------------------------------------------------------------------------------

    def body(self, width: int, *, tall: bool) -> list[Line]:
        """Five lines, six when `tall`, all that fit `width`."""
        f, look = self.figures, self.look
        if f.problem is not None:
            word = "lost: " if f.is_lost else ""
            had = [] if f.assignment is None else [("had " + f.windows_text, look.dim)]
            lines = [[(line, look.bad)] for line in wrapped(f"{word}{f.problem}", width, 3)]
            return padded([*lines, *([had] if had else [])], 6 if tall else 5)
        if f.assignment is None:
            lines = [self.chip(width), self.memory(width), [("not in the ring", look.dim)]]
            lines += [[(line, look.dim)] for line in wrapped(self.why, width, 3 if tall else 2)]
            return padded(lines, 6 if tall else 5)
        lines = [self.chip(width), self.memory(width), self.layers(width), self.link(width)]
        lines.append(self.history(width))
        if tall:
            lines.append(self.split(width))
        return lines

    def chip(self, width: int) -> Line:
        f, look = self.figures, self.look
        chip = chip_text(f.profile.chip) if f.profile is not None else f"chip {UNKNOWN}"
        flops = f" · {flops_text(f.flops_per_s)}" if f.flops_per_s is not None else ""
        return [(fitted(chip, width - len(flops)), look.text + Style(bold=True)), (flops, look.text)]

    def memory(self, width: int, cells: int | None = None) -> Line:
        """The RAM bar with its figures; without figures the reason why is that nobody has told."""
        f, look = self.figures, self.look
        used, total = f.used_bytes, f.total_bytes
        if used is None or total is None:
            told = UNKNOWN if total is None else f"{UNKNOWN}/{bytes_text(total)}"
            return [("RAM ", look.dim), (told, look.text)]
        figures = progress_bytes_text(used, total)
        share = used / total
        color = fg(look.vivid(look.error)) if share > _FULL else fg(look.warning) if share > _WARN else None
        cells = width - 4 - 14 if cells is None else cells
        bar = meter(cells, share, None if f.budget_bytes is None else f.budget_bytes / total)
        style = color or fg(look.device(f.index))
        pieces: Line = [("RAM ", look.dim)]
        pieces += [(text, style if filled else look.dim) for text, filled in bar]
        warned = " !" if share > _FULL else ""
        pieces.append((f"{warned}{figures}".rjust(width - 4 - cells), color or look.text))
        return pieces

    def layers(self, width: int) -> Line:
        f, look = self.figures, self.look
        assert f.assignment is not None, "only devices of the ring have layers"
        streamed = len(f.assignment.streamed)
        rest = f" · {len(f.assignment.resident)} in RAM"
        disk = f" + {streamed} disk" if streamed else ""
        room = width - len(rest) - len(disk)
        windows = f.windows_text if len(f.windows_text) <= room else f.short_windows_text
        return [
            (windows, self.color + Style(bold=True)),
            (rest, look.text),
            (disk, fg(look.vivid(look.warning))),
        ]

    def link(self, width: int) -> Line:
        """The hop to the next device, and the disk."""
        f, look = self.figures, self.look
        disk = "disk "
        disk += f"{bytes_text(f.profile.disk_read_bytes_per_s)}/s" if f.profile is not None else UNKNOWN
        if f.hop is None:
            return [(disk, look.text)]
        medium = medium_text(f.hop.medium) if f.hop.medium is not None else ""
        trip = hop_text(f.hop.round_trip_s) if f.hop.round_trip_s is not None else UNKNOWN
        for over in (medium, _MEDIUM_SHORT.get(medium, medium), ""):
            text = " ".join(part for part in ("→", f.hop.letter, over, trip) if part)
            if len(text) + 3 + len(disk) <= width:
                break
        return [(text, look.text), (" · ", look.dim), (disk, look.text)]

    def history(self, width: int) -> Line:
        f, look = self.figures, self.look
        if self.arriving is not None:
            return [(fitted(self.arriving_text, width), fg(look.accent))]
        if f.split is None:
            return [("no token measured yet", look.dim)]
        told = f" {ms_text(f.split.total_s)} ms/tok".rjust(14)
        bars = sparks(f.history_s, self.longest_s, width - len(told))
        return [(bars.ljust(width - len(told)), self.color), (told, look.text)]

    def split(self, width: int) -> Line:
        f, look = self.figures, self.look
        if f.split is None:
            return []
        s = f.split
        parts = [("compute", s.compute_s), ("disk", s.disk_s), ("net", s.network_s)]
        text = " · ".join(f"{name} {ms_text(value)}" for name, value in parts)
        return [(fitted(f"{text} ms", width), look.dim)]

    # --- the forms --------------------------------------------------------------------------------------

    def bordered(self, width: int, *, tall: bool) -> list[Line]:
        """A card with a frame in the device's colour; heavy while it is selected."""
        style = self.frame + Style(bold=self.selected)
        left_top, flat, right_top, side, left_low, right_low = "┏━┓┃┗┛" if self.selected else "╭─╮│╰╯"
        title, title_style = self.title
        name = fitted(title, width - 6)
        top: Line = [(f"{left_top}{flat} ", style), (name, title_style)]
        top.append((f" {flat * (width - cell_len(name) - 5)}{right_top}", style))
        busy = f" {self.busy} " if self.busy else ""
        low: Line = [(f"{left_low}{flat * (width - len(busy) - 3)}", style), (busy, self.color)]
        low.append((f"{flat}{right_low}", style))
        middle: list[Line] = []
        for line in self.body(width - 4, tall=tall):
            gap = " " * (width - 4 - width_of(line))
            middle.append([(f"{side} ", style), *line, (f"{gap} {side}", style)])
        return [top, *middle, low]

    def plain(self, width: int, *, tall: bool) -> list[Line]:
        """The same without a frame, for a screen that is not tall enough for frames."""
        return [self.head(width), *([("  ", Style()), *line] for line in self.body(width - 2, tall=tall))]

    def head(self, width: int, right: str | None = None) -> Line:
        right = self.busy if right is None else right
        title, style = self.title
        name = fitted(title, width - 3 - len(right))
        gap = " " * (width - 2 - cell_len(name) - len(right))
        return [self.mark, (name, style), (gap, Style()), (right, self.look.dim)]

    def two_lines(self, width: int) -> list[Line]:
        f, look = self.figures, self.look
        if f.problem is not None:
            word = "lost: " if f.is_lost else ""
            return [self.head(width), [(fitted(f"  {word}{f.problem}", width), look.bad)]]
        if f.assignment is None:
            return [self.head(width, "not in the ring"), [(fitted(f"  {self.why}", width), look.dim)]]
        time = f"{ms_text(f.split.total_s)} ms" if f.split is not None else self.arriving_share or UNKNOWN
        busy = f" {f.split.busy:>4.0%}" if f.split is not None else ""
        streamed = len(f.assignment.streamed)
        disk = f" +{streamed}▒" if streamed else ""
        memory = self.memory(21, 6)
        rest = width - 4 - 21
        windows = fitted(f.short_windows_text, rest - len(disk))
        second: Line = [("  ", Style()), *memory, (" " * (23 - width_of(memory)), Style())]
        second += [(windows, look.text), (disk, fg(look.vivid(look.warning)))]
        return [self.head(width, f"{time:>8}{busy}"), second]

    def narrow_row(self, width: int) -> Line:
        """One line where many devices stand beside the chat."""
        f, look = self.figures, self.look
        mark = self.mark
        title, style = self.title
        name: Piece = (fitted(title, 14).ljust(14), style)
        if f.problem is not None:
            return [mark, name, (fitted(f" lost: {f.problem}", width - 16), look.bad)]
        if f.assignment is None:
            return [mark, name, (" not in the ring", look.dim)]
        time = f"{ms_text(f.split.total_s)} ms" if f.split is not None else self.arriving_share or UNKNOWN
        busy = f"{f.split.busy:.0%}" if f.split is not None else ""
        windows = fitted(f.short_windows_text, width - 32)
        return [mark, name, (f" {windows:<{width - 31}}{time:>9}{busy:>5}", look.text)]


# ---- a table ----

_COLUMNS = (("ms/tok", 8), ("compute", 9), ("disk", 6), ("net", 6), ("busy", 6))


def table_heading(width: int, look: Look) -> Line:
    times = "".join(name.rjust(cells) for name, cells in _COLUMNS)
    chip = "chip".ljust(17) if width >= 100 else ""
    hop = "  next hop" if width >= 118 else ""
    return [(f"  {'device':<14}{chip}{'layers':<14}{'RAM':<13}{times}{hop}", look.dim)]


def table_row(card: Card, width: int) -> Line:
    """One row of the table under `table_heading`."""
    f, look = card.figures, card.look
    title, style = card.title
    pieces: Line = [card.mark, (fitted(title, 13).ljust(14), style)]
    if f.problem is not None:
        word = "lost: " if f.is_lost else ""
        return [*pieces, (fitted(f"{word}{f.problem}", width - 16), look.bad)]
    if width >= 100:
        chip = chip_text(f.profile.chip) if f.profile is not None else UNKNOWN
        pieces.append((fitted(chip, 16).ljust(17), look.text))
    pieces += _table_layers(card, 14)
    pieces += _table_memory(card, 13)
    if card.arriving is not None:
        room = sum(cells for _, cells in _COLUMNS)
        pieces.append((fitted(card.arriving_text, room).rjust(room), fg(look.accent)))
    elif f.split is None:
        dashes = "".join(UNKNOWN.rjust(cells) for _, cells in _COLUMNS)
        pieces.append((dashes, look.dim))
    else:
        s = f.split
        told = (ms_text(s.total_s), ms_text(s.compute_s), ms_text(s.disk_s), ms_text(s.network_s))
        cells = [text.rjust(size) for text, (_, size) in zip((*told, f"{s.busy:.0%}"), _COLUMNS, strict=True)]
        pieces += [(cells[0], look.text + Style(bold=True)), ("".join(cells[1:]), look.text)]
    if width >= 118 and f.hop is not None:
        medium = medium_text(f.hop.medium) if f.hop.medium is not None else UNKNOWN
        trip = hop_text(f.hop.round_trip_s) if f.hop.round_trip_s is not None else UNKNOWN
        pieces.append((f"  → {f.hop.letter} {_MEDIUM_SHORT.get(medium, medium)} {trip}", look.dim))
    return pieces


def _table_layers(card: Card, cells: int) -> Line:
    f, look = card.figures, card.look
    if f.assignment is None:
        return [(fitted("not in ring", cells - 1).ljust(cells), look.dim)]
    disk = f" +{len(f.assignment.streamed)}▒" if f.assignment.streamed else ""
    windows = fitted(f.short_windows_text, cells - 1 - len(disk))
    pad = " " * (cells - len(windows) - len(disk))
    return [(windows, look.text), (disk, fg(look.vivid(look.warning))), (pad, Style())]


def _table_memory(card: Card, cells: int) -> Line:
    f, look = card.figures, card.look
    used, total = f.used_bytes, f.total_bytes
    if used is None or total is None:
        return [((UNKNOWN if total is None else f"{UNKNOWN}/{bytes_text(total)}").ljust(cells), look.dim)]
    share = used / total
    style = look.bad if share > _FULL else fg(look.warning) if share > _WARN else look.text
    warned = "!" if share > _FULL else ""
    return [((warned + progress_bytes_text(used, total)).ljust(cells), style)]


# ---- small parts ----


def meter(cells: int, share: float, tick: float | None) -> list[tuple[str, bool]]:
    """A bar of `cells` for `share` of one, with a tick where the budget ends; (text, filled) in turn."""
    filled = min(cells, max(round(cells * share), 1 if share > 0 else 0))
    rest = "·" * (cells - filled)
    if tick is not None:
        at = min(cells - 1, round(cells * tick)) - filled
        if 0 <= at < len(rest):
            rest = f"{rest[:at]}┊{rest[at + 1 :]}"
    return [("█" * filled, True), (rest, False)]


def sparks(values: Sequence[float], longest: float, cells: int) -> str:
    """The newest `cells` of `values` as bars from zero to `longest`; what is above zero can be seen."""
    if longest <= 0:
        return ""
    return "".join(
        _LEVELS[min(len(_LEVELS) - 1, int(value / longest * len(_LEVELS)))] if value > 0 else " "
        for value in values[-cells:]
    )


def fitted(text: str, cells: int) -> str:
    """`text`, cut with `…` where it is too long."""
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, max(0, cells - 1)) + "…" if cells > 0 else ""


def wrapped(text: str, cells: int, most: int) -> list[str]:
    """`text` in at most `most` lines."""
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(lines[-1]) + 1 + cell_len(word) <= cells:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > most:
        lines[most - 1 :] = [" ".join(lines[most - 1 :])]
    return [fitted(line, cells) for line in lines]


def padded(lines: list[Line], count: int) -> list[Line]:
    return (lines + [[] for _ in range(count)])[:count]
