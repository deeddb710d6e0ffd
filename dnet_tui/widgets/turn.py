"""One turn of the chat as lines: question, what the model thought, answer, and a dim line on how it went.

question          raised, one line or more
▸ thought 12 s    one line; what was thought below it when it is unfolded
answer            Markdown, which grows at its end
✓ 211 tok · ...   painted at every tick, without the answer being rendered again
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from dnet_tui.blocks import Renderer
from dnet_tui.chat import (
    Answering,
    Failed,
    Finished,
    Phase,
    Queued,
    Reading,
    Recovering,
    Reply,
    Stopped,
    Turn,
)
from dnet_tui.look import fg
from dnet_tui.prose import Prose
from dnet_tui.units import count_text, seconds_text
from dnet_tui.widgets.paint import row

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_INDENT = 1
_SPARE_INDENTS = 200


@dataclass(frozen=True, slots=True)
class Pointer:
    """Marks the turn that the keys act on; `hint` says which, below it."""

    hint: str


class TurnLines:
    """The lines of one turn at one width. Owned by the chat log. `key` tells which key does what."""

    def __init__(
        self, renderer: Renderer, width: int, turn: Turn, key: Callable[[str], str], *, unfolded: bool
    ) -> None:
        self._renderer = renderer
        self._width = width
        self._key = key
        self.turn = turn
        self._unfolded = unfolded
        self._indents: dict[int, tuple[Strip, Strip]] = {}
        self._render_all()

    # --- what changes -----------------------------------------------------------------------------------

    def update(self, turn: Turn) -> int:
        """Show `turn`; return the first line that changed."""
        old, self.turn = self.turn, turn
        if not _continues(old, turn):
            self._render_all()
            return 0
        reply = turn.reply
        same_thought = reply.thought == old.reply.thought and _thought_text(reply) == _thought_text(old.reply)
        changed = self.height if same_thought else len(self._question)
        self._thought_lines = self._render_thought()
        grown = self._prose.append(reply.text[len(old.reply.text) :])
        if reply.is_over and not old.reply.is_over:
            grown = min(grown, self._prose.finish())
        changed = min(changed, self._prose_start + grown)
        self._problem = self._render_problem()
        return min(changed, self.foot_y)

    @property
    def is_polished(self) -> bool:
        return self._prose.is_polished

    def polish(self, seconds: float) -> tuple[int, int] | None:
        """Go on with what need not be seen at once; return the lines `[start, stop)` that changed, if any."""
        changed = self._prose.polish(seconds)
        return None if changed is None else (self._prose_start + changed[0], self._prose_start + changed[1])

    def unfold(self, unfolded: bool) -> None:
        """Show what was thought, or only that something was."""
        if unfolded != self._unfolded:
            self._unfolded = unfolded
            self._thought_lines = self._render_thought()

    @property
    def is_unfolded(self) -> bool:
        return self._unfolded

    # --- lines ------------------------------------------------------------------------------------------

    @property
    def height(self) -> int:
        """Lines of this turn, an empty one at its end included."""
        return self._prose_start + self._prose.num_strips + len(self._problem) + self._gap + 2

    @property
    def foot_y(self) -> int:
        """The line that ticks."""
        return self.height - 2

    def is_thought(self, y: int) -> bool:
        """Whether line `y` is the one that tells of thoughts."""
        return self.turn.reply.thought is not None and y == len(self._question)

    def line(self, y: int, spin: int, pointer: Pointer | None) -> Strip:
        """Line `y` of `[0, height)`; `pointer` is for the turn that the keys act on."""
        look = self._renderer.look
        margin = Segment("▎" if pointer is not None else " ", Style(color=look.accent.rich_color))
        if y < len(self._question):
            if pointer is None:
                return self._question[y]
            strip = self._question[y]
            ground = Style(bgcolor=None if look.is_ansi else look.raised.rich_color)
            return Strip(
                [margin._replace(style=ground + Style(color=look.accent.rich_color)), *strip.crop(1)]
            )
        rest = y - len(self._question)
        if rest < len(self._thought_lines):
            return Strip([margin, *self._thought_lines[rest]])
        rest -= len(self._thought_lines)
        if rest < self._prose.num_strips:
            strip = self._prose.strip(rest)
            return Strip([margin, *strip]) if pointer is not None else self._indented(strip, margin)
        rest -= self._prose.num_strips
        if rest < len(self._problem):
            return self._problem[rest]
        if rest == len(self._problem) + self._gap:
            return self._foot(spin, margin)
        if rest < len(self._problem) + self._gap:
            return Strip([margin])
        if pointer is None:
            return Strip.blank(0)
        return row([(margin.text, margin.style or Style()), (pointer.hint, look.dim)], self._width, Style())

    def _indented(self, strip: Strip, margin: Segment) -> Strip:
        """`strip` behind `margin`; the same strip for the same one, so that what is painted is remembered."""
        found = self._indents.get(id(strip))
        if found is None:
            if len(self._indents) > 2 * self.height + _SPARE_INDENTS:
                self._indents.clear()  # of lines that have grown since
            # The second strip is kept only so that its id is not given to another one.
            found = self._indents[id(strip)] = (Strip([margin, *strip]), strip)
        return found[0]

    def text(self, y: int) -> str:
        return self.line(y, 0, None).text.rstrip()

    # --- rendering --------------------------------------------------------------------------------------

    @property
    def _gap(self) -> int:
        """Empty lines between the answer and its foot."""
        return 1 if self._prose.num_strips or self._problem else 0

    @property
    def _prose_start(self) -> int:
        return len(self._question) + len(self._thought_lines)

    def _render_all(self) -> None:
        look, reply = self._renderer.look, self.turn.reply
        raised = Style(color=look.foreground.rich_color, bgcolor=look.raised.rich_color, bold=look.is_ansi)
        self._question = self._renderer.text(self.turn.prompt, raised, self._width, pad=_INDENT)
        self._thought_prose = Prose(self._renderer, self._width - 2 * _INDENT - 2)
        self._num_thought_chars = 0  # of the thought, in `_thought_prose`
        self._thought_lines = self._render_thought()
        self._prose = Prose(self._renderer, self._width - 2 * _INDENT)
        self._indents.clear()
        if reply.is_over:
            self._prose.show(reply.text)
        else:
            self._prose.append(reply.text)
        self._problem = self._render_problem()

    def _render_thought(self) -> list[Strip]:
        reply, dim = self.turn.reply, self._renderer.look.dim
        if reply.thought is None:
            return []
        sign = "▾" if self._unfolded else "▸"
        head = Strip([Segment(f"{sign} {_thought_text(reply)}", dim)])
        if not self._unfolded:
            return [head]
        self._thought_prose.append(reply.thought.text[self._num_thought_chars :])
        self._thought_prose.polish()
        self._num_thought_chars = len(reply.thought.text)
        bar = Segment("│ ", dim)
        body = [Strip([bar, *s.apply_style(dim)]) for s in self._thought_prose.strips]
        return [head, *body, Strip.blank(0)]

    def _render_problem(self) -> list[Strip]:
        """What happened to the ring meanwhile, and why there is no more."""
        look, lines = self._renderer.look, list[Strip]()
        for note in self.turn.reply.notes:
            lines += self._renderer.text(f"↻ {note}", fg(look.vivid(look.warning)), self._width, pad=_INDENT)
        if isinstance(self.turn.phase, Failed):
            lines += self._renderer.text(self.turn.phase.message, look.bad, self._width, pad=_INDENT)
        return lines

    def _foot(self, spin: int, margin: Segment) -> Strip:
        look = self._renderer.look
        text = phase_text(self.turn.phase, SPINNER[spin % len(SPINNER)], self._key)
        if len(self.turn.replies) > 1:
            text += f" · answer {self.turn.shown + 1} of {len(self.turn.replies)}"
        style = look.bad if isinstance(self.turn.phase, Failed) else look.dim
        return row([(margin.text, margin.style or Style()), (text, style)], self._width, Style())


def _continues(old: Turn, new: Turn) -> bool:
    """Whether `new` is `old` with more at its end."""
    return (
        new.prompt == old.prompt
        and new.shown == old.shown
        and len(new.replies) == len(old.replies)
        and new.reply.text.startswith(old.reply.text)
        and (old.reply.thought is None or new.reply.thought is not None)
        and not (old.reply.is_over and len(new.reply.text) > len(old.reply.text))
    )


def _thought_text(reply: Reply) -> str:
    if reply.thought is None:
        return ""
    is_thinking = not reply.text and not reply.is_over
    word = "thinking" if is_thinking else "thought"
    return f"{word} {seconds_text(reply.thought.seconds)} · {count_text(reply.thought.num_tokens)} tok"


def phase_text(phase: Phase, spinner: str, key: Callable[[str], str]) -> str:
    """Say in one line how a turn stands, and which key can change that."""
    stops = f"{key('chat.stop')} stops"
    match phase:
        case Queued(why=why):
            return f"◷ {why} · {key('chat.stop')} takes it back"
        case Reading(total_tokens=None):
            return f"{spinner} reading prompt · {stops}"
        case Reading(done_tokens=done, total_tokens=total, left_s=left_s):
            assert total is not None, "the case above"
            left = f" · {seconds_text(left_s)} left" if left_s is not None else ""
            return f"{spinner} reading prompt {count_text(done)}/{count_text(total)} tok{left} · {stops}"
        case Answering(num_tokens=n, tokens_per_s=rate):
            speed = f" · {rate:.1f} tok/s" if rate is not None else ""
            return f"{spinner} {n} tok{speed} · {stops}"
        case Recovering(is_back=is_back):
            what = "it is given layers again" if is_back else "the others take over its layers"
            return f"{spinner} {phase.why} · {what} · {stops}"
        case Finished(done=done_event):
            parts = [f"✓ {done_event.completion_tokens} tok"]
            if done_event.decode_tokens_per_s is not None:
                parts.append(f"{done_event.decode_tokens_per_s:.1f} tok/s")
            if done_event.ttft_s is not None:
                parts.append(f"first token {seconds_text(done_event.ttft_s)}")
            if done_event.cached_tokens:
                parts.append(f"{count_text(done_event.cached_tokens)} tok cached")
            if done_event.finish_reason == "length":
                parts.append("cut at the token limit")
            return " · ".join(parts)
        case Stopped(num_tokens=0):
            return "■ stopped before the first token"
        case Stopped(num_tokens=n):
            return f"■ stopped after {n} tok"
        case Failed(num_tokens=n):
            failed = f"failed after {n} tok" if n else "no answer"
            return f"✗ {failed} · {key('chat.again')} tries again"
        case _:
            assert_never(phase)
