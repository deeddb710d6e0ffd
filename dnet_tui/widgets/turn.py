"""One turn of the chat as a single widget: question, answer, and a dim line that says how it went.

One widget per turn, live or finished, because the cost of a screen follows its mounted widgets. Lines are
painted from cached strips; the ticking line at the bottom never makes the answer be rendered again.
"""

from __future__ import annotations

from typing import assert_never

from rich.style import Style
from textual.geometry import Region, Size
from textual.reactive import reactive
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from dnet_tui.chat import Answering, Failed, Finished, Phase, Queued, Reading, Recovering, Stopped, Turn
from dnet_tui.look import look_of
from dnet_tui.prose import Prose, Renderer
from dnet_tui.units import count_text, seconds_text
from dnet_tui.widgets.paint import Piece, row

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_INDENT = 1


class TurnWidget(Widget):
    """Paints `turn`; `spin` advances the spinner of a live one."""

    DEFAULT_CSS = "TurnWidget { height: auto; margin-bottom: 1; }"

    turn: reactive[Turn] = reactive(Turn("", "", Queued("")), init=False, repaint=False)
    spin: reactive[int] = reactive(0, init=False, repaint=False)

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self.set_reactive(TurnWidget.turn, turn)
        self._renderer: Renderer | None = None
        self._width = 0
        self._question: list[Strip] = []
        self._prose: Prose | None = None
        self._problem: list[Strip] = []

    # --- what changes -----------------------------------------------------------------------------

    def watch_turn(self, old: Turn, new: Turn) -> None:
        if self._prose is None:
            self.refresh(layout=True)
            return
        height, settled = self._num_lines, len(self._question) + self._prose.num_settled
        if new.prompt != old.prompt or not new.answer.startswith(old.answer) or (new.is_over > old.is_over):
            self._render_all(self._width)  # at the end once in full: late link definitions reach back
            settled = 0
        else:
            self._prose.append(new.answer[len(old.answer) :])
            self._problem = self._render_problem()
        if self._num_lines != height:
            self.refresh(layout=True)
        else:
            self.refresh(Region(0, settled, self.size.width, height - settled))

    def watch_spin(self) -> None:
        if self._prose is not None:
            self.refresh(Region(0, self._num_lines - 1, self.size.width, 1))

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._renderer = None
        self._prose = None

    # --- lines ------------------------------------------------------------------------------------

    @property
    def _num_lines(self) -> int:
        prose = self._prose.num_strips if self._prose is not None else 0
        return len(self._question) + prose + len(self._problem) + 1

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        if width != self._width or self._prose is None:
            self._render_all(width)
        return self._num_lines

    def _render_all(self, width: int) -> None:
        if self._renderer is None:
            self._renderer = Renderer(look_of(self.app.current_theme, self.app.theme_variables))
        look = self._renderer.look
        self._width = width
        raised = Style(color=look.foreground.rich_color, bgcolor=look.raised.rich_color, bold=look.is_ansi)
        self._question = self._renderer.text(self.turn.prompt, raised, width, pad=_INDENT)
        self._prose = Prose(self._renderer, width - 2 * _INDENT)
        if self.turn.answer:
            self._prose.append(self.turn.answer)
        self._problem = self._render_problem()

    def _render_problem(self) -> list[Strip]:
        if self._renderer is None or not isinstance(self.turn.phase, Failed):
            return []
        return self._renderer.text(self.turn.phase.message, self._renderer.look.bad, self._width, pad=_INDENT)

    def _line(self, y: int) -> Strip:
        assert self._prose is not None, "a line is painted after the layout"
        if y < len(self._question):
            return self._question[y]
        y -= len(self._question)
        if y < self._prose.num_strips:
            return Strip([*Strip.blank(_INDENT), *self._prose.strip(y)])
        y -= self._prose.num_strips
        if y < len(self._problem):
            return self._problem[y]
        return self._foot() if y == len(self._problem) else Strip.blank(0)

    def _foot(self) -> Strip:
        assert self._renderer is not None, "a line is painted after the layout"
        look = self._renderer.look
        spinner = SPINNER[self.spin % len(SPINNER)]
        pieces: list[Piece] = [(" " * _INDENT, Style())]
        style = look.bad if isinstance(self.turn.phase, Failed) else look.dim
        pieces.append((phase_text(self.turn.phase, spinner), style))
        return row(pieces, self._width, Style())

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if self._prose is None:
            self._render_all(width)
        line = self._line(y)
        selection = self.text_selection
        if selection is not None and (span := selection.get_span(y)) is not None:
            line = _selected(line, span, self.screen.get_component_rich_style("screen--selection"))
        base = self.rich_style
        return line.apply_style(base).crop_extend(0, width, base).apply_offsets(0, y)

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        text = "\n".join(self._line(y).text.rstrip() for y in range(self._num_lines))
        return selection.extract(text), "\n"


def _selected(line: Strip, span: tuple[int, int], style: Style) -> Strip:
    start, end = span
    length = line.cell_length
    end = length if end == -1 else min(end, length)
    if start >= end:
        return line
    middle = Strip(
        segment._replace(style=(segment.style or Style()) + style) for segment in line.crop(start, end)
    )
    return Strip.join([line.crop(0, start), middle, line.crop(end, length)])


def phase_text(phase: Phase, spinner: str) -> str:
    """Say in one line how a turn stands."""
    match phase:
        case Queued(why=why):
            return f"◷ {why}"
        case Reading(done_tokens=done, total_tokens=None):
            return f"{spinner} reading prompt · esc stops"
        case Reading(done_tokens=done, total_tokens=total):
            assert total is not None, "the case above"
            return f"{spinner} reading prompt {count_text(done)}/{count_text(total)} tok · esc stops"
        case Answering(num_tokens=n, tokens_per_s=rate):
            speed = f" · {rate:.1f} tok/s" if rate is not None else ""
            return f"{spinner} {n} tok{speed} · esc stops"
        case Recovering(lost=lost, num_tokens=n):
            return f"{spinner} {lost} left after {n} tok · the others take over its layers · esc stops"
        case Finished(done=done_event):
            parts = [f"✓ {done_event.completion_tokens} tok"]
            if done_event.decode_tokens_per_s is not None:
                parts.append(f"{done_event.decode_tokens_per_s:.1f} tok/s")
            if done_event.ttft_s is not None:
                parts.append(f"first token {seconds_text(done_event.ttft_s)}")
            if done_event.finish_reason == "length":
                parts.append("cut at the token limit")
            return " · ".join(parts)
        case Stopped(num_tokens=0):
            return "■ stopped before the first token"
        case Stopped(num_tokens=n):
            return f"■ stopped after {n} tok"
        case Failed(num_tokens=n):
            return f"✗ failed after {n} tok · ctrl+r tries again" if n else "✗ no answer · ctrl+r tries again"
        case _:
            assert_never(phase)
