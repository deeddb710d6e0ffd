"""The application: coordinator events become a frozen view, the view becomes pixels; keys become calls.

    cluster --events--> fold --ClusterView--> status line, layer strip, devices
    cluster --tokens--> the live turn -------> chat log

Only this file talks to the coordinator, and only in workers: no handler ever waits for the network.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, assert_never

from textual import on, work
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.reactive import reactive
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Footer, Static
from textual.worker import Worker, WorkerError

from dnet_core.errors import DnetError
from dnet_core.events import Event, LoadFailed, ModelLoaded, PeerJoined, SessionStarted
from dnet_core.types.generation import (
    GenerationDone,
    GenerationEvent,
    Paused,
    PromptProgress,
    Resumed,
    TokenText,
)
from dnet_tui.chat import (
    Answering,
    ChatSettings,
    Failed,
    Finished,
    Phase,
    Queued,
    Reading,
    Stopped,
    Turn,
    request_for,
)
from dnet_tui.cluster import Cluster
from dnet_tui.pace import Pace
from dnet_tui.screens.help import HelpScreen
from dnet_tui.state import ClusterView, Fetching, Loading, Preparing, Ready, Unusable, fold, prepare
from dnet_tui.widgets.chat_log import ChatLog
from dnet_tui.widgets.device_list import DeviceList
from dnet_tui.widgets.layer_strip import LayerStrip
from dnet_tui.widgets.prompt import Prompt
from dnet_tui.widgets.status_line import StatusLine

_WHEN_READY = "sends when ready · esc takes it back"
_WHEN_OVER = "sends when this answer ends · esc takes it back"

OpenCluster = Callable[[], AbstractAsyncContextManager[Cluster]]


@dataclass(frozen=True, slots=True)
class Timing:
    """How often things are drawn, in seconds; tests take a clock of their own and let nothing tick."""

    stream_s: float = 1 / 15
    view_s: float = 1 / 8
    tick_s: float | None = 1 / 8  # None: the spinner stands still
    blink: bool = True
    clock: Callable[[], float] = time.monotonic


class _Answer:
    """What has arrived of the answer that is being written. Owned by its worker."""

    def __init__(self, index: int, prompt: str, clock: Callable[[], float]) -> None:
        self.index = index  # of its turn
        self._prompt = prompt
        self._clock = clock
        self._started_s = clock()
        self._first_s: float | None = None
        self._text = ""
        self._num_tokens = 0
        self._phase: Phase = Reading(0, None)

    def expect(self, prompt_tokens: int) -> None:
        """Note how long the prompt is, unless the ring has told already how far it is."""
        if self._phase == Reading(0, None):
            self._phase = Reading(0, prompt_tokens)

    def hear(self, event: GenerationEvent) -> None:
        match event:
            case PromptProgress(done_tokens=done, total_tokens=total):
                self._phase = Reading(done, total)
            case TokenText(text=text):
                if self._first_s is None:
                    self._first_s = self._clock()
                self._text += text
                self._num_tokens += 1
                self._phase = self._answering(self._first_s)
            case Paused(lost=lost, completion_tokens=n):
                self._phase = Queued(f"{lost} left after {n} tokens: the others take over its layers")
            case Resumed():
                self._phase = Reading(0, None)
            case GenerationDone():
                self._phase = Finished(event)
            case _:
                assert_never(event)

    def stop(self) -> None:
        self._phase = Stopped(self._num_tokens)

    def fail(self, message: str) -> None:
        self._phase = Failed(message, self._num_tokens)

    @property
    def turn(self) -> Turn:
        return Turn(self._prompt, self._text, self._phase)

    @property
    def speeds(self) -> tuple[float | None, float | None]:
        match self._phase:
            case Answering(ttft_s=ttft_s, tokens_per_s=rate):
                return ttft_s, rate
            case Finished(done=done):
                return done.ttft_s, done.decode_tokens_per_s
            case _ if self._first_s is not None:
                last = self._answering(self._first_s)
                return last.ttft_s, last.tokens_per_s
            case _:
                return None, None

    def _answering(self, first_s: float) -> Answering:
        decoding_s = self._clock() - first_s
        rate = (self._num_tokens - 1) / decoding_s if self._num_tokens > 1 and decoding_s > 0 else None
        return Answering(self._num_tokens, first_s - self._started_s, rate)


class DnetApp(App[None], inherit_bindings=False):
    """The screen over one cluster, which `open_cluster` starts once the first frame is painted."""

    CSS_PATH = "styles/app.tcss"
    TITLE = "dnet"
    HORIZONTAL_BREAKPOINTS = [(0, "-w0"), (40, "-w40"), (60, "-w60"), (120, "-w120")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-h0"), (10, "-h10"), (16, "-h16"), (30, "-h30")]  # noqa: RUF012

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "escape", "Stop", id="chat.stop",
                tooltip="Stop the answer, take a waiting message back, go to the prompt"),
        Binding("ctrl+n", "new_chat", "New chat", id="chat.new", tooltip="Start a new conversation"),
        Binding("ctrl+r", "regenerate", "Again", id="chat.again", tooltip="Answer the last question again"),
        Binding("ctrl+l", "cluster", "Cluster", id="app.cluster", tooltip="Show or hide the devices"),
        Binding("f1", "help", "Help", id="app.help", key_display="F1", tooltip="Show every key"),
        Binding("ctrl+c", "help_quit", "Copy", show=False, id="app.copy", tooltip="Copy the selected text"),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True, tooltip="Stop the shards and quit"),
    ]  # fmt: skip

    view: reactive[ClusterView] = reactive(ClusterView(), init=False)
    turns: reactive[tuple[Turn, ...]] = reactive((), init=False)

    def __init__(
        self,
        open_cluster: OpenCluster,
        model: str,
        settings: ChatSettings,
        timing: Timing | None = None,
        help_notes: str = "",
    ) -> None:
        super().__init__()
        self._open_cluster = open_cluster
        self._model = model
        self._settings = settings
        self._timing = timing or Timing()
        self._help_notes = help_notes
        self._cluster: Cluster | None = None
        self._keeper: Worker[None] | None = None
        self._seen = ClusterView()  # the newest view; `self.view` is the one on the screen
        self._answer: _Answer | None = None
        self._is_loading = False
        self._spin = 0
        self._ticker: Timer | None = None
        self._view_pace = self._pace(self._show_view, self._timing.view_s)
        self._stream_pace = self._pace(self._show_answer, self._timing.stream_s)
        self.fatal: str | None = None
        """Why the app ended by itself, in one line for the terminal it leaves."""
        self._status = StatusLine(id="status")
        self._strip = LayerStrip(id="strip")
        self._devices = DeviceList()
        self._chat = ChatLog()
        self._prompt = Prompt(blink=self._timing.blink)

    def _pace(self, flush: Callable[[], None], interval_s: float) -> Pace:
        return Pace(flush, interval_s, self._timing.clock, self.set_timer, self.call_after_refresh)

    def compose(self) -> ComposeResult:
        yield self._status
        yield self._strip
        yield Static("Too small: the ring needs 40x10", id="room")
        with Horizontal(id="body"):
            with VerticalScroll(self._devices, id="devices") as side:
                side.can_focus = False
            yield self._chat
        yield self._prompt
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._prompt.focus()
        if self._timing.tick_s is not None:
            self._ticker = self.set_interval(self._timing.tick_s, self._tick, pause=True)
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        self._keeper = self._keep_cluster()

    async def on_unmount(self) -> None:
        """Wait until the shards are stopped: nothing outlives the app."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(WorkerError):
                await self._keeper.wait()

    # --- the cluster ------------------------------------------------------------------------------------

    @work(exclusive=True, group="cluster")
    async def _keep_cluster(self) -> None:
        """Hold the coordinator open as long as the app runs, and fold what it tells."""
        self._seen = prepare(self._seen, self._model)
        self._show_view()
        try:
            async with self._open_cluster() as cluster, cluster.subscribe() as events:
                self._cluster = cluster
                for peer in cluster.peers:
                    self._note(PeerJoined(peer))
                self._load()
                async for event in events:
                    self._note(event)
        except DnetError as error:
            self.fatal = str(error)
            self.exit(return_code=1)
        finally:
            self._cluster = None

    def _note(self, event: Event) -> None:
        if isinstance(event, SessionStarted) and self._answer is not None:  # the chat is the only client here
            self._answer.expect(event.prompt_tokens)
            self._stream_pace.ask()
        self._seen = fold(self._seen, event)
        self._view_pace.ask()

    @work(exclusive=True, group="load")
    async def _load(self) -> None:
        """Load the model; then send what waits for it."""
        cluster = self._cluster
        if cluster is None:
            return
        self._is_loading = True
        self._seen = prepare(self._seen, self._model)
        self._view_pace.ask()
        try:
            loaded = await cluster.load(self._model)
        except DnetError as error:
            self._refuse(str(error))
            self._note(LoadFailed(self._model, str(error)))
        else:
            if self._seen.plan != loaded.plan or isinstance(self._seen.model, Loading):
                self._note(ModelLoaded(loaded.plan, 0.0))
            self._is_loading = False
            self._send_waiting()
        finally:
            self._is_loading = False

    def _refuse(self, message: str) -> None:
        """Say that there is no model in the turn that waits for it, if there is one."""
        waiting = self._waiting
        if waiting is not None:
            self.turns = (*self.turns[:-1], replace(waiting, phase=Failed(message, 0)))

    # --- the conversation -------------------------------------------------------------------------------

    @property
    def _waiting(self) -> Turn | None:
        """The message that waits for its turn; there is at most one, and it is the last."""
        return self.turns[-1] if self.turns and isinstance(self.turns[-1].phase, Queued) else None

    @property
    def _can_answer(self) -> bool:
        return self._cluster is not None and self._cluster.loaded is not None and not self._is_loading

    @on(Prompt.Sent)
    def _send(self, message: Prompt.Sent) -> None:
        if self._waiting is not None:
            self.notify("One message waits already; esc takes it back.", severity="warning")
            return
        self._prompt.remember(message.text)
        self._prompt.put("")
        why = _WHEN_READY if self._answer is None else _WHEN_OVER
        self.turns = (*self.turns, Turn(message.text, "", Queued(why)))
        if self._answer is None:
            self._send_waiting()

    def _send_waiting(self) -> None:
        """Send the waiting message if the ring can take it; start a load if there is nothing to wait for."""
        waiting = self._waiting
        if waiting is None:
            return
        if self._can_answer:
            self._ask()
        elif self._cluster is not None and not self._is_loading:
            self._load()

    def _ask(self) -> None:
        """Ask the ring for the answer to the last turn."""
        turn = replace(self.turns[-1], answer="", phase=Reading(0, None))
        self.turns = (*self.turns[:-1], turn)
        self._answer = _Answer(len(self.turns) - 1, turn.prompt, self._timing.clock)
        self._chat.anchor()
        self._generate(self._answer)

    @work(exclusive=True, group="answer")
    async def _generate(self, answer: _Answer) -> None:
        """Stream one answer. Cancelling this worker closes the stream, and that stops the shards."""
        cluster = self._cluster
        assert cluster is not None, "an answer is asked for only while a cluster is open"
        self._sync_ticker()
        try:
            async with aclosing(cluster.generate(request_for(self.turns, self._settings))) as events:
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
        self._sync_ticker()
        self._send_waiting()

    # --- what is shown ----------------------------------------------------------------------------------

    def _show_view(self) -> None:
        self.view = self._seen

    def watch_view(self, view: ClusterView) -> None:
        self._status.view = self._strip.view = self._devices.view = view
        self._prompt.is_ready = isinstance(view.model, Ready)
        self._show_problem()
        self._sync_ticker()

    def _show_answer(self) -> None:
        answer = self._answer
        if answer is None:
            return
        self.turns = (*self.turns[: answer.index], answer.turn, *self.turns[answer.index + 1 :])
        self._status.speeds = answer.speeds

    def watch_turns(self, turns: tuple[Turn, ...]) -> None:
        self._chat.turns = turns
        self._show_problem()

    def _show_problem(self) -> None:
        """Say in the chat why nothing can be asked, unless the last turn says it already."""
        problem = self.view.model.message if isinstance(self.view.model, Unusable) else None
        told = self.turns[-1].phase if self.turns else None
        self._chat.problem = None if isinstance(told, Failed) and told.message == problem else problem

    def _sync_ticker(self) -> None:
        """Let the spinner turn only while something is going on: an idle screen draws nothing."""
        if self._ticker is None:
            return
        if self._answer is not None or isinstance(self.view.model, Preparing | Fetching | Loading):
            self._ticker.resume()
        else:
            self._ticker.pause()

    def _tick(self) -> None:
        self._spin += 1
        if isinstance(self.view.model, Preparing | Fetching | Loading):
            self._status.spin = self._spin
        if self._answer is not None:
            self._chat.spin = self._spin

    # --- keys -------------------------------------------------------------------------------------------

    def action_escape(self) -> None:
        waiting = self._waiting
        if waiting is not None:  # first: else it would be sent the moment the answer stops
            self.turns = self.turns[:-1]
            if not self._prompt.text:
                self._prompt.put(waiting.prompt)
        if self._answer is not None:
            self._answer.stop()
            answer, self._answer = self._answer, None
            self._finish_stopped(answer)
        self._prompt.focus()

    def _finish_stopped(self, answer: _Answer) -> None:
        """Show at once that the answer stopped; its worker, now cancelled, tells the shards."""
        self.workers.cancel_group(self, "answer")
        self._answer = answer
        self._end_answer()

    def action_new_chat(self) -> None:
        self._answer = None
        self.workers.cancel_group(self, "answer")
        self.turns = ()
        self._status.speeds = (None, None)
        self._sync_ticker()
        self._prompt.focus()

    def action_regenerate(self) -> None:
        if self._answer is not None:
            self.notify("This answer is still being written; esc stops it.", severity="warning")
        elif self.turns and self._can_answer:
            self._ask()
        elif isinstance(self._seen.model, Unusable):
            self._try_again()
        else:
            self.notify("Nothing to answer again yet.")

    def _try_again(self) -> None:
        """Load again; the question that failed with the load waits for it."""
        if self.turns and self._waiting is None:
            self.turns = (*self.turns[:-1], replace(self.turns[-1], answer="", phase=Queued(_WHEN_READY)))
        self._load()

    def action_cluster(self) -> None:
        self.screen.toggle_class("-cluster")
        self._prompt.focus()

    def action_page_chat(self, direction: int) -> None:
        """Scroll the chat from the prompt, which keeps the focus."""
        target = self._devices.parent if self._chat.size.area == 0 else self._chat
        assert isinstance(target, VerticalScroll)
        (target.scroll_page_up if direction < 0 else target.scroll_page_down)(animate=False)

    def action_help(self) -> None:
        groups = [
            ("Everywhere", [*_own_bindings(DnetApp), _PALETTE]),
            ("In the prompt", [_SEND, *_own_bindings(Prompt), _RECALL]),
            ("In the chat (tab goes there)", _own_bindings(ChatLog)),
        ]
        self.push_screen(HelpScreen(groups, self._help_notes))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        for binding in _own_bindings(DnetApp):
            run = partial(self.run_action, binding.action)
            yield SystemCommand(binding.description, binding.tooltip, run)
        yield SystemCommand("Theme", "Change the colours", self.action_change_theme)
        yield SystemCommand("Reload model", f"Load {self._model} again", self._load)


_PALETTE = Binding("ctrl+p", "command_palette", "Palette", tooltip="Find a command by name", id="app.palette")
_SEND = Binding("enter", "send", "Send", id="prompt.send")
_RECALL = Binding("up", "recall", "Previous message (in an empty prompt)", id="prompt.recall")


def _own_bindings(owner: type[App[None]] | type[ChatLog] | type[Prompt]) -> list[Binding]:
    return [binding for binding in owner.__dict__["BINDINGS"] if isinstance(binding, Binding)]
