"""The model as one bar: which layer is where, what is loaded, who is at work.

    AAAAAAAAAAAAAABBBBBBBBBBBBBBB    two half-cells per cell: half-cell h of 2W shows layer h * N // 2W
    A shard-1 0–14 B shard-2 15–29   every window is named where it starts, as far as there is room

Resident solid, streamed `▒`, not loaded `·`, of a lost device `╳`; loading fills it from the left. A device
is the brighter the more of the last laps it computed, its streamed layers the more its disk read. Without
colour the device's letter stands in every cell. The layer under the mouse, or under the cursor while the
strip has the focus, is named in the second row; enter or a click opens its device. Where a window takes so
long that an eye can follow it, its device blinks instead while answers are made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import ClassVar

from rich.cells import cell_len
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.events import Blur, Click, Focus, Leave, MouseMove
from textual.geometry import Size
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dnet_core.types.ring import RingPlan
from dnet_tui.keys import key_text
from dnet_tui.look import Look, fg, look_of
from dnet_tui.state import ClusterView, assignment_of, letters, loaded_layers, stage_splits
from dnet_tui.units import bytes_text, layers_text, ms_text
from dnet_tui.widgets.device_list import DeviceList
from dnet_tui.widgets.paint import Piece, row

BLINK_S = 0.25
"""From this time per window on a device blinks, and for so long it is bright, then dim."""
_REST = 0.68  # how much of its colour a device at rest shows; the one that computes all the time shows all
_DRIFT = 3  # how far from its window a letter may stand, in cells
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


class LayerStrip(Widget, can_focus=True):
    """Paints `view` in two rows; `hovered` and `cursor` are layers, the mouse goes first."""

    DEFAULT_CSS = "LayerStrip { height: 2; padding: 0 1; pointer: pointer; }"
    FOCUS_ON_CLICK = False

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "Layer before", id="strip.left"),
        Binding("right,l", "move(1)", "Layer after", id="strip.right"),
        Binding("home,g", "move(-100000)", "First layer", id="strip.first"),
        Binding("end,G", "move(100000)", "Last layer", id="strip.last"),
        Binding("enter", "open", "Open", id="strip.open", tooltip="Everything known of the layer's device"),
    ]

    view: reactive[ClusterView] = reactive(ClusterView(), init=False)
    hovered: reactive[int | None] = reactive(None, init=False)
    cursor: reactive[int] = reactive(0, init=False)
    is_dimmed: reactive[bool | None] = reactive(None, init=False, repaint=False)
    """The dark half of a blink; None: nothing ticks, so nothing blinks."""

    def watch_is_dimmed(self) -> None:
        if slow_devices(self.view):
            self.refresh()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return 2

    @property
    def _named(self) -> int | None:
        """The layer that the second row names."""
        plan = self.view.plan
        if plan is None:
            return None
        layer = self.hovered if self.hovered is not None else self.cursor if self.has_focus else None
        return None if layer is None else min(layer, plan.num_layers - 1)

    def _layer_at(self, x: int) -> int | None:
        plan, width = self.view.plan, self.content_size.width
        if plan is None or not 0 <= x < width:
            return None
        return 2 * x * plan.num_layers // (2 * width)

    def on_mouse_move(self, event: MouseMove) -> None:
        self.hovered = self._layer_at(event.get_content_offset_capture(self).x)

    def on_leave(self, event: Leave) -> None:
        self.hovered = None

    def on_focus(self, event: Focus) -> None:
        self.refresh()

    def on_blur(self, event: Blur) -> None:
        self.refresh()

    def on_click(self, event: Click) -> None:
        layer = self._layer_at(event.get_content_offset_capture(self).x)
        if layer is not None:
            self.cursor = layer
            self.action_open()

    def action_move(self, step: int) -> None:
        plan = self.view.plan
        if plan is not None:
            self.cursor = max(0, min(plan.num_layers - 1, self.cursor + step))

    def action_open(self) -> None:
        plan = self.view.plan
        if plan is not None:
            layer = min(self.cursor, plan.num_layers - 1)
            self.post_message(DeviceList.Opened(owner_of(plan, layer)))

    def render_line(self, y: int) -> Strip:
        look = look_of(self.app.current_theme, self.app.theme_variables)
        width, base = self.content_size.width, self.rich_style
        plan = self.view.plan
        if plan is None:
            pieces: list[Piece] = [("·" * width if y == 0 else "no layers loaded", look.dim)]
        elif y == 0:
            pieces = self._bar(plan, width, look)
        elif self._named is not None:
            told = layer_text(self.view, plan, self._named)
            pieces = [(told, look.text)]
            if self.has_focus and cell_len(told + (hint := self._hint())) <= width:
                pieces.append((hint, look.dim))
        else:
            pieces = strip_labels(self.view, plan, width, look)
        return row(pieces, width, base)

    def _hint(self) -> str:
        key = partial(key_text, self.app)
        return f" · {key('strip.left')} {key('strip.right')} others · {key('strip.open')} opens"

    # --- the bar ------------------------------------------------------------------------------------

    def _bar(self, plan: RingPlan, width: int, look: Look) -> list[Piece]:
        halves = half_cells(self.view, plan, width)
        names = list(letters(self.view).values())
        plain = self.app.no_color
        shaded = 2 * width >= 2 * plan.num_layers
        paint = _Paint(self._glows(), look, shaded)
        at = self._named * width // plan.num_layers if self._named is not None and self.has_focus else None
        pieces: list[Piece] = []
        for x in range(width):
            left, right = halves[2 * x], halves[2 * x + 1]
            if x == at:
                pieces.append(("▼", fg(look.foreground, bold=True)))
            elif plain:
                pieces.append((plain_glyph(left, names), Style()))
            else:
                pieces.append(paint.cell(left, right))
        return pieces

    def _glows(self) -> list[tuple[float, float]]:
        """Of each device, how much of its colour its resident and its streamed layers show."""
        splits = stage_splits(self.view) if self.view.sessions else {}
        token_s = sum(split.total_s for split in splits.values())
        slow = slow_devices(self.view)
        glows = []
        for name in letters(self.view):
            split = splits.get(name)
            computing = split.busy if split is not None else 0.0
            if name in slow and self.is_dimmed is not None:
                computing = 0.0 if self.is_dimmed else 1.0
            reading = split.read_s / token_s if split is not None and token_s else 0.0
            glows.append(tuple(_REST + (1 - _REST) * min(1.0, share) for share in (computing, reading)))
        return [(resident, streamed) for resident, streamed in glows]


def slow_devices(view: ClusterView) -> frozenset[str]:
    """The devices whose windows take `BLINK_S` or more each, while answers are made."""
    splits = stage_splits(view) if view.sessions else {}
    return frozenset(
        a.peer
        for a in (view.plan.assignments if view.plan is not None else ())
        if a.peer in splits and splits[a.peer].compute_s + splits[a.peer].disk_s >= BLINK_S * len(a.windows)
    )


def strip_labels(view: ClusterView, plan: RingPlan, width: int, look: Look) -> list[Piece]:
    """Name every window where it starts, as far as there is room; a letter may stand a little aside."""
    named = letters(view)
    order = list(named)
    starts = [window.start * width // plan.num_layers for window, _ in plan.path]
    pieces: list[Piece] = []
    used = 0
    for index, (window, peer) in enumerate(plan.path):
        start = max(starts[index], used + (index > 0))
        room = (starts[index + 1] - 1 if index + 1 < len(starts) else width) - start
        assignment = assignment_of(view, peer)
        num_streamed = sum(1 for x in assignment.streamed if x in window) if assignment else 0
        span = layers_text(window.start, window.stop)
        choices = [f"{named[peer]} {peer} {span}", f"{named[peer]} {span}", named[peer]]
        if num_streamed:
            choices.insert(0, f"{choices[0]} ({num_streamed} disk)")
        short = named[peer] if start - starts[index] <= _DRIFT else ""  # pushed aside by those before
        label = next((text for text in choices if cell_len(text) <= room), short)
        if not label or start + cell_len(label) > width:
            continue
        lost = peer in view.lost_in_ring
        pieces += [
            (" " * (start - used), Style()),
            (label, look.bad if lost else fg(look.device(order.index(peer)))),
        ]
        used = start + cell_len(label)
    return pieces


def owner_of(plan: RingPlan, layer: int) -> str:
    return next(peer for window, peer in plan.path if layer in window)


def layer_text(view: ClusterView, plan: RingPlan, layer: int) -> str:
    """`L84 · C mini · streamed · 1.4 GB · last turn 24.1 ms for 12 layers`, as far as it is known."""
    slot = next(i for i, (window, _) in enumerate(plan.path) if layer in window)
    window, peer = plan.path[slot]
    assignment = assignment_of(view, peer)
    if peer in view.lost_in_ring:
        how = "device lost"
    elif layer not in loaded_layers(view.model):
        how = "not loaded yet"
    else:
        how = "streamed" if assignment is not None and layer in assignment.streamed else "in memory"
    parts = [f"L{layer}", f"{letters(view)[peer]} {peer}", how]
    if view.facts is not None and view.facts.model.model == plan.model:
        parts.append(bytes_text(view.facts.model.layers[layer].weight_bytes))
    if view.laps and len(view.laps[-1].stages) == len(plan.path):
        stage = view.laps[-1].stages[slot]
        took = ms_text(stage.compute_s + stage.disk_wait_s)
        parts.append(f"last turn {took} ms for {len(window)} layer{'s' * (len(window) > 1)}")
    return " · ".join(parts)


def plain_glyph(half: HalfCell, names: list[str]) -> str:
    match half.fill:
        case Fill.RESIDENT:
            return names[half.owner][0]
        case Fill.STREAMED:
            return "▒"
        case Fill.EMPTY:
            return "·"
        case Fill.LOST:
            return "╳"


@dataclass(frozen=True, slots=True)
class _Paint:
    """Cells in colour. `glows` are how bright each device's resident and streamed layers are."""

    glows: list[tuple[float, float]]
    look: Look
    shaded: bool  # neighbouring layers differ a little
    cells: dict[tuple[object, ...], Piece] = field(default_factory=dict)
    """Those painted so far: of the hundreds in a strip most are alike."""

    def _color(self, half: HalfCell) -> Color:
        own = self.look.device(half.owner)
        if self.look.is_ansi:
            return own
        streamed = half.fill is Fill.STREAMED
        own = self.look.background.blend(own, self.glows[half.owner][streamed])
        return own.darken(_SHADE) if self.shaded and half.layer % 2 else own

    def cell(self, left: HalfCell, right: HalfCell) -> Piece:
        alike = (left.fill, left.owner, left.layer % 2, right.fill, right.owner, right.layer % 2)
        known = self.cells.get(alike)
        if known is None:
            known = self.cells[alike] = self._cell(left, right)
        return known

    def _cell(self, left: HalfCell, right: HalfCell) -> Piece:
        color = self._color(left).rich_color
        match left.fill:
            case Fill.RESIDENT if right.fill is Fill.RESIDENT:
                other = self._color(right).rich_color
                return (
                    (" ", Style(bgcolor=color))
                    if color == other
                    else ("▌", Style(color=color, bgcolor=other))
                )
            case Fill.RESIDENT:
                mixed = right.fill is Fill.STREAMED and not self.look.is_ansi
                ground = self.look.background.blend(self._color(right), 0.4).rich_color if mixed else None
                return "▌", Style(color=color, bgcolor=ground)
            case Fill.STREAMED:
                return "▒", Style(color=color)
            case Fill.EMPTY:
                return "·", Style(color=color)
            case Fill.LOST:
                return "╳", self.look.bad
