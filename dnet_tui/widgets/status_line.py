"""The top line: how the cluster is, which model, what is going on, how fast."""

from __future__ import annotations

from typing import assert_never

from rich.style import Style
from textual.color import Color
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dnet_tui.look import Look, fg, look_of
from dnet_tui.state import ClusterView, Fetching, Loading, NoModel, Preparing, Ready, Unusable
from dnet_tui.units import progress_bytes_text, seconds_text
from dnet_tui.widgets.paint import Piece, two_sides
from dnet_tui.widgets.turn import SPINNER


class StatusLine(Widget):
    """Paints `view` and the newest speeds; `spin` moves while something is being prepared."""

    DEFAULT_CSS = "StatusLine { height: 1; background: $panel; }"

    view: reactive[ClusterView] = reactive(ClusterView(), init=False)
    speeds: reactive[tuple[float | None, float | None]] = reactive((None, None), init=False)
    """(time to first token in seconds, tokens per second) of the newest answer."""
    spin: reactive[int] = reactive(0, init=False)

    def __init__(self, badge: str = "") -> None:
        """`badge` marks what is on the screen as something else than a cluster at work."""
        super().__init__(id="status")
        self._badge = badge

    def render_line(self, y: int) -> Strip:
        look = look_of(self.app.current_theme, self.app.theme_variables)
        base = self.rich_style
        left: list[Piece] = [
            *(
                [(f" {self._badge} ", fg(look.warning, bold=True) + Style(reverse=True))]
                if self._badge
                else []
            ),
            (" dnet ", fg(look.primary, bold=True)),
            (_dot(self.view), fg(_health(self.view, look))),
            (f" {_devices_text(self.view)}", Style()),
        ]
        name = self.view.model_name
        if name is not None:
            left.append((f"  {name}", Style(bold=True)))
        left += self._step(look)
        return two_sides(left, [*self._speed_pieces(look), (" ", Style())], self.size.width, base)

    def _step(self, look: Look) -> list[Piece]:
        spinner = SPINNER[self.spin % len(SPINNER)]
        match self.view.model:
            case NoModel():
                step = "" if self.view.devices else f"{spinner} starting the shards"
            case Fetching(done_bytes=done, total_bytes=total) if done < total:
                step = f"{spinner} fetching {progress_bytes_text(done, total)}"
            case Preparing() | Fetching():
                step = f"{spinner} preparing" if self.view.here else f"{spinner} starting the shards"
            case Loading() as loading:
                told = loading.total_bytes
                amount = f" {progress_bytes_text(loading.done_bytes, told)}" if told else ""
                step = f"{spinner} loading{amount}"
            case Ready(plan=plan):
                step = f"{plan.num_layers} layers" if self.size.width >= 100 else ""
            case Unusable():
                return [("  not loaded", look.bad)]
            case _:
                assert_never(self.view.model)
        return [(f"  {step}", look.dim)] if step else []

    def _speed_pieces(self, look: Look) -> list[Piece]:
        ttft_s, tokens_per_s = self.speeds
        pieces: list[Piece] = []
        if ttft_s is not None:
            pieces.append((f"first token {seconds_text(ttft_s)}", look.dim))
        if tokens_per_s is not None:
            pieces += [("  ", Style()), (f"{tokens_per_s:.1f}", Style(bold=True)), (" tok/s", Style())]
        return pieces


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
