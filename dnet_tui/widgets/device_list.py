"""The devices: cards beside the chat, two lines each or one where they are many; a table where it is wide.

j k up down choose, enter or a click opens, x plans without the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Region
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from dnet_tui.figures import device_figures
from dnet_tui.keys import key_text, when_keys_change
from dnet_tui.look import Look
from dnet_tui.state import Loading
from dnet_tui.widgets.device_card import Card, table_heading, table_row
from dnet_tui.widgets.panel import Line, Panel

_TABLE_WIDTH = 60
"""From this width on devices are rows of a table."""
_MOST_CARDS, _MOST_TWO_LINES = 5, 12
_MOST_ABOVE_HINT = 6
"""So many rows of the table leave room for what its keys do, on 24 lines."""


class DeviceList(Panel, can_focus=True):
    """Paints the devices of `view`; `cursor` is the chosen one while it has the focus."""

    DEFAULT_CSS = "DeviceList { height: auto; pointer: pointer; }"
    FOCUS_ON_CLICK = False

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Device above", id="devices.up"),
        Binding("down,j", "move(1)", "Device below", id="devices.down"),
        Binding("home,g", "move(-1000)", "First device", id="devices.first"),
        Binding("end,G", "move(1000)", "Last device", id="devices.last"),
        Binding("enter", "open", "Open", id="devices.open", tooltip="Everything known of the device"),
        Binding("x", "leave_out", "Plan without", id="devices.leave_out", tooltip="Plan without the device"),
    ]

    cursor: reactive[int] = reactive(0, init=False, repaint=False)
    now_s: reactive[float] = reactive(0.0, init=False, repaint=False)
    """By the clock of what is on its way; painted when something has stalled, of which no event tells."""

    @dataclass
    class Opened(Message):
        """A device is to be shown in full."""

        name: str

    @dataclass
    class LeftOut(Message):
        """A plan without this device is to be shown."""

        name: str

    def __init__(self, id: str | None = None) -> None:  # noqa: A002  as Widget calls it
        super().__init__(id)
        self._spans: list[tuple[str, int, int]] = []  # name, first line, line after the last

    def lines(self, width: int, room: int, look: Look) -> list[Line]:
        figures = device_figures(self.view)
        self._spans = []
        if not figures:
            return [[("  no devices yet", look.dim)]]
        longest_s = max((f.split.total_s for f in figures if f.split is not None), default=0.0)
        chosen = min(self.cursor, len(figures) - 1) if self.has_focus else -1
        cards = [Card(f, longest_s, look, selected=f.index == chosen, now_s=self.now_s) for f in figures]
        form = _form(len(cards), width, room)
        lines = [table_heading(width, look)] if width >= _TABLE_WIDTH else []
        apart = form is Card.two_lines and 3 * len(cards) <= room
        for card in cards:
            painted = form(card, width)
            self._spans.append((card.figures.name, len(lines), len(lines) + len(painted)))
            lines += [*painted, []] if apart else painted
        has_room = len(cards) <= _MOST_ABOVE_HINT if width >= _TABLE_WIDTH else len(lines) + 2 <= room
        if has_room and (self.has_focus or width >= _TABLE_WIDTH):
            lines += [[], [(self._hint(), look.dim)]]
        return lines

    def _hint(self) -> str:
        if not self.has_focus:
            return "tab comes here, to choose a device"
        key = partial(key_text, self.app)
        moves = f"{key('devices.down')} {key('devices.up')} others"
        return f"{key('devices.open')} opens · {key('devices.leave_out')} plans without · {moves}"

    def on_mount(self) -> None:
        when_keys_change(self, self.repaint)

    # --- choosing ---------------------------------------------------------------------------------------

    @property
    def chosen(self) -> str | None:
        """The device under the cursor."""
        if not self._spans:
            return None
        return self._spans[min(self.cursor, len(self._spans) - 1)][0]

    def on_focus(self) -> None:
        self.repaint()

    def on_blur(self) -> None:
        self.repaint()

    def watch_cursor(self) -> None:
        self.repaint()
        if self._spans and isinstance(self.parent, Widget):
            _, first, stop = self._spans[min(self.cursor, len(self._spans) - 1)]
            self.parent.scroll_to_region(Region(0, first, 1, stop - first), animate=False)

    def watch_now_s(self, now_s: float) -> None:
        model = self.view.model
        on_the_way = (*model.fetches.values(), *model.progress.values()) if isinstance(model, Loading) else ()
        if any(transfer.is_stalled(now_s) for transfer in on_the_way):
            self.repaint()

    def action_move(self, step: int) -> None:
        self.cursor = max(0, min(len(self._spans) - 1, self.cursor + step))

    def action_open(self) -> None:
        if self.chosen is not None:
            self.post_message(self.Opened(self.chosen))

    def action_leave_out(self) -> None:
        if self.chosen is not None:
            self.post_message(self.LeftOut(self.chosen))

    def on_click(self, event: Click) -> None:
        y = event.get_content_offset_capture(self).y
        for index, (name, first, stop) in enumerate(self._spans):
            if first <= y < stop:
                self.cursor = index
                self.post_message(self.Opened(name))


def _form(count: int, width: int, room: int) -> Callable[[Card, int], list[Line]]:
    """The roomiest form in which `count` devices fit `room` lines."""
    if width >= _TABLE_WIDTH:
        return lambda card, cells: [table_row(card, cells)]
    if count > _MOST_TWO_LINES:
        return lambda card, cells: [card.narrow_row(cells)]
    if count > _MOST_CARDS:
        return Card.two_lines
    if count * 8 <= room:
        return lambda card, cells: card.bordered(cells, tall=True)
    if count * 7 <= room:
        return lambda card, cells: card.bordered(cells, tall=False)
    if count * 6 <= room:
        return lambda card, cells: card.plain(cells, tall=False)
    return Card.two_lines
