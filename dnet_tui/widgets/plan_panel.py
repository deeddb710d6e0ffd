"""A plan in lines: who has what, what it will do, why, and what other numbers of devices would do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rich.style import Style
from textual.events import Click
from textual.message import Message
from textual.reactive import reactive

from dnet_core.types.plan import DevicePrediction, Prediction, Solution
from dnet_core.types.ring import RingPlan
from dnet_tui.look import Look, fg
from dnet_tui.plan_edit import Edit
from dnet_tui.state import stage_splits
from dnet_tui.units import bytes_text, count_text, layers_text, ms_text, progress_bytes_text, seconds_text
from dnet_tui.widgets.device_card import UNKNOWN, fitted, meter, wrapped
from dnet_tui.widgets.panel import Line, Panel
from dnet_tui.widgets.timeline import off_text


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a window of the ring (`slot` in the way of a token), or a device that has none."""

    peer: str
    slot: int | None


@dataclass(frozen=True, slots=True)
class PlanState:
    """What the panel shows: a plan, what is loaded, and what was wrong with the last edit."""

    solution: Solution
    rows: tuple[Row, ...]
    edit: Edit
    """Its placement, and what of it was set by hand."""
    cursor: int = 0
    loaded: RingPlan | None = None
    by_hand: bool = False
    pinned: frozenset[str] = frozenset()
    excluded: frozenset[str] = frozenset()
    problem: str | None = None

    @property
    def chosen(self) -> Row:
        return self.rows[min(self.cursor, len(self.rows) - 1)]


def rows_of(solution: Solution) -> tuple[Row, ...]:
    """Every window of the ring, then the devices without one."""
    ring = [Row(peer, slot) for slot, (_, peer) in enumerate(solution.plan.path)]
    own = {row.peer for row in ring}
    return (*ring, *(Row(reason.peer, None) for reason in solution.reasons if reason.peer not in own))


def letters_of(solution: Solution) -> dict[str, str]:
    """A, B, C ... in the order of the ring, then the others."""
    names = dict.fromkeys(row.peer for row in rows_of(solution))
    return {name: chr(ord("A") + index % 26) for index, name in enumerate(names)}


class PlanPanel(Panel):
    """Paints `state`; a click chooses a row."""

    DEFAULT_CSS = "PlanPanel { height: auto; }"

    state: reactive[PlanState | None] = reactive(None, init=False, repaint=False)

    @dataclass
    class Chosen(Message):
        row: int

    def __init__(self) -> None:
        super().__init__()
        self._first_row = 0

    def watch_state(self) -> None:
        self.repaint()

    def on_click(self, event: Click) -> None:
        row = event.get_content_offset_capture(self).y - self._first_row
        if self.state is not None and 0 <= row < len(self.state.rows):
            self.post_message(self.Chosen(row))

    def lines(self, width: int, room: int, look: Look) -> list[Line]:
        state = self.state
        if state is None:
            return [[("nothing has been planned yet", look.dim)]]
        wide = width >= 96
        lines = [[(_heading(wide), look.dim)]]
        self._first_row = len(lines)
        lines += [_row(state, index, wide, width, look) for index in range(len(state.rows))]
        lines += [[], *self._outcome(state, wide, look), []]
        if state.problem is not None:
            lines += _problem(state.problem, width, look)
        else:
            lines += _why(state, width, look)
        return [*lines, [], *_sizes(state, look)]

    def _outcome(self, state: PlanState, wide: bool, look: Look) -> list[Line]:
        """What the plan will do, and what the loaded one does."""
        new = state.solution.prediction
        told: Line = [("predicted  ", look.dim), *_speed(new, look)]
        lines = [told]
        if new.streamed_bytes_per_token:
            disk = f"{bytes_text(new.streamed_bytes_per_token)}/token from disk"
            piece = (disk, fg(look.vivid(look.warning)))
            lines = [[*told, (" · ", look.dim), piece]] if wide else [told, [(" " * 11, look.dim), piece]]
        if state.loaded is None:
            return lines
        is_loaded = state.solution.plan == state.loaded
        if is_loaded:
            splits = stage_splits(self.view)
            measured_s = sum(split.total_s for split in splits.values())
            if measured_s:
                off = off_text(measured_s, new.tpot_s)
                lines.append([("measured   ", look.dim), (f"{ms_text(measured_s)} ms/token", look.text),
                              (f"  {off}", look.dim)])  # fmt: skip
            else:
                lines.append([("measured   ", look.dim), ("no token measured yet", look.dim)])
            return lines
        old = self.view.solution
        if old is not None and old.plan == state.loaded:
            ratio = new.tpot_s / old.prediction.tpot_s
            style = fg(look.success) if ratio < 0.995 else fg(look.warning) if ratio > 1.005 else look.dim
            lines.append([("           ", look.dim), (_against(ratio), style)])
        return lines


def _against(ratio: float) -> str:
    """How the time of a token compares with that of the loaded plan."""
    if 0.995 <= ratio <= 1.005:
        return "as fast as the loaded plan"
    word, more = ("slower", ratio) if ratio > 1 else ("faster", 1 / ratio)
    return (
        f"{more:.0f} times {word} than the loaded plan"
        if more >= 3
        else f"{more - 1:.0%} {word} than the loaded plan"
    )


