"""The model as one bar: which layer is where, what is loaded, who is at work.

    AAAAAAAAAAAAAABBBBBBBBBBBBBBB    two half-cells per cell: half-cell h of 2W shows layer h * N // 2W
    A shard-1 0–14 B shard-2 15–29   every window is named where it starts, as far as there is room

Resident solid, streamed `▒`, not loaded `·`, of a lost device `╳`; loading fills it from the left. Without
colour the device's letter stands in every cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from rich.cells import cell_len
from rich.style import Style
from textual.color import Color
from textual.events import Leave, MouseMove
from textual.geometry import Size
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dnet_core.types.ring import RingPlan
from dnet_tui.look import Look, fg, look_of
from dnet_tui.state import ClusterView, assignment_of, letters, loaded_layers, stage_splits
from dnet_tui.units import layers_text, ms_text
from dnet_tui.widgets.paint import Piece, row

_REST = 0.68  # how much of its colour a device at rest shows; the one that computes all the time shows all
_SHADE = 0.05  # neighbouring layers differ by this much when every layer has a cell


class Fill(Enum):
    RESIDENT = auto()
    STREAMED = auto()
    EMPTY = auto()
    LOST = auto()


@dataclass(frozen=True, slots=True)
class HalfCell:
    fill: Fill
    owner: int  # index of the letter
    layer: int


def half_cells(view: ClusterView, plan: RingPlan, width: int) -> list[HalfCell]:
    """What the `2 * width` half-cells show."""
    loaded = loaded_layers(view.model)
    lost = view.lost_in_ring
    order = {name: index for index, name in enumerate(letters(view))}
    of_layer: list[HalfCell] = []
    for window, peer in plan.path:
        assignment = assignment_of(view, peer)
        streamed = set(assignment.streamed) if assignment is not None else set()
        for layer in window.layers:
            if peer in lost:
                fill = Fill.LOST
            elif layer not in loaded:
                fill = Fill.EMPTY
            else:
                fill = Fill.STREAMED if layer in streamed else Fill.RESIDENT
            of_layer.append(HalfCell(fill, order[peer], layer))
    return [of_layer[half * plan.num_layers // (2 * width)] for half in range(2 * width)]


class LayerStrip(Widget):
    """Paints `view` in two rows; the layer under the mouse is named in the second."""

    DEFAULT_CSS = "LayerStrip { height: 2; padding: 0 1; }"

    view: reactive[ClusterView] = reactive(ClusterView(), init=False)
    hovered: reactive[int | None] = reactive(None, init=False)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return 2

    def on_mouse_move(self, event: MouseMove) -> None:
        plan, width = self.view.plan, self.content_size.width
        x = event.get_content_offset_capture(self).x
        known = plan is not None and 0 <= x < width
        self.hovered = 2 * x * plan.num_layers // (2 * width) if known and plan is not None else None

    def on_leave(self, event: Leave) -> None:
        self.hovered = None

    def render_line(self, y: int) -> Strip:
        look = look_of(self.app.current_theme, self.app.theme_variables)
        width, base = self.content_size.width, self.rich_style
        plan = self.view.plan
        if plan is None:
            pieces: list[Piece] = [("·" * width if y == 0 else "no layers loaded", look.dim)]
        elif y == 0:
            pieces = self._bar(plan, width, look)
        elif self.hovered is not None and self.hovered < plan.num_layers:
            pieces = [(self._detail(plan, self.hovered), look.text)]
        else:
            pieces = self._labels(plan, width, look)
        return row(pieces, width, base)

    # --- the bar ------------------------------------------------------------------------------------

    def _bar(self, plan: RingPlan, width: int, look: Look) -> list[Piece]:
        halves = half_cells(self.view, plan, width)
        names = list(letters(self.view).values())
        plain = self.app.no_color
        shaded = 2 * width >= 2 * plan.num_layers
        colors = self._colors(look)
        pieces: list[Piece] = []
        for x in range(width):
            left, right = halves[2 * x], halves[2 * x + 1]
            if plain:
                pieces.append((_plain_glyph(left, names), Style()))
            else:
                pieces.append(_colored_cell(left, right, colors, look, shaded=shaded))
        return pieces

    def _colors(self, look: Look) -> list[Color]:
        """One colour per device, brighter the larger its share of the recent laps."""
        busy = stage_splits(self.view) if self.view.sessions else {}
        colors: list[Color] = []
        for index, name in enumerate(letters(self.view)):
            share = busy[name].busy if name in busy else 0.0
            color = look.device(index)
            glow = _REST + (1 - _REST) * min(1.0, share)
            colors.append(color if look.is_ansi else look.background.blend(color, glow))
        return colors

    # --- the words under it ---------------------------------------------------------------------------

    def _labels(self, plan: RingPlan, width: int, look: Look) -> list[Piece]:
        named = letters(self.view)
        order = list(named)
        starts = [window.start * width // plan.num_layers for window, _ in plan.path]
        pieces: list[Piece] = []
        used = 0
        for index, (window, peer) in enumerate(plan.path):
            start = max(starts[index], used)
            room = (starts[index + 1] - 1 if index + 1 < len(starts) else width) - start
            assignment = assignment_of(self.view, peer)
            num_streamed = sum(1 for x in assignment.streamed if x in window) if assignment else 0
            span = layers_text(window.start, window.stop)
            choices = [f"{named[peer]} {peer} {span}", f"{named[peer]} {span}", named[peer]]
            if num_streamed:
                choices.insert(0, f"{choices[0]} ({num_streamed} disk)")
            label = next((text for text in choices if cell_len(text) <= room), "")
            lost = peer in self.view.lost_in_ring
            pieces += [
                (" " * (start - used), Style()),
                (label, look.bad if lost else fg(look.device(order.index(peer)))),
            ]
            used = start + cell_len(label)
        return pieces

    def _detail(self, plan: RingPlan, layer: int) -> str:
        peer = next(peer for window, peer in plan.path if layer in window)
        assignment = assignment_of(self.view, peer)
        if peer in self.view.lost_in_ring:
            how = "device lost"
        elif layer not in loaded_layers(self.view.model):
            how = "not loaded yet"
        else:
            how = "streamed from disk" if assignment and layer in assignment.streamed else "in memory"
        split = stage_splits(self.view).get(peer)
        speed = f" · device computes {ms_text(split.compute_s)} ms per token" if split else ""
        return f"L{layer} · {letters(self.view)[peer]} {peer} · {how}{speed}"


def _plain_glyph(half: HalfCell, names: list[str]) -> str:
    match half.fill:
        case Fill.RESIDENT:
            return names[half.owner][0]
        case Fill.STREAMED:
            return "▒"
        case Fill.EMPTY:
            return "·"
        case Fill.LOST:
            return "╳"


def _colored_cell(left: HalfCell, right: HalfCell, colors: list[Color], look: Look, *, shaded: bool) -> Piece:
    def color(half: HalfCell) -> Color:
        own = colors[half.owner]
        return own.darken(_SHADE) if shaded and half.layer % 2 and own.ansi is None else own

    match left.fill:
        case Fill.RESIDENT if right.fill is Fill.RESIDENT:
            if color(left) == color(right):
                return " ", Style(bgcolor=color(left).rich_color)
            return "▌", Style(color=color(left).rich_color, bgcolor=color(right).rich_color)
        case Fill.RESIDENT:
            mixed = right.fill is Fill.STREAMED and not look.is_ansi
            ground = look.background.blend(color(right), 0.4) if mixed else None
            return "▌", Style(color=color(left).rich_color, bgcolor=ground.rich_color if ground else None)
        case Fill.STREAMED:
            return "▒", fg(color(left))
        case Fill.EMPTY:
            return "·", fg(color(left))
        case Fill.LOST:
            return "╳", look.bad
