"""The top line: how the cluster is, which model, what is going on, how fast.

 dnet ● 2 devices  some-model        first token 0.6 s  14.7 tok/s  API :8080     a click opens
|palette |cluster  |models                                          |endpoint
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from rich.style import Style
from textual.color import Color
from textual.events import Click, MouseMove
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dnet_tui.look import Look, fg, look_of
from dnet_tui.serving import EndpointState, Off, On, Starting
from dnet_tui.state import ClusterView, NoModel, Preparing, Ready, Unusable
from dnet_tui.units import progress_bytes_text, seconds_text
from dnet_tui.widgets.paint import Piece, row, width_of
from dnet_tui.widgets.turn import SPINNER
from dnet_tui.work import Step, Work


@dataclass(frozen=True, slots=True)
class _Part:
    pieces: list[Piece]
    action: str | None = None


class StatusLine(Widget):
    """Paints `view` and the newest speeds; `spin` moves while something is being prepared."""

    DEFAULT_CSS = "StatusLine { height: 1; background: $panel; pointer: pointer; }"

    view: reactive[ClusterView] = reactive(ClusterView(), init=False)
    speeds: reactive[tuple[float | None, float | None]] = reactive((None, None), init=False)
    """(time to first token in seconds, tokens per second) of the newest answer."""
    endpoint: reactive[EndpointState] = reactive(Off(), init=False)
    work: reactive[Work] = reactive(Work(), init=False)
    now_s: reactive[float] = reactive(0.0, init=False, repaint=False)
    """By the clock of `work`; a new `spin` paints it."""
    spin: reactive[int] = reactive(0, init=False)
    hovered: reactive[str | None] = reactive(None, init=False)
    """The action of what is under the mouse."""

    def __init__(self, badge: str = "") -> None:
        """`badge` marks what is on the screen as something else than a cluster at work."""
        super().__init__(id="status")
        self._badge = badge

    def _action_at(self, x: int) -> str | None:
        """What a click on cell `x` does."""
        for start, part in self._placed():
            if start <= x < start + width_of(part.pieces):
                return part.action
        return None

    def on_mouse_move(self, event: MouseMove) -> None:
        self.hovered = self._action_at(event.x)

    def on_leave(self) -> None:
        self.hovered = None

    def on_click(self, event: Click) -> None:
        action = self._action_at(event.x)
        if action is not None:
            self.call_next(self.run_action, action)

    def render_line(self, y: int) -> Strip:
        pieces: list[Piece] = []
        for start, part in self._placed():
            if start > width_of(pieces):
                pieces.append((" " * (start - width_of(pieces)), Style()))
            is_hovered = part.action is not None and part.action == self.hovered
            pieces += _underlined(part.pieces) if is_hovered else part.pieces
        return row(pieces, self.size.width, self.rich_style)

    def _placed(self) -> list[tuple[int, _Part]]:
        """The parts, each with the cell where it begins."""
        look = look_of(self.app.current_theme, self.app.theme_variables)
        left = self._left(look)
        used = width_of(piece for part in left for piece in part.pieces)
        right = self._right(look, self.size.width - used)
        rest = width_of(piece for part in right for piece in part.pieces)
        if rest >= self.size.width - used:
            right = []
        starts = accumulate((width_of(part.pieces) for part in left), initial=0)
        others = accumulate((width_of(part.pieces) for part in right), initial=self.size.width - rest)
        return [*zip(starts, left, strict=False), *zip(others, right, strict=False)]

    def _left(self, look: Look) -> list[_Part]:
        name: list[Piece] = [(" dnet ", fg(look.primary, bold=True))]
        if self._badge:
            name.insert(0, (f" {self._badge} ", fg(look.warning, bold=True) + Style(reverse=True)))
        devices: list[Piece] = [
            (_dot(self.view), fg(_health(self.view, look))),
            (f" {_devices_text(self.view)}", Style()),
        ]
        model: list[Piece] = []
        if self.view.model_name is not None:
            whole = self.view.model_name
            shown = whole if self.size.width >= 100 else whole.rpartition("/")[2] or whole
            model = [(f"  {shown}", Style(bold=True))]
        step = self._step(look, has_rate=True)
        if width_of([*name, *devices, *model, *step]) > self.size.width:  # the time left says more
            step = self._step(look, has_rate=False)
        return [
            _Part(name, "app.command_palette"),
            _Part(devices, "app.cluster"),
            _Part([*model, *step], "app.models"),
        ]

    def _right(self, look: Look, room: int) -> list[_Part]:
        """Speed and endpoint; where there is no room for all, the time to the first token goes first."""
        first, rate = self._speed_pieces(look)
        end = [_Part(self._endpoint_pieces(look), "app.endpoint_panel"), _Part([(" ", Style())])]
        for pieces in ([*first, *rate], rate):
            if width_of([*pieces, *end[0].pieces, *end[1].pieces]) < room:
                return [_Part(pieces), *end]
        return end

    def _endpoint_pieces(self, look: Look) -> list[Piece]:
        match self.endpoint:
            case Off(problem=None):
                return []
            case Off():
                return [("  API off", look.bad)]
            case Starting():
                return [("  API …", look.dim)]
            case On(port=port, activity=activity):
                busy = f" {len(activity.requests)} in flight" if activity.requests else ""
                late = activity.last_errors[-1].status if activity.last_errors else None
                error: list[Piece] = [(f" last error {late}", look.bad)] if late and not busy else []
                return [(f"  API :{port}{busy}", fg(look.success)), *error]

    def _step(self, look: Look, *, has_rate: bool) -> list[Piece]:
        pieces: list[Piece] = []
        if isinstance(self.view.model, Unusable):
            pieces.append(("  not loaded", look.bad))
        elif step := self._loading_text(has_rate=has_rate):
            pieces.append((f"  {step}", look.dim))
        if self.work.downloads:
            pieces.append((f"  {self._downloads_text()}", fg(look.accent)))
        return pieces

    def _loading_text(self, *, has_rate: bool) -> str:
        """The step of the load and what is left of it, or what is loaded."""
        spinner, work = SPINNER[self.spin % len(SPINNER)], self.work
        match self.view.model:
            case Ready(plan=plan) if work.step is None:
                return f"{plan.num_layers} layers" if self.size.width >= 100 else ""
            case NoModel() if self.view.devices and work.step is None:
                return ""
            case Preparing() | NoModel() if not self.view.here:
                return f"{spinner} starting the shards"
        if work.fetches:
            return f"{spinner} {self._fetches_text(has_rate=has_rate)}"
        if work.transfer is not None and work.step is not None:
            return f"{spinner} {work.step} {work.transfer.text(self.now_s, has_rate=has_rate)}"
        if work.measurement is not None and work.measurement.num_total > 1:
            return f"{spinner} measuring the {work.measurement.text(self.now_s)}"
        taken = self.now_s - work.since_s
        counted = f" · {taken:.0f} s" if work.step in (Step.PROFILING, Step.SOLVING) and taken >= 1 else ""
        return f"{spinner} {work.step or Step.PREPARING}{counted}"

    def _fetches_text(self, *, has_rate: bool) -> str:
        """Of the devices that bring the files to themselves, the one that will be last."""
        fetches = self.work.fetches
        slowest = max(fetches, key=lambda name: (fetches[name].is_stalled(self.now_s), fetches[name].missing))
        more = f" (+{len(fetches) - 1})" if len(fetches) > 1 else ""
        return f"fetching on {slowest}{more} {fetches[slowest].text(self.now_s, has_rate=has_rate)}"

    def _downloads_text(self) -> str:
        downloads = self.work.downloads
        (model, transfer), *others = downloads.items()
        if self.size.width < 120:
            done = sum(t.done_bytes for t in downloads.values())
            total = sum(t.total_bytes for t in downloads.values())
            stalled = " stalled" if any(t.is_stalled(self.now_s) for t in downloads.values()) else ""
            return f"↓ {done / max(1, total):.0%}{stalled}"
        if others:
            done = sum(t.done_bytes for t in downloads.values())
            total = sum(t.total_bytes for t in downloads.values())
            return f"↓ {len(downloads)} models {progress_bytes_text(done, total)}"
        return f"↓ {model.rpartition('/')[2]} {transfer.text(self.now_s)}"

    def _speed_pieces(self, look: Look) -> tuple[list[Piece], list[Piece]]:
        """Time to the first token, and tokens per second."""
        ttft_s, tokens_per_s = self.speeds if isinstance(self.view.model, Ready) else (None, None)
        first: list[Piece] = []
        rate: list[Piece] = []
        if ttft_s is not None:
            first.append((f"  first token {seconds_text(ttft_s)}", look.dim))
        if tokens_per_s is not None:
            rate += [("  ", Style()), (f"{tokens_per_s:.1f}", Style(bold=True)), (" tok/s", Style())]
        return first, rate


def _underlined(pieces: list[Piece]) -> list[Piece]:
    """`pieces` with a line under what is said."""
    told: list[Piece] = []
    for text, style in pieces:
        said = text.strip()
        before, after = text[: text.index(said)], text[text.index(said) + len(said) :]
        told += [(before, style), (said, style + Style(underline=True)), (after, style)]
    return told


def _devices_text(view: ClusterView) -> str:
    here, all_seen = len(view.here), len(view.devices)
    if here == all_seen:
        return f"{here} device" if here == 1 else f"{here} devices"
    return f"{here} of {all_seen} devices"


def _dot(view: ClusterView) -> str:
    """The dot's shape says as much as its colour."""
    if view.lost_in_ring or isinstance(view.model, Unusable):
        return "✗"
    return "●" if isinstance(view.model, Ready) else "○"


def _health(view: ClusterView, look: Look) -> Color:
    if view.lost_in_ring or isinstance(view.model, Unusable):
        return look.error
    return look.success if isinstance(view.model, Ready) else look.warning
