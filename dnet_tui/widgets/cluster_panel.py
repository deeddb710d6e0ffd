"""The cluster half of the screen: the devices on one side, what the ring does on the other.

    ClusterPanel   devices                              SidePanel   ring, token timeline, answers, activity

Both take the view at the pace of panels, which is slower than that of the status line: figures that jump
cannot be read. A device that comes, goes or changes its part is shown at once.
"""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.reactive import reactive

from dnet_tui.activity import LogLine
from dnet_tui.pace import Pace, Timing
from dnet_tui.state import ClusterView
from dnet_tui.widgets.activity_log import ActivityLog
from dnet_tui.widgets.device_list import DeviceList
from dnet_tui.widgets.ring_panel import AnswersPanel, RingPanel
from dnet_tui.widgets.timeline import Timeline


class ClusterPanel(VerticalScroll, can_focus=False):
    """The devices, scrolled where they are many."""

    view: reactive[ClusterView] = reactive(ClusterView(), init=False, repaint=False)

    def __init__(self, timing: Timing) -> None:
        super().__init__(id="devices")
        self.list = DeviceList()
        self._pace = Pace(self._show, timing.panels_s, timing.clock, self.set_timer, self.call_after_refresh)

    def compose(self) -> ComposeResult:
        yield self.list

    def watch_view(self, old: ClusterView, new: ClusterView) -> None:
        if is_news(old, new):
            self._pace.flush_now()
        else:
            self._pace.ask()

    def _show(self) -> None:
        self.list.view = self.view


class SidePanel(Vertical):
    """Ring order, token timeline, answers in flight, and the activity log."""

    view: reactive[ClusterView] = reactive(ClusterView(), init=False, repaint=False)
    log_lines: reactive[tuple[LogLine, ...]] = reactive((), init=False, repaint=False)
    num_own: reactive[int] = reactive(0, init=False, repaint=False)
    """How many answers in flight are the chat's; shown together with the view that is set after it."""

    def __init__(self, timing: Timing) -> None:
        super().__init__(id="side")
        self.answers = AnswersPanel()
        self._panels = (RingPanel(), Timeline(), self.answers)
        self.activity = ActivityLog()
        self._pace = Pace(self._show, timing.panels_s, timing.clock, self.set_timer, self.call_after_refresh)

    def compose(self) -> ComposeResult:
        with Vertical(id="figures"):
            yield from self._panels
        yield self.activity

    def watch_view(self, old: ClusterView, new: ClusterView) -> None:
        if is_news(old, new):
            self._pace.flush_now()
        else:
            self._pace.ask()

    def watch_log_lines(self) -> None:
        self._pace.ask()

    def watch_num_own(self) -> None:
        self.call_next(self._pace.ask)

    def _show(self) -> None:
        self.answers.num_own = self.num_own
        for panel in self._panels:
            panel.view = self.view
        self.activity.lines = self.log_lines


def is_news(old: ClusterView, new: ClusterView) -> bool:
    """Whether a device came, went or has another part now."""

    def parts(view: ClusterView) -> list[tuple[str, str | None]]:
        return [(device.peer.name, device.lost) for device in view.devices]

    return old.plan != new.plan or parts(old) != parts(new)
