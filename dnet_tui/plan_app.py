"""The part of the application that opens devices and plans, and asks the solver while a plan is edited.

ServiceApp   models, endpoint
PlanApp      this one
DnetApp      the cluster's: events, views, loading
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import on, work
from textual.binding import Binding, BindingType

from dnet_core.errors import DnetError
from dnet_core.types.plan import Solution
from dnet_tui.keys import EVERYWHERE, Owner
from dnet_tui.screens.device import DeviceScreen
from dnet_tui.screens.plan import PlanScreen
from dnet_tui.service_app import ServiceApp
from dnet_tui.state import ClusterView
from dnet_tui.widgets.device_list import DeviceList
from dnet_tui.widgets.layer_strip import LayerStrip

PLAN_BINDINGS: list[BindingType] = [
    Binding("f12", "plan", "Plan", id="plan.open",
            tooltip="What runs where and why; change it by hand"),
]  # fmt: skip


class PlanApp(ServiceApp):
    """Its subclass has the view and loads what was chosen."""

    BINDINGS: ClassVar[list[BindingType]] = PLAN_BINDINGS

    def key_owners(self) -> Iterable[Owner]:
        yield from super().key_owners()
        yield Owner(EVERYWHERE, PlanApp)
        yield Owner("in the strip", LayerStrip)
        yield Owner("in the devices", DeviceList)
        yield Owner("in the plan", PlanScreen, is_over=True)
        yield Owner("in the view of a device", DeviceScreen, is_over=True)

    @property
    def newest_view(self) -> ClusterView:
        """What is known now, shown or not."""
        raise NotImplementedError

    def load_plan(self, plan: Solution) -> None:
        """Load the model that is loaded so that it lies as `plan` says."""
        raise NotImplementedError

    def show_in_screens(self, view: ClusterView) -> None:
        """Let the devices and plans that are open follow `view`."""
        for screen in self.screen_stack:
            if isinstance(screen, DeviceScreen | PlanScreen):
                screen.view = view

    def action_plan(self) -> None:
        self._show_plan()

    @work(exclusive=True, group="plan")
    async def _show_plan(self, leave_out: str | None = None) -> None:
        """Show the plan, without the device `leave_out`; load what it is dismissed with."""
        view = self.newest_view
        if view.solution is None:
            self.notify("Nothing has been planned yet: that happens when a model is loaded.")
            return
        screen = PlanScreen(view, view.solution, leave_out)
        chosen = await self.push_screen(screen, wait_for_dismiss=True)
        if chosen is not None:
            self.load_plan(chosen)

    @on(PlanScreen.Wanted)
    def _check_plan(self, wanted: PlanScreen.Wanted) -> None:
        self._predict(wanted)

    @work(exclusive=True, group="predict")
    async def _predict(self, wanted: PlanScreen.Wanted) -> None:
        """Ask what a placement does, from what was measured; nothing is loaded."""
        cluster = self._cluster
        if cluster is None:
            return
        try:
            if wanted.edit is not None:
                solution = await cluster.predict(wanted.edit.windows, wanted.edit.num_resident)
            else:
                solution = await cluster.replan(wanted.excluded, wanted.pins)
        except DnetError as error:
            wanted.screen.refuse(str(error))
        else:
            wanted.screen.accept(solution, wanted)

    @on(DeviceList.Opened)
    def _open_device(self, opened: DeviceList.Opened) -> None:
        self._show_device(opened.name)

    @work(exclusive=True, group="device")
    async def _show_device(self, name: str) -> None:
        leave_out = await self.push_screen(DeviceScreen(self.newest_view, name), wait_for_dismiss=True)
        if leave_out is not None:
            self._show_plan(leave_out)

    @on(DeviceList.LeftOut)
    def _plan_without(self, event: DeviceList.LeftOut) -> None:
        self._show_plan(event.name)
