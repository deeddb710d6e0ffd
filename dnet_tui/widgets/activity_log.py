"""What happened, newest at the bottom. `/` opens a filter, enter goes back to the lines, esc clears it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Resize
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input

from dnet_tui.activity import LogLine, Tone
from dnet_tui.keys import key_text, when_keys_change
from dnet_tui.look import Look, look_of
from dnet_tui.widgets.device_card import wrapped
from dnet_tui.widgets.paint import Piece, row
from dnet_tui.widgets.timeline import title

_INDENT = 9  # under the time stamp
_MOST_ROWS = 6  # of one line


class LogView(ScrollView, can_focus=True):
    """Paints `lines`; stays at the newest unless it was scrolled up."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll_up", "Older", id="activity.up"),
        Binding("down,j", "scroll_down", "Newer", id="activity.down"),
        Binding("pageup", "page_up", "Page up", id="activity.page_up"),
        Binding("pagedown", "page_down", "Page down", id="activity.page_down"),
        Binding("home,g", "scroll_home", "Oldest", id="activity.home"),
        Binding("end,G", "scroll_end", "Newest", id="activity.end"),
    ]

    FOCUS_ON_CLICK = False

    lines: reactive[tuple[LogLine, ...]] = reactive((), init=False, repaint=False)

    def __init__(self) -> None:
        super().__init__(id="activity-lines")
        self._painted: dict[LogLine, list[Strip]] = {}
        self._rows: list[Strip] = []
        self._follows = True  # the newest line; until it is scrolled up

    def watch_scroll_y(self, old: float, new: float) -> None:
        super().watch_scroll_y(old, new)
        if self.size.height:
            self._follows = new >= self.max_scroll_y

    def watch_lines(self) -> None:
        self._paint()

    def on_resize(self, event: Resize) -> None:
        self._painted.clear()
        self._paint()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._painted.clear()
        if self.size.width:
            self._paint()

    def _paint(self) -> None:
        width = self.scrollable_content_region.width
        if not width:
            return
        look = look_of(self.app.current_theme, self.app.theme_variables)
        known, self._painted = self._painted, {}
        self._rows = []
        for line in self.lines:
            strips = known.get(line) or _strips(line, width, look, self.rich_style)
            self._painted[line] = strips
            self._rows += strips
        self.virtual_size = Size(width, len(self._rows))
        self.refresh()
        if self._follows:
            self.call_after_refresh(self._to_newest)

    def _to_newest(self) -> None:
        if self._follows:
            self.scroll_end(animate=False, immediate=True)

    def action_scroll_home(self) -> None:
        self._follows = False
        self.scroll_home(animate=False, immediate=True)

    def action_scroll_end(self) -> None:
        self._follows = True
        self._to_newest()

    def render_line(self, y: int) -> Strip:
        index, width = y + round(self.scroll_y), self.size.width
        base = self.rich_style
        if index >= len(self._rows):
            return Strip.blank(width, base)
        return self._rows[index].crop_extend(0, width, base)


def _strips(line: LogLine, width: int, look: Look, base: Style) -> list[Strip]:
    tone = {Tone.PLAIN: look.text, Tone.GOOD: look.text, Tone.BAD: look.bad}[line.tone]
    mark = {Tone.PLAIN: " ", Tone.GOOD: "✓", Tone.BAD: "✗"}[line.tone]
    color = Style(color=look.success.rich_color) if line.tone is Tone.GOOD else tone
    strips = []
    for index, text in enumerate(wrapped(line.text, max(8, width - _INDENT - 2), _MOST_ROWS)):
        first: list[Piece] = [(f"{line.at:%H:%M:%S} ", look.dim), (f"{mark} ", color)]
        strips.append(
            row([*(first if index == 0 else [(" " * (_INDENT + 2), base)]), (text, tone)], width, base)
        )
    return strips


class LogTitle(Widget):
    """The heading, as those of the other panels; `right` says what a key, or a click, does."""

    DEFAULT_CSS = "LogTitle { height: 1; pointer: pointer; }"

    right: reactive[str] = reactive("", init=False)
    is_here: reactive[bool] = reactive(False, init=False)
    """Whether the focus is in the lines or the filter."""

    @dataclass
    class Clicked(Message):
        pass

    def render_line(self, y: int) -> Strip:
        look = look_of(self.app.current_theme, self.app.theme_variables)
        width = self.size.width
        name = "▸ Activity" if self.is_here else "Activity"
        return row(title(name, self.right, width, look), width, self.rich_style)

    def on_click(self) -> None:
        self.post_message(self.Clicked())


class ActivityLog(Vertical):
    """The lines with their heading and the filter."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "slash", "filter", "Filter", id="activity.filter", tooltip="Show only lines with these words"
        ),
        Binding("escape", "clear", "All lines", id="activity.clear"),
    ]

    lines: reactive[tuple[LogLine, ...]] = reactive((), init=False, repaint=False)

    def __init__(self) -> None:
        super().__init__(id="activity")
        self._title = LogTitle()
        self._view = LogView()
        self._filter = Input(placeholder="only lines with …", id="activity-filter", compact=True)

    def compose(self) -> ComposeResult:
        yield self._title
        yield self._view
        yield self._filter

    def on_mount(self) -> None:
        self._filter.display = False
        self._show()
        when_keys_change(self, self._show)

    def watch_lines(self) -> None:
        if self.is_mounted:
            self._show()

    def on_descendant_focus(self) -> None:
        self._title.is_here = self.has_focus_within
        self._show()

    def on_descendant_blur(self) -> None:
        self.on_descendant_focus()

    @on(Input.Changed, "#activity-filter")
    def _narrow(self, event: Input.Changed) -> None:
        event.stop()
        self._show()

    @on(Input.Submitted, "#activity-filter")
    def _back_to_lines(self, event: Input.Submitted) -> None:
        event.stop()
        self._view.focus()

    def _show(self) -> None:
        wanted = self._filter.value if self._filter.display else ""
        shown = tuple(line for line in self.lines if line.matches(wanted)) if wanted else self.lines
        self._view.lines = shown
        if wanted:
            clear = key_text(self.app, "activity.clear")
            self._title.right = f"{len(shown)} of {len(self.lines)} · {clear} shows all"
        else:
            comes = "" if self._title.is_here else "tab comes here, "
            self._title.right = f"{comes}{key_text(self.app, 'activity.filter')} filters"

    @on(LogTitle.Clicked)
    def _click_title(self) -> None:
        if self._filter.display:
            self.action_clear()
            self.call_next(self.run_action, "app.focus('prompt')")
        else:
            self.action_filter()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self._filter.display if action == "clear" else True

    def action_filter(self) -> None:
        self._filter.display = True
        self._filter.focus()
        self.refresh_bindings()

    def action_clear(self) -> None:
        """Show every line again."""
        self._filter.value = ""
        self._filter.display = False
        self._show()
        self._view.focus()
        self.refresh_bindings()