def _speed(prediction: Prediction, look: Look) -> Line:
    if not math.isfinite(prediction.tpot_s):
        return [("never ends: two neighbours have no link", look.bad)]
    return [
        (f"{ms_text(prediction.tpot_s)} ms/token", look.text + Style(bold=True)),
        (f" · {prediction.tokens_per_s:.1f} tok/s", look.text + Style(bold=True)),
        (f" · first token {seconds_text(prediction.ttft_s)}", look.text),
        (f" after {count_text(prediction.prompt_tokens)} tok", look.dim),
    ]


def _heading(wide: bool) -> str:
    bar = f"{'':<14}" if wide else ""
    left = f"  {'device':<13}{'layers':<13}{'in RAM':>7}{'disk':>5}  {'memory':<12}"
    return f"{left}{bar}{'compute':>8}{'disk':>7}{'net':>6}"


def _row(state: PlanState, index: int, wide: bool, width: int, look: Look) -> Line:
    row, solution = state.rows[index], state.solution
    named = letters_of(solution)
    color = look.device(list(named).index(row.peer))
    chosen = index == min(state.cursor, len(state.rows) - 1)
    mark = ("▸ " if chosen else "  ", fg(color, bold=True))
    pin = " ⚲" if row.peer in state.pinned else ""
    name = (fitted(f"{named[row.peer]} {row.peer}", 12 - len(pin)) + pin, fg(color, bold=True))
    pad = (" " * (13 - len(name[0])), Style())
    if row.slot is None:
        why = next((r.text for r in solution.reasons if r.peer == row.peer), "")
        told = "left out by you" if row.peer in state.excluded else why
        return [mark, name, pad, (fitted(told, width - 15), look.dim)]
    window, _ = solution.plan.path[row.slot]
    assignment = next(a for a in solution.plan.assignments if a.peer == row.peer)
    predicted = next(d for d in solution.prediction.devices if d.peer == row.peer)
    first = assignment.windows[0] == window
    count = f"{len(window):>3} L{layers_text(window.start, window.stop)}"
    pieces: Line = [mark, name, pad, (fitted(count, 12).ljust(13), look.text + Style(bold=chosen))]
    if not first:  # the device's other figures stand in its first row
        return [*pieces, ("       ↳ round " + str(assignment.windows.index(window) + 1), look.dim)]
    late = len(assignment.streamed)
    pieces.append((f"{len(assignment.resident):>7}", look.text))
    pieces.append((f"{late or UNKNOWN:>5}", fg(look.vivid(look.warning)) if late else look.dim))
    pieces += _memory(predicted, color_style=fg(color), wide=wide, look=look)
    times = (
        f"{ms_text(predicted.compute_s):>8}{ms_text(predicted.stall_s):>7}{ms_text(predicted.network_s):>6}"
    )
    return [*pieces, (times, look.text)]


def _memory(predicted: DevicePrediction, *, color_style: Style, wide: bool, look: Look) -> Line:
    told = progress_bytes_text(predicted.total_bytes, predicted.budget_bytes)
    pieces: Line = [("  ", Style()), (told.ljust(12), look.text)]
    if wide:
        share = predicted.total_bytes / max(1, predicted.budget_bytes)
        bar = meter(12, min(1.0, share), None)
        pieces += [(text, color_style if filled else look.dim) for text, filled in bar]
        pieces.append(("  ", Style()))
    return pieces


def _problem(text: str, width: int, look: Look) -> list[Line]:
    """What was wrong with the last edit; its lines stay lines."""
    told = [line for part in text.splitlines() for line in wrapped(part, width - 2, 3)]
    return [[("✗ " if index == 0 else "  ", look.bad), (line, look.bad)] for index, line in enumerate(told)]


def _why(state: PlanState, width: int, look: Look) -> list[Line]:
    """The reason of the chosen device."""
    peer = state.chosen.peer
    text = next((r.text for r in state.solution.reasons if r.peer == peer), "")
    lines = wrapped(f"{letters_of(state.solution)[peer]} {peer} {text}", width - 5, 4)
    return [[("why  " if i == 0 else "     ", look.dim), (line, look.text)] for i, line in enumerate(lines)]


def _sizes(state: PlanState, look: Look) -> list[Line]:
    """The best plan of each number of devices."""
    solution = state.solution
    chosen = len(solution.plan.assignments)
    head = (
        f" {'devices':>9}{'ms/token':>11}{'tok/s':>8}{'first token':>13}{'rounds':>8}{'from disk':>12}   who"
    )
    named = letters_of(solution)
    lines: list[Line] = [[(head, look.dim)]]
    for size in solution.sizes:
        is_this = size.num_devices == chosen
        mark = "▪" if is_this else " "
        disk = f"{bytes_text(size.streamed_bytes_per_token)}" if size.streamed_bytes_per_token else UNKNOWN
        rate = solution.prediction.batch / size.tpot_s
        text = (
            f"{mark}{size.num_devices:>9}{ms_text(size.tpot_s):>11}{rate:>8.1f}"
            f"{seconds_text(size.ttft_s):>13}{size.rounds:>8}{disk:>12}"
            f"   {' '.join(named.get(peer, peer) for peer in size.peers)}"
        )
        lines.append([(text, look.text + Style(bold=is_this) if is_this else look.dim)])
    most = len(solution.reasons) - len(state.excluded)
    missing = [n for n in range(1, most + 1) if n not in {s.num_devices for s in solution.sizes}]
    if missing:
        told = ", ".join(map(str, missing))
        lines.append([(f" {told:>9}  too few or too many for this model", look.dim)])
    return lines
