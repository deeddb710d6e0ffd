"""One device in full, over the screen; what is told meanwhile goes on being shown."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.reactive import reactive
from textual.screen import ModalScreen

from dnet_tui.state import ClusterView, letters
from dnet_tui.widgets.device_facts import DeviceFacts
from dnet_tui.widgets.key_bar import Hint, KeyBar


class DeviceScreen(ModalScreen[str | None]):
    """Shows the device `name` of `view`; dismissed with a device to plan without, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "dismiss", "Close", id="device.close"),
        Binding("right,j,down", "scroll(1)", "Down", id="device.down"),
        Binding("left,k,up", "scroll(-1)", "Up", id="device.up"),
        Binding("n", "other(1)", "Next device", id="device.next"),
        Binding("p", "other(-1)", "Previous device", id="device.previous"),
        Binding("x", "leave_out", "Plan without", id="device.leave_out"),
    ]

    view: reactive[ClusterView] = reactive(ClusterView(), init=False, repaint=False)

    def __init__(self, view: ClusterView, name: str) -> None:
        super().__init__()
        self.set_reactive(DeviceScreen.view, view)
        self._device = name
        self._box = VerticalScroll(id="device-box")

    def compose(self) -> ComposeResult:
        with self._box:
            yield KeyBar(
                Hint("device.next", "next"),
                Hint("device.previous", "previous"),
                Hint("device.leave_out", "plans without"),
                Hint("device.close", "closes"),
            )

    async def on_mount(self) -> None:
        await self._show(self._device)
        self._box.focus()

    async def _show(self, name: str) -> None:
        self._device = name
        facts = DeviceFacts(name)
        facts.set_reactive(DeviceFacts.view, self.view)
        await self._box.remove_children(DeviceFacts)
        await self._box.mount(facts, before=0)
        letter = letters(self.view).get(name, "")
        self._box.border_title = f"{letter} {name}".strip()

    def watch_view(self, view: ClusterView) -> None:
        for facts in self._box.query(DeviceFacts):
            facts.view = view

    async def action_other(self, step: int) -> None:
        names = list(letters(self.view))
        if self._device in names:
            await self._show(names[(names.index(self._device) + step) % len(names)])

    def action_scroll(self, step: int) -> None:
        self._box.scroll_relative(y=step, animate=False)

    def action_leave_out(self) -> None:
        self.dismiss(self._device)
