"""The conversation as one widget that paints lines, the view at the newest unless the user scrolled up.

    turns   [ not rendered ............ | rendered: `first` .. ]
    lines                               [ turn | turn | turn | problem ]

One widget for all turns: a turn that grows costs its new lines and no layout, however many turns stand above.
Only the newest turns are rendered; older ones are when the view comes near them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import ClassVar

from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, MouseScrollUp, Resize
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.timer import Timer

from dnet_tui.blocks import Renderer
from dnet_tui.chat import Failed, Turn
from dnet_tui.code import code_blocks
from dnet_tui.keys import key_text, when_keys_change
from dnet_tui.look import look_of
from dnet_tui.widgets.deeds import Deed, deeds_text, do_at
from dnet_tui.widgets.selecting import selected_line, selected_text, word_at
from dnet_tui.widgets.turn import Pointer, TurnLines

NUM_RENDERED = 20
"""So many of the newest turns are rendered at first, and so many more when the view comes near their top."""
_NEAR_LINES = 3
_PAINTED_LINES = 1000  # remembered, by their number
_SLICE_S = 0.004
_SLICE_EVERY_S = 0.02
"""What need not be seen at once is done in slices, between which the loop serves others."""


class ChatLog(ScrollView, can_focus=True):
    """Shows `turns`; a turn that did not change is not touched. Focused, its keys act on one turn."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll_up", "Scroll up", id="log.up"),
        Binding("down", "scroll_down", "Scroll down", id="log.down"),
        Binding("pageup", "page_up", "Page up", id="log.page_up"),
        Binding("pagedown", "page_down", "Page down", id="log.page_down"),
        Binding("home,g", "scroll_home", "To the first turn", id="log.home"),
        Binding("end,G", "scroll_end", "To the newest turn", id="log.end"),
        Binding("k", "point(-1)", "Turn before", id="log.previous"),
        Binding("j", "point(1)", "Turn after", id="log.next"),
        Binding("enter,space", "unfold", "Show or hide what it thought", id="log.unfold"),
        Binding("e", "edit", "Edit the question and ask again", id="log.edit"),
        Binding("c", "copy_answer", "Copy this answer", id="log.copy"),
        Binding("left", "version(-1)", "The answer before this one", id="log.older"),
        Binding("right", "version(1)", "The answer after this one", id="log.newer"),
    ]

    FOCUS_ON_CLICK = False

    turns: reactive[tuple[Turn, ...]] = reactive((), init=False, repaint=False)
    spin: reactive[int] = reactive(0, init=False, repaint=False)
    problem: reactive[str | None] = reactive(None, init=False, repaint=False)
    """Why nothing can be asked."""
    unfolds: reactive[bool] = reactive(False, init=False, repaint=False)
    """Whether what was thought is shown, for all turns."""

    @dataclass
    class EditWanted(Message):
        """The question of turn `index` is to be edited and asked again."""

        index: int

    @dataclass
    class CopyWanted(Message):
        """The answer of turn `index` is to be copied, or the code in it."""

        index: int
        is_code: bool = False

    @dataclass
    class VersionWanted(Message):
        """Turn `index` is to show the answer `step` after the one it shows."""

        index: int
        step: int

    def __init__(self) -> None:
        super().__init__(id="chat")
        self._first = 0  # the turns [first, ..) are rendered
        self._lines: list[TurnLines] = []
        self._ends: list[int] = []  # where each rendered turn ends, in lines
        self._below: list[Strip] = []  # the hint or the problem, after the last turn
        self._renderer: Renderer | None = None
        self._width = 0
        self._is_at_end = True  # until somebody scrolls up; not by a view that gets shorter
        self._pointed: int | None = None  # the turn that the keys act on
        self._is_marked = False  # the pointed turn, by a click; focused, it always is
        self._painted_lines: dict[int, tuple[Strip, Style, int, Strip]] = {}
        self._polishing: Timer | None = None

    def on_mount(self) -> None:
        when_keys_change(self, self._show_below)

    def _show_below(self) -> None:
        if self._width:
            self._below = self._render_below()
            self._resized(follow=self._is_at_end)
            self.refresh()

    # --- what changes -----------------------------------------------------------------------------------

    def watch_turns(self, old: tuple[Turn, ...], new: tuple[Turn, ...]) -> None:
        if self._width == 0:
            return  # not laid out yet: the first resize renders
        num_same = self._num_same(old, new)
        if num_same < self._first or not old:
            self._render_all()
        else:
            self._replace(num_same, new)
        if len(new) != len(old):
            self._is_marked = False
        # Who asks wants to see the answer, wherever the view was.
        self._resized(follow=self._is_at_end or len(new) > len(old))

    def watch_spin(self) -> None:
        if self._lines:
            self._refresh_lines(self._start(len(self._lines) - 1) + self._lines[-1].foot_y, 1)

    def watch_problem(self) -> None:
        self._show_below()

    def watch_unfolds(self, unfolds: bool) -> None:
        for lines in self._lines:
            lines.unfold(unfolds)
        self._measure()
        self._resized(follow=self._is_at_end)
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._renderer = None
        if self._width:
            self._render_all()
            self._resized(follow=False)

    def on_resize(self, event: Resize) -> None:
        width = self.scrollable_content_region.width
        if self._is_at_end:
            self.follow()
        if width == self._width or width <= 0:
            return
        share = self.scroll_y / self.virtual_size.height if self.virtual_size.height else 0.0
        self._width = width
        self._render_all()
        self._resized(follow=self._is_at_end)
        if not self._is_at_end:
            self.scroll_to(y=share * self.virtual_size.height, animate=False)

    def _num_same(self, old: tuple[Turn, ...], new: tuple[Turn, ...]) -> int:
        """How many turns at the start are the very same."""
        same = 0
        for before, after in zip(old, new, strict=False):
            if before is not after:
                break
            same += 1
        return same

    def _replace(self, start: int, new: tuple[Turn, ...]) -> None:
        """Show `new`, whose turns before `start` are shown already."""
        first_changed: int | None = None
        del self._lines[max(len(new) - self._first, 0) :]
        for index in range(start, len(new)):
            place = index - self._first
            if place < len(self._lines):
                height = self._lines[place].height
                changed = self._start(place) + self._lines[place].update(new[index])
                if self._lines[place].height != height:
                    self._measure()
                    first_changed = changed if first_changed is None else first_changed
                else:
                    self._refresh_lines(changed, self._start(place) + height - changed)
            else:
                first_changed = self._ends[-1] if self._ends and first_changed is None else first_changed or 0
                self._lines.append(self._rendered(new[index]))
        self._measure()
        if first_changed is not None or len(new) < len(self._ends) + self._first:
            self._refresh_lines(first_changed or 0, self.virtual_size.height + self.size.height)

    def _polish_soon(self) -> None:
        if self._polishing is None and not all(lines.is_polished for lines in self._lines):
            self._polishing = self.set_timer(_SLICE_EVERY_S, self._polish)

    def _polish(self) -> None:
        self._polishing = None
        for place, lines in enumerate(self._lines):
            if not lines.is_polished:
                changed = lines.polish(_SLICE_S)
                if changed is not None:
                    self._refresh_lines(self._start(place) + changed[0], changed[1] - changed[0])
                break
        self._polish_soon()

    def _render_all(self) -> None:
        """Render the newest turns anew."""
        self._first = min(self._first, max(len(self.turns) - NUM_RENDERED, 0))
        if not self._lines or len(self.turns) - self._first > 3 * NUM_RENDERED:
            self._first = max(len(self.turns) - NUM_RENDERED, 0)
        self._lines = [self._rendered(turn) for turn in self.turns[self._first :]]
        self._measure()
        self._below = self._render_below()
        self.refresh()

    def _render_older(self) -> None:
        """Render turns above the first one that is; what is in view stays where it is."""
        if self._first == 0 or self._width == 0:
            return
        first = max(self._first - NUM_RENDERED, 0)
        older = [self._rendered(turn) for turn in self.turns[first : self._first]]
        self._first = first
        self._lines = [*older, *self._lines]
        self._measure()
        self._resized(follow=False)
        self.scroll_to(y=self.scroll_y + sum(lines.height for lines in older), animate=False)
        self.refresh()

    def _rendered(self, turn: Turn) -> TurnLines:
        return TurnLines(self._look(), self._width, turn, self._key, unfolded=self.unfolds)

    def _key(self, binding_id: str) -> str:
        return key_text(self.app, binding_id)

    def _render_below(self) -> list[Strip]:
        renderer, key = self._look(), self._key
        if self.problem is not None:
            text, style = f"✗ {self.problem}\n\n{deeds_text(self._remedies())}", renderer.look.bad
        elif not self.turns:
            text = "Ask anything. The answer comes from the devices above, nothing leaves them.\n"
            text += f"{key('prompt.send')} sends · {key('prompt.newline')} starts a new line · "
            text, style = f"{text}{key('app.help')} shows every key", renderer.look.dim
        else:
            return []
        return renderer.text(text, style, self._width, pad=1)

    def _look(self) -> Renderer:
        if self._renderer is None:
            self._renderer = Renderer(look_of(self.app.current_theme, self.app.theme_variables))
        return self._renderer

    def _measure(self) -> None:
        self._ends = list(accumulate(lines.height for lines in self._lines))

    def _resized(self, *, follow: bool) -> None:
        """Take the new number of lines, without a layout: only the scroll bar depends on it."""
        below = self._render_below() if bool(self.turns) == bool(self._below) else self._below
        if below != self._below:
            self._below = below
            self.refresh()
        size = Size(self._width, (self._ends[-1] if self._ends else 0) + len(self._below))
        if size != self.virtual_size:
            self.set_reactive(ScrollView.virtual_size, size)
            self._scroll_update(size)
        if follow:
            self.follow()
        self._polish_soon()

    def _start(self, place: int) -> int:
        return self._ends[place - 1] if place else 0

    def _refresh_lines(self, start: int, count: int) -> None:
        top = start - self.scroll_offset.y
        region = Region(0, top, self.size.width, count).intersection(self.size.region)
        if region:
            self.refresh(region)

    # --- painting ---------------------------------------------------------------------------------------

    def _find(self, y: int) -> tuple[int, int] | None:
        """The rendered turn at line `y` and the line within it."""
        place = bisect_right(self._ends, y)
        return (place, y - self._start(place)) if place < len(self._lines) else None

    def _line(self, y: int) -> Strip:
        found = self._find(y)
        if found is None:
            below = y - (self._ends[-1] if self._ends else 0)
            return self._below[below] if 0 <= below < len(self._below) else Strip.blank(0)
        place, line = found
        pointer = None
        if place + self._first == self.pointed:
            pointer = Pointer(deeds_text(self._deeds(self.turns[self.pointed])))
        return self._lines[place].line(line, self.spin, pointer)

    def _remedies(self) -> list[Deed]:
        """What can be done about `problem`."""
        models = partial(self.call_next, self.run_action, "app.models")
        again = Deed(f"{self._key('chat.again')} tries again", self._again)
        return [again, Deed(f"{self._key('model.pick')} chooses another model", models)]

    def _deeds(self, turn: Turn) -> list[Deed]:
        """What can be done with the pointed turn: by its keys while they hold, else by mouse."""

        def deed(keys: str, does: str, do: Callable[[], object]) -> Deed:
            named = " ".join(map(self._key, keys.split()))
            return Deed(f"{named} {does}" if self.has_focus else does, do)

        deeds = [
            deed("log.edit", "edits", self.action_edit),
            deed("log.copy", "copies", self.action_copy_answer),
        ]
        if turn.reply.thought is not None:
            deeds.append(deed("log.unfold", "unfolds", self.action_unfold))
        if len(turn.replies) > 1:
            deeds.append(deed("log.older", "older", partial(self.action_version, -1)))
            deeds.append(deed("log.newer", "newer", partial(self.action_version, 1)))
        if self.has_focus:
            return [*deeds, deed("log.next log.previous", "others", partial(self.action_point, -1))]
        if code_blocks(turn.answer):
            deeds.append(Deed("copies code", partial(self.action_copy_answer, is_code=True)))
        if turn is self.turns[-1] and turn.reply.is_over:
            deeds.append(Deed("answers again", self._again))
        return deeds

    def render_line(self, y: int) -> Strip:
        y += self.scroll_offset.y
        line = self._line(y)
        selection = self.text_selection
        if selection is not None and (span := selection.get_span(y)) is not None:
            line = selected_line(line, span, self.screen.get_component_rich_style("screen--selection"))
        base = self.rich_style
        return self._painted(y, line, base, self.scrollable_content_region.width)

    def _painted(self, y: int, line: Strip, base: Style, width: int) -> Strip:
        """Paint `line` at `y`: the same strip again for the same line, which remembers how it is cut."""
        known = self._painted_lines.get(y)
        if known is not None and known[0] is line and known[1:3] == (base, width):
            return known[3]
        if len(self._painted_lines) > _PAINTED_LINES:
            self._painted_lines.clear()
        strip = line.apply_style(base).crop_extend(0, width, base).apply_offsets(0, y)
        self._painted_lines[y] = (line, base, width, strip)
        return strip

    @property
    def allow_select(self) -> bool:
        return True

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        said = (turn.line(y, self.spin, None) for turn in self._lines for y in range(turn.height))
        return selected_text((*said, *self._below), selection), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    # --- scrolling --------------------------------------------------------------------------------------

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._is_at_end = self.is_vertical_scroll_end
        if new_value < old_value and new_value <= _NEAR_LINES and self._first:
            self.call_next(self._render_older)

    def _on_mouse_scroll_up(self, event: MouseScrollUp) -> None:
        if self.scroll_y <= _NEAR_LINES:
            self._render_older()
        super()._on_mouse_scroll_up(event)

    # Without animation: on its way it would pass what is rendered, and render more than is looked at.

    def action_scroll_home(self) -> None:
        self.scroll_home(animate=False)

    def action_scroll_end(self) -> None:
        self.scroll_end(animate=False)

    def action_page_up(self) -> None:
        self.scroll_page_up(animate=False)

    def action_page_down(self) -> None:
        self.scroll_page_down(animate=False)

    def follow(self) -> None:
        """Go to the newest turn and stay there."""
        self._is_at_end = True
        self.scroll_to(y=self.max_scroll_y, animate=False)

    # --- one turn ---------------------------------------------------------------------------------------

    @property
    def pointed(self) -> int | None:
        """The turn that the keys act on."""
        return self._pointed if self.has_focus or self._is_marked else None

    def on_focus(self) -> None:
        if self._pointed is None or self._pointed >= len(self.turns):
            self._pointed = len(self.turns) - 1 if self.turns else None
        self.refresh()

    def on_blur(self) -> None:
        self._is_marked = False
        self.refresh()

    def on_click(self, event: Click) -> None:
        """Mark a turn, or do what its hint says; the prompt keeps the focus. Twice: select the word."""
        event.prevent_default()  # of selecting all that was ever said
        at = event.get_content_offset(self)
        found = self._find(at.y + self.scroll_offset.y) if at is not None else None
        if at is None or self.text_selection is not None:  # a drag ends here
            return
        y = at.y + self.scroll_offset.y
        if found is None:
            is_told = self.problem is not None and self._line(y).text.strip() == deeds_text(self._remedies())
            do_at(self._remedies() if is_told else [], at.x)
            return
        if event.chain > 1:
            self.screen.selections = {self: word_at(self._line(y), Offset(at.x, y))}
            return
        place, line = found
        turn, lines = self.turns[place + self._first], self._lines[place]
        if line == lines.height - 1 and self.pointed == place + self._first:
            do_at(self._deeds(turn), at.x)
            return
        self._pointed, self._is_marked = place + self._first, True
        if lines.is_thought(line):
            self._unfold(place)
        elif line == lines.foot_y and turn is self.turns[-1] and isinstance(turn.phase, Failed):
            self._again()
        self.refresh()

    def action_point(self, step: int) -> None:
        if not self.turns:
            return
        at = self._pointed if self._pointed is not None else len(self.turns) - 1
        self._pointed = min(max(at + step, 0), len(self.turns) - 1)
        while self._pointed < self._first:
            self._render_older()
        place = self._pointed - self._first
        top, bottom = self._start(place), self._ends[place]
        if top < self.scroll_y or bottom > self.scroll_y + self.size.height:
            self.scroll_to(y=top, animate=False)
        self.refresh()

    def action_unfold(self) -> None:
        if self._pointed is not None and self._pointed >= self._first:
            self._unfold(self._pointed - self._first)

    def _unfold(self, place: int) -> None:
        self._lines[place].unfold(not self._lines[place].is_unfolded)
        self._measure()
        self._resized(follow=False)
        self.refresh()

    def action_edit(self) -> None:
        if self._pointed is not None:
            self.post_message(self.EditWanted(self._pointed))

    def action_copy_answer(self, is_code: bool = False) -> None:
        if self._pointed is not None:
            self.post_message(self.CopyWanted(self._pointed, is_code))

    def _again(self) -> None:
        self.call_next(self.run_action, "app.regenerate")

    def action_version(self, step: int) -> None:
        if self._pointed is not None:
            self.post_message(self.VersionWanted(self._pointed, step))
