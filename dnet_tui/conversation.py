"""The conversation: the turns, the prompt below them, and the one worker that reads an answer.

    Prompt.Sent -> a turn that waits -> (the ring can answer) a live answer -> a turn that is over

The conversation asks its owner for the ring each time it needs it; with none it says so (`NeedsModel`) and
the message waits. It knows nothing of devices, plans or loading.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Protocol

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.reactive import reactive

from dnet_core.errors import DnetError
from dnet_core.types.generation import GenerationEvent, GenerationRequest
from dnet_tui.answer import LiveAnswer
from dnet_tui.chat import Answering, ChatSettings, Failed, Queued, Reading, Turn, asked, request_for
from dnet_tui.pace import Pace, Timing
from dnet_tui.widgets.chat_log import ChatLog
from dnet_tui.widgets.prompt import Prompt

_WHEN_READY = "sends when ready · esc takes it back"
_WHEN_OVER = "sends when this answer ends · esc takes it back"


class Ring(Protocol):
    """What can answer."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]: ...


class Conversation(Vertical):
    """Chat and prompt. `ring` returns what can answer now, None while no model is ready."""

    turns: reactive[tuple[Turn, ...]] = reactive((), init=False, repaint=False)
    is_ready: reactive[bool] = reactive(False, init=False, repaint=False)
    """Whether a model is loaded; decides what the empty prompt says."""
    problem: reactive[str | None] = reactive(None, init=False, repaint=False)
    """Why nothing can be asked; told in the chat unless the last turn tells it."""
    speeds: reactive[tuple[float | None, float | None]] = reactive((None, None), init=False, repaint=False)
    """(time to first token in seconds, tokens per second) of the newest answer."""
    is_answering: reactive[bool] = reactive(False, init=False, repaint=False)
    spin: reactive[int] = reactive(0, init=False, repaint=False)

    class NeedsModel(Message):
        """A message waits, or an answer is wanted again, and there is no ring."""

    def __init__(self, ring: Callable[[], Ring | None], settings: ChatSettings, timing: Timing) -> None:
        super().__init__(id="conversation")
        self._ring = ring
        self._settings = settings
        self._timing = timing
        self._answer: LiveAnswer | None = None
        self._live = 0  # the turn that is being answered
        self._stream_pace = Pace(
            self._show_answer, timing.stream_s, timing.clock, self.set_timer, self.call_after_refresh
        )
        self._chat = ChatLog()
        self.prompt = Prompt(blink=timing.blink)

    def compose(self) -> ComposeResult:
        yield self._chat
        yield self.prompt

    # --- what its owner tells it ------------------------------------------------------------------------

    def resume(self) -> None:
        """The ring can answer: send what waits for it."""
        if self._answer is None:
            self._send_waiting()

    def refuse(self, message: str) -> None:
        """There will be no model: say why in the turn that waits for it, if there is one."""
        waiting = self._waiting
        if waiting is not None:
            self.turns = (*self.turns[:-1], waiting.with_phase(Failed(message, 0)))

    # --- asking -----------------------------------------------------------------------------------------

    @property
    def _waiting(self) -> Turn | None:
        """The message that waits for its turn; there is at most one, and it is the last."""
        return self.turns[-1] if self.turns and isinstance(self.turns[-1].phase, Queued) else None

    @on(Prompt.Sent)
    def _send(self, message: Prompt.Sent) -> None:
        message.stop()
        if self._waiting is not None:
            self.notify("One message waits already; esc takes it back.", severity="warning")
            return
        self.prompt.remember(message.text)
        self.prompt.put("")
        why = _WHEN_READY if self._answer is None else _WHEN_OVER
        self.turns = (*self.turns, asked(message.text, Queued(why)))
        self.resume()

    def _send_waiting(self) -> None:
        """Send the waiting message if the ring can take it, else ask for a model."""
        if self._waiting is None:
            return
        ring = self._ring()
        if ring is not None:
            self._ask(ring)
        else:
            self.post_message(self.NeedsModel())

    def _ask(self, ring: Ring) -> None:
        """Ask `ring` for the answer to the last turn."""
        self.turns = (*self.turns[:-1], self.turns[-1].again(Reading(0, None, None)))
        self._answer = LiveAnswer(self._timing.clock)
        self._live = len(self.turns) - 1
        self._chat.anchor()
        self.is_answering = True
        self._generate(ring, self._answer)

    @work(exclusive=True, group="answer")
    async def _generate(self, ring: Ring, answer: LiveAnswer) -> None:
        """Stream one answer. Cancelling this worker closes the stream, and that stops the shards."""
        try:
            async with aclosing(ring.generate(request_for(self.turns, self._settings))) as events:
                async for event in events:
                    answer.hear(event)
                    if answer is self._answer:
                        self._stream_pace.ask()
        except DnetError as error:
            answer.fail(str(error))
        finally:
            if answer is self._answer:
                self._end_answer()

    def _end_answer(self) -> None:
        self._stream_pace.flush_now()
        self._answer = None
        self.is_answering = False
        self._send_waiting()

    # --- what is shown ----------------------------------------------------------------------------------

    def _show_answer(self) -> None:
        answer = self._answer
        if answer is None:
            return
        live = self.turns[self._live].with_reply(answer.reply)
        self.turns = (*self.turns[: self._live], live, *self.turns[self._live + 1 :])
        self._chat.spin += 1
        self.speeds = answer.speeds

    def watch_turns(self, turns: tuple[Turn, ...]) -> None:
        self._chat.turns = turns
        self._show_problem()

    def watch_problem(self) -> None:
        self._show_problem()

    def _show_problem(self) -> None:
        told = self.turns[-1].phase if self.turns else None
        is_told = isinstance(told, Failed) and told.message == self.problem
        self._chat.problem = None if is_told else self.problem

    def watch_is_ready(self, is_ready: bool) -> None:
        self.prompt.is_ready = is_ready

    def watch_spin(self, spin: int) -> None:
        # While tokens come, the spinner turns with them (`_show_answer`): one repaint instead of two.
        if self._answer is not None and not isinstance(self.turns[self._live].phase, Answering):
            self._chat.spin = spin

    # --- what a person does -----------------------------------------------------------------------------

    def escape(self) -> None:
        """Take a waiting message back, stop the answer, go to the prompt."""
        waiting = self._waiting
        if waiting is not None:  # first: else it would be sent the moment the answer stops
            self.turns = self.turns[:-1]
            if not self.prompt.text:
                self.prompt.put(waiting.prompt)
        if self._answer is not None:
            self._answer.stop()
            # Show at once that the answer stopped; its worker, now cancelled, tells the shards.
            answer, self._answer = self._answer, None
            self.workers.cancel_group(self, "answer")
            self._answer = answer
            self._end_answer()
        self.prompt.focus()

    def new(self) -> None:
        """Start a new conversation; an answer that is being written is stopped."""
        self._answer = None
        self.workers.cancel_group(self, "answer")
        self.is_answering = False
        self.turns = ()
        self.speeds = (None, None)
        self.prompt.focus()

    def regenerate(self) -> None:
        """Answer the last question again; without a model, ask for one."""
        ring = self._ring()
        if self._answer is not None:
            self.notify("This answer is still being written; esc stops it.", severity="warning")
        elif self.turns and ring is not None:
            self._ask(ring)
        elif self.problem is not None:
            if self.turns and self._waiting is None:
                self.turns = (*self.turns[:-1], self.turns[-1].again(Queued(_WHEN_READY)))
            self.post_message(self.NeedsModel())
        else:
            self.notify("Nothing to answer again yet.")

    @property
    def shows_chat(self) -> bool:
        """Whether the chat has room on the screen."""
        return self._chat.size.area > 0

    def page(self, direction: int) -> None:
        """Scroll the chat by a page, up for a negative `direction`."""
        scroll = self._chat.scroll_page_up if direction < 0 else self._chat.scroll_page_down
        scroll(animate=False)
