"""The conversation: the turns, the prompt below them, and the one worker that reads an answer.

    Prompt.Sent -> a turn that waits -> (the ring can answer) a live answer -> a turn that is over

The conversation asks its owner for the ring each time it needs it; with none it says so (`NeedsModel`) and
the message waits. It knows nothing of devices, plans or loading. Every turn is saved as it begins, every few
seconds, and as it ends.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive

from dnet_core.errors import DnetError
from dnet_core.types.generation import GenerationEvent, GenerationRequest, SamplingParams
from dnet_tui.answer import LiveAnswer
from dnet_tui.chat import Answering, ChatSettings, Failed, Queued, Reading, Turn, asked, request_for
from dnet_tui.code import code_blocks
from dnet_tui.history import History, SavedChat
from dnet_tui.keys import key_text, when_keys_change
from dnet_tui.pace import Pace, Timing
from dnet_tui.record import ChatRecord
from dnet_tui.widgets.chat_log import ChatLog
from dnet_tui.widgets.prompt import Prompt
from dnet_tui.widgets.send_key import Offer, SendKey

_WHEN_READY = "sends when ready"
_WHEN_OVER = "sends when this answer ends"


class RingModel(Protocol):
    """What is known of the model that answers."""

    @property
    def model(self) -> str: ...
    @property
    def thinking_switches(self) -> tuple[str, ...]: ...
    @property
    def recommended(self) -> SamplingParams: ...


class Ring(Protocol):
    """What can answer; `loaded` is not None while it is handed out."""

    @property
    def loaded(self) -> RingModel | None: ...
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
    unfolds: reactive[bool] = reactive(False, init=False, repaint=False)
    """Whether what models thought is shown."""

    class NeedsModel(Message):
        """A message waits, or an answer is wanted again, and there is no ring."""

    def __init__(
        self,
        ring: Callable[[], Ring | None],
        settings: ChatSettings,
        timing: Timing,
        history: History | None = None,
    ) -> None:
        super().__init__(id="conversation")
        self._ring = ring
        self._defaults = settings  # how new chats ask
        self._settings = settings
        self._timing = timing
        self._record = ChatRecord(history, timing.clock)
        self._answer: LiveAnswer | None = None
        self._live = 0  # the turn that is being answered
        self._editing: int | None = None  # the turn whose question stands in the prompt
        self._draft = ""  # what stood there before
        self.num_streams = 0  # that are read or being closed: one more while a stopped answer ends
        self._num_copied = 0  # code blocks, one after the other
        self._copied_of: int | None = None  # the turn they are of
        self._stream_pace = Pace(
            self._show_answer, timing.stream_s, timing.clock, self.set_timer, self.call_after_refresh
        )
        self._chat = ChatLog()
        self.prompt = Prompt()
        self._send_key = SendKey()

    def compose(self) -> ComposeResult:
        yield self._chat
        yield self.prompt
        yield self._send_key

    def on_mount(self) -> None:
        when_keys_change(self, self._show_editing)

    @property
    def _stop_key(self) -> str:
        return key_text(self.app, "chat.stop")

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
            self._save(len(self.turns) - 1)

    # --- asking -----------------------------------------------------------------------------------------

    @property
    def _waiting(self) -> Turn | None:
        """The message that waits for its turn; there is at most one, and it is the last."""
        return self.turns[-1] if self.turns and isinstance(self.turns[-1].phase, Queued) else None

    @property
    def is_begun(self) -> bool:
        """Whether somebody has asked or written something."""
        return bool(self.turns or self.prompt.text)

    @on(Prompt.Sent)
    def _send(self, message: Prompt.Sent) -> None:
        message.stop()
        if self._waiting is not None:
            self.notify(f"One message waits already; {self._stop_key} takes it back.", severity="warning")
            return
        if self._editing is not None and self._answer is not None:
            self.notify(f"This answer is still being written; {self._stop_key} stops it.", severity="warning")
            return
        self.prompt.remember(message.text)
        self.prompt.put("")
        self._record.remember(message.text)
        if self._editing is not None:
            self._cut(self._editing)
            self._end_edit()
        why = _WHEN_READY if self._answer is None else _WHEN_OVER
        self.turns = (*self.turns, asked(message.text, Queued(why)))
        self._save(len(self.turns) - 1)
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
        self._num_copied = 0
        self._chat.follow()
        self.is_answering = True
        self._generate(ring, self._answer)

    @work(exclusive=True, group="answer")
    async def _generate(self, ring: Ring, answer: LiveAnswer) -> None:
        """Stream one answer. Cancelling this worker closes the stream, and that stops the shards."""
        model = ring.loaded
        recommended = model.recommended if model is not None else SamplingParams()
        switches = model.thinking_switches if model is not None else ()
        request = request_for(self.turns, self._settings, recommended, switches)
        self.num_streams += 1
        try:
            async with aclosing(ring.generate(request)) as events:
                async for event in events:
                    answer.hear(event)
                    if answer is self._answer:
                        self._stream_pace.ask()
        except DnetError as error:
            answer.fail(str(error))
        finally:
            self.num_streams -= 1
            if answer is self._answer:
                self._end_answer()

    def _end_answer(self) -> None:
        self._stream_pace.flush_now()
        self._answer = None
        self.is_answering = False
        self._save(self._live)
        self._send_waiting()

    # --- the history ------------------------------------------------------------------------------------

    @property
    def number(self) -> int | None:
        """The number of this chat in the history."""
        return self._record.number

    @property
    def settings(self) -> ChatSettings:
        """How this chat asks."""
        return self._settings

    @property
    def model(self) -> RingModel | None:
        """What answers; None while no model is ready."""
        ring = self._ring()
        return ring.loaded if ring is not None else None

    def take_defaults(self, settings: ChatSettings) -> None:
        """New chats ask in this way; so does this one while nothing was asked."""
        if not self.turns and self._settings == self._defaults:
            self._settings = settings
        self._defaults = settings

    def save_unfinished(self) -> None:
        """Save the answer that is being written as far as it is."""
        if self._answer is not None:
            self._answer.stop()
            self._show_answer()
            self._save(self._live)

    def configure(self, settings: ChatSettings) -> None:
        """Ask in this way from the next answer on."""
        self._settings = settings
        self._record.save_settings(settings)

    def show(self, saved: SavedChat) -> None:
        """Go on with a chat of the history; an answer that is being written is stopped."""
        self.new()
        self._record.go_on(saved.id)
        self._settings = saved.settings
        self.turns = saved.turns

    def _save(self, index: int) -> None:
        """Write turn `index` down as it is now."""
        ring = self._ring()
        model = ring.loaded.model if ring is not None and ring.loaded is not None else ""
        self._record.save(self.turns, index, model, self._settings)

    def _cut(self, num_turns: int) -> None:
        """Drop the turns from `num_turns` on; the history keeps the chat as it was if they say anything."""
        if self._record.cut(self.turns, num_turns):
            key = key_text(self.app, "chat.history")
            self.notify(f"The chat as it was stays in the history ({key}).")
        self.turns = self.turns[:num_turns]

    # --- what is shown ----------------------------------------------------------------------------------

    def _show_answer(self) -> None:
        answer = self._answer
        if answer is None:
            return
        live = self.turns[self._live].with_reply(answer.reply)
        self.turns = (*self.turns[: self._live], live, *self.turns[self._live + 1 :])
        self._chat.spin += 1
        self.speeds = answer.speeds
        if self._record.is_due:
            self._save(self._live)

    def watch_turns(self, turns: tuple[Turn, ...]) -> None:
        self._chat.turns = turns
        self._show_problem()
        self._offer_click()

    def watch_is_answering(self) -> None:
        self._offer_click()

    @on(Prompt.Changed)
    def _offer_click(self) -> None:
        is_written = bool(self.prompt.text.strip())
        self.set_class(is_written, "-written")
        can_stop = self.is_answering or self._waiting is not None or self._editing is not None
        self._send_key.offer(Offer.SEND if is_written else Offer.STOP if can_stop else None, self.size.width)

    def on_resize(self) -> None:
        self._offer_click()

    @on(SendKey.Clicked)
    def _do_clicked(self) -> None:
        if self._send_key.offered is Offer.SEND:
            self.prompt.send()
            self.prompt.focus()
        else:
            self.escape()

    def watch_problem(self) -> None:
        self.prompt.is_stuck = self.problem is not None
        self._show_problem()

    def _show_problem(self) -> None:
        told = self.turns[-1].phase if self.turns else None
        is_told = isinstance(told, Failed) and told.message == self.problem
        self._chat.problem = None if is_told else self.problem

    def watch_unfolds(self, unfolds: bool) -> None:
        self._chat.unfolds = unfolds

    def watch_is_ready(self, is_ready: bool) -> None:
        self.prompt.is_ready = is_ready

    def watch_spin(self, spin: int) -> None:
        # While tokens come, the spinner turns with them (`_show_answer`): one repaint instead of two.
        if self._answer is not None and not isinstance(self.turns[self._live].phase, Answering):
            self._chat.spin = spin

    # --- what a person does -----------------------------------------------------------------------------

    def escape(self) -> bool:
        """One step back: leave what is being edited, take a waiting message back, or stop the answer.

        Returns whether there was one.
        """
        waiting = self._waiting
        did = self._editing is not None or waiting is not None or self._answer is not None
        if self._editing is not None:
            self._end_edit()
        elif waiting is not None:  # before the answer: else it would be sent the moment that one stops
            self.turns = self.turns[:-1]
            self._record.forget(len(self.turns))
            if not self.prompt.text:
                self.prompt.put(waiting.prompt)
        elif self._answer is not None:
            self._answer.stop()
            # Show at once that the answer stopped; its worker, now cancelled, tells the shards.
            answer, self._answer = self._answer, None
            self.workers.cancel_group(self, "answer")
            self._answer = answer
            self._end_answer()
        self.prompt.focus()
        return did

    def new(self) -> None:
        """Start a new conversation; an answer that is being written is stopped and kept in the history."""
        self.save_unfinished()
        self._answer = None
        self.workers.cancel_group(self, "answer")
        self.is_answering = False
        self._end_edit()
        self._copied_of, self._num_copied = None, 0
        self._record.leave()
        self._settings = self._defaults
        self.turns = ()
        self.speeds = (None, None)
        self.prompt.focus()

    def regenerate(self) -> None:
        """Answer the last question again; without a model, ask for one."""
        ring = self._ring()
        if self._answer is not None:
            self.notify(f"This answer is still being written; {self._stop_key} stops it.", severity="warning")
        elif self.turns and ring is not None:
            self._ask(ring)
        elif self.turns or self.problem is not None:
            if self.turns and self._waiting is None:
                self.turns = (*self.turns[:-1], self.turns[-1].again(Queued(_WHEN_READY)))
            self.post_message(self.NeedsModel())
        else:
            self.notify("Nothing to answer again yet.")

    def edit(self, index: int) -> None:
        """Put the question of turn `index` into the prompt; sending it asks from there on."""
        if not 0 <= index < len(self.turns):
            self.notify("Nothing to edit yet.")
            return
        if self._editing is None:
            self._draft = self.prompt.text
        self._editing = index
        self._show_editing()
        self.prompt.put(self.turns[index].prompt)
        self.prompt.focus()

    def _show_editing(self) -> None:
        at, leaves = self._editing, f"{self._stop_key} leaves it as it is"
        if at is None:
            self.prompt.border_title = None
            return
        told = f"editing question {at + 1} · [@click=app.escape]$leaves[/]"
        self.prompt.border_title = Content.from_markup(told, leaves=leaves)

    def _end_edit(self) -> None:
        """What was being written before stands in the prompt again."""
        if self._editing is not None:
            self._editing = None
            self._show_editing()
            self.prompt.put(self._draft)

    def edit_pointed(self) -> None:
        """Edit the question that the keys act on, or the last one."""
        pointed = self._chat.pointed
        self.edit(len(self.turns) - 1 if pointed is None else pointed)

    @property
    def shows_chat(self) -> bool:
        """Whether the chat has room on the screen."""
        return self._chat.size.area > 0

    def page(self, direction: int) -> None:
        """Scroll the chat by a page, up for a negative `direction`; 0 goes to its end."""
        if direction == 0:
            self._chat.scroll_end(animate=False)
        else:
            scroll = self._chat.scroll_page_up if direction < 0 else self._chat.scroll_page_down
            scroll(animate=False)

    @on(ChatLog.EditWanted)
    def _edit_wanted(self, message: ChatLog.EditWanted) -> None:
        self.edit(message.index)

    @on(ChatLog.CopyWanted)
    def _copy_wanted(self, message: ChatLog.CopyWanted) -> None:
        (self.copy_code if message.is_code else self.copy_answer)(message.index)

    @on(ChatLog.VersionWanted)
    def _version_wanted(self, message: ChatLog.VersionWanted) -> None:
        turn = self.turns[message.index]
        shown = turn.shown + message.step
        is_live = self._answer is not None and message.index == self._live
        if is_live or not 0 <= shown < len(turn.replies):
            return
        changed = replace(turn, shown=shown)
        self.turns = (*self.turns[: message.index], changed, *self.turns[message.index + 1 :])
        self._save(message.index)

    # --- copying ----------------------------------------------------------------------------------------

    def copy_answer(self, index: int | None = None) -> None:
        """Copy the answer of turn `index`, by default of the newest that has one."""
        answers = [turn.answer for turn in self.turns]
        text = answers[index] if index is not None else next((a for a in reversed(answers) if a), "")
        self._copy(text, "The answer")

    def copy_chat(self) -> None:
        parts = [f"> {turn.prompt}".replace("\n", "\n> ") + f"\n\n{turn.answer}" for turn in self.turns]
        self._copy("\n\n".join(parts), "The chat")

    def copy_code(self, index: int | None = None) -> None:
        """Copy the newest code block, of turn `index` or of all; called again, the one before it."""
        turns = self.turns if index is None else self.turns[index : index + 1]
        blocks = [block for turn in turns for block in code_blocks(turn.answer)]
        if not blocks:
            self.notify("No code to copy yet.")
            return
        num_copied = self._num_copied if self._copied_of == index else 0
        at = num_copied % len(blocks)
        self._copied_of, self._num_copied = index, at + 1
        block = blocks[-1 - at]
        which = "" if len(blocks) == 1 else f", {at + 1} of {len(blocks)} from the end"
        lines = block.count("\n") + 1
        self._copy(block, f"Code ({lines} {'line' if lines == 1 else 'lines'}{which})")

    def _copy(self, text: str, what: str) -> None:
        if not text:
            self.notify("Nothing to copy yet.")
            return
        self.app.copy_to_clipboard(text)
        self.notify(f"{what} is copied.")
