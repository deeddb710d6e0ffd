"""The application: coordinator events become a frozen view, the view becomes pixels; keys become calls.

    cluster --events--> fold --ClusterView--> status line, layer strip, devices
    cluster --tokens--> conversation

Only this file talks to the coordinator, and only in workers: no handler ever waits for the network.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.events import Key
from textual.reactive import reactive
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Static
from textual.worker import Worker, WorkerError

from dnet_core.errors import DnetError
from dnet_core.events import DownloadEnded, Event, LoadFailed, ModelLoaded, PeerJoined, PeerOffered
from dnet_core.types.plan import Solution
from dnet_tui.activity import Activity, note
from dnet_tui.cluster import Cluster
from dnet_tui.conversation import Conversation, Ring
from dnet_tui.keys import EVERYWHERE, Owner, key_text
from dnet_tui.pace import Pace, Timing
from dnet_tui.personal_app import Personal
from dnet_tui.plan_app import PLAN_BINDINGS, PlanApp
from dnet_tui.service_app import Services
from dnet_tui.serving import EndpointState
from dnet_tui.state import ClusterView, Loading, Ready, Unusable, fold, prepare
from dnet_tui.widgets.activity_log import ActivityLog, LogView
from dnet_tui.widgets.cluster_panel import ClusterPanel, SidePanel
from dnet_tui.widgets.key_bar import Hint, KeyBar
from dnet_tui.widgets.layer_strip import BLINK_S, LayerStrip
from dnet_tui.widgets.status_line import StatusLine
from dnet_tui.work import work_on

OpenCluster = Callable[[], AbstractAsyncContextManager[Cluster]]
_CANCELLED = "loading was cancelled"
_KEYS = (
    Hint("app.help", "help"),
    Hint("chat.stop", "stop"),
    Hint("model.pick", "model"),
    Hint("app.cluster", "cluster"),
    Hint("app.palette", "more"),
    Hint("app.quit", "quit"),
    Hint("chat.new", "new"),
    Hint("chat.history", "history"),
    Hint("app.settings", "settings"),
    Hint("endpoint.toggle", "endpoint"),
    Hint("plan.open", "plan"),
    Hint("chat.settings", "this chat"),
    Hint("chat.again", "again"),
    Hint("cluster.join", "adds a device"),
)
"""What stands below the prompt as far as there is room; all is in the help and in the palette."""


class DnetApp(PlanApp):
    """The screen over one cluster, which `open_cluster` starts once the first frame is painted."""

    CSS_PATH = "styles/app.tcss"
    TITLE = "dnet"
    HORIZONTAL_BREAKPOINTS = [(width, f"-w{width}") for width in (0, 40, 60, 80, 120, 160)]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(height, f"-h{height}") for height in (0, 10, 16, 30)]  # noqa: RUF012

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+l", "cluster", "Cluster", id="app.cluster", tooltip="Show or hide the devices"),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", tooltip="Stop the shards and quit", priority=True),
    ]  # fmt: skip

    view: reactive[ClusterView] = reactive(ClusterView(), init=False, repaint=False)

    def __init__(
        self,
        open_cluster: OpenCluster,
        model: str,
        personal: Personal | None = None,
        timing: Timing | None = None,
        services: Services | None = None,
    ) -> None:
        services = services or Services()
        timing = timing or Timing()
        super().__init__(self._ring, timing, personal or Personal(), services)
        self._open_cluster = open_cluster
        self._model = model
        self.help_notes = f"Log: {services.log}" if services.log is not None else ""
        self._chosen: str | None = None  # kept for the next start once it is loaded
        self._loader: Worker[None] | None = None
        self._asked_to_cancel = False
        self._keeper: Worker[None] | None = None
        self._seen = ClusterView()  # the newest view; `self.view` is the one on the screen
        self._is_loading = False
        self._spin = 0
        self._ticker: Timer | None = None
        self._view_pace = Pace(
            self._show_view, self._timing.view_s, self._timing.clock, self.set_timer, self.call_after_refresh
        )
        self.fatal: str | None = None
        """Why the app ended by itself, in one line for the terminal it leaves."""
        self._status = StatusLine(services.badge)
        self._strip = LayerStrip(id="strip")
        self._activity = Activity()
        self._devices = ClusterPanel(self._timing)
        self._side = SidePanel(self._timing)

    def compose(self) -> ComposeResult:
        yield self._status
        yield self._strip
        yield Static("Too small: the ring needs 40x10", id="room")
        with Horizontal(id="body"):
            yield self._devices
            yield self.conversation
            yield self._side
        yield KeyBar(*_KEYS, rows=1, id="keys")

    def on_mount(self) -> None:
        self.conversation.prompt.focus()
        self.start_personal()
        if self._timing.tick_s is not None:
            self._ticker = self.set_interval(self._timing.tick_s, self._tick, pause=True)
        self.watch(self.conversation, "speeds", self._show_speeds, init=False)
        self.watch(self.conversation, "is_answering", self._show_answering, init=False)
        self.call_after_refresh(self._start)

    def _set_aside(self) -> None:
        """Leave all that stands now out of garbage collections: a full one stops the loop for 100 ms."""
        if self._timing.sets_aside:
            gc.freeze()

    def _clear_away(self) -> None:
        """Between two answers: collect what is garbage, also of what was set aside; set the rest aside.

        Not while somebody waits for an answer, nor while a screen is open, which is garbage once it closes;
        the next answer ends, too.
        """
        is_open = len(self.screen_stack) > 1
        if self._timing.sets_aside and not (self.conversation.is_answering or is_open or self.is_serving):
            gc.unfreeze()
            gc.collect()
            gc.freeze()

    def _start(self) -> None:
        self._set_aside()
        gc.enable()
        self._keeper = self._keep_cluster()

    async def on_unmount(self) -> None:
        """Wait until all is saved and the shards are stopped: nothing outlives the app."""
        await self.stop_personal()
        await self.endpoint_stopped()
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
                self.greet(self._model)
                self._load()
                async for event in events:
                    self._note(event)
        except DnetError as error:
            self.fatal = str(error)
            self.exit(return_code=1)
        finally:
            self._cluster = None

    def _note(self, event: Event) -> None:
        if isinstance(event, PeerOffered):
            key = key_text(self, "app.palette")
            self.notify(f"{event.name} is back: {key}, Take in {event.name}.", timeout=20, markup=False)
        elif isinstance(event, DownloadEnded):
            self.note_download(event)
        self._activity = note(self._activity, event, self._timing.now())
        self._fold(event)

    def _fold(self, event: Event) -> None:
        self._seen = fold(self._seen, event, self._timing.clock())
        self.work_in_hand = work_on(self.work_in_hand, event, self._timing.clock())
        self._view_pace.ask()

    def _load(self, plan: Solution | None = None) -> None:
        """Load the model (as `plan` says, or as it is best), instead of one that is being loaded; then send
        what waits for it.
        """
        self._loader = self._load_after(self._loader, plan)

    def load_model(self, model: str) -> None:
        self._model = self._chosen = model
        self._load()

    def reload(self) -> None:
        self._load()

    @property
    def cluster_view(self) -> ClusterView:
        return self.view

    def load_plan(self, plan: Solution) -> None:
        self._load(plan)

    @property
    def newest_view(self) -> ClusterView:
        return self._seen

    def action_escape(self) -> None:
        """Stop an answer; while a model loads and nothing else is to be stopped, cancel that, asking once."""
        self.clear_notifications()
        if self.conversation.escape() or not self._is_loading or self._loader is None:
            self._asked_to_cancel = False
        elif self._asked_to_cancel:
            self._asked_to_cancel = False
            self._loader.cancel()
        else:
            self._asked_to_cancel = True
            again = key_text(self, "chat.stop")
            self.notify(f"{again} again cancels loading {self._model}", markup=False)

    @work(group="load")
    async def _load_after(self, before: Worker[None] | None, plan: Solution | None) -> None:
        if before is not None:
            before.cancel()
            with suppress(WorkerError):
                await before.wait()
        cluster = self._cluster
        if cluster is None:
            return
        self._is_loading = True
        self._seen = prepare(self._seen, self._model)
        self._view_pace.ask()
        try:
            loaded = await cluster.load(self._model, plan)
        except DnetError as error:
            self.conversation.refuse(str(error))
            self._fold(LoadFailed(self._model, str(error)))
        except asyncio.CancelledError:
            if self._cluster is not None:  # else the app ends
                self.conversation.refuse(_CANCELLED)
                self._note(LoadFailed(self._model, _CANCELLED))
            raise
        else:
            if self._seen.plan != loaded.plan or isinstance(self._seen.model, Loading):
                self._fold(ModelLoaded(loaded.plan, 0.0))
            if self._model == self._chosen:
                self.remember_model(self._model)
            self._is_loading = False
            self._set_aside()
            self.conversation.resume()
        finally:
            self._is_loading = False
            self.work_in_hand = self.work_in_hand.idle()
            self._view_pace.ask()

    @work(exclusive=True, group="load")
    async def _take_in(self) -> None:
        """Let devices that are back take part again."""
        if self._cluster is not None:
            try:
                await self._cluster.take_in()
            except DnetError as error:
                self.notify(str(error), severity="error", markup=False)

    def _ring(self) -> Ring | None:
        """What can answer now."""
        cluster = self._cluster
        return (
            cluster if cluster is not None and cluster.loaded is not None and not self._is_loading else None
        )

    @on(Conversation.NeedsModel)
    def _load_for_conversation(self) -> None:
        if not self._is_loading:
            self._load()

    # --- what is shown ----------------------------------------------------------------------------------

    def _show_view(self) -> None:
        self._side.num_own = self.conversation.num_streams
        self.view = self._seen
        self._side.log_lines = self._activity.lines  # some events change nothing else
        self._show_work()
        self._sync_ticker()

    def watch_view(self, view: ClusterView) -> None:
        self._status.view = self._strip.view = self._devices.view = self._side.view = view
        self.show_devices(view)
        self.show_in_screens(view)
        self.conversation.is_ready = isinstance(view.model, Ready)
        self.conversation.problem = view.model.message if isinstance(view.model, Unusable) else None
        self._sync_ticker()

    def _show_work(self) -> None:
        self._status.work = self.work_in_hand
        self.tell_librarian(self.view)

    def show_endpoint(self, state: EndpointState) -> None:
        self._status.endpoint = state

    def _show_speeds(self, speeds: tuple[float | None, float | None]) -> None:
        self._status.speeds = speeds

    def _show_answering(self, is_answering: bool) -> None:
        self._sync_ticker()
        self.call_after_refresh(self._view_pace.ask)
        if not is_answering:
            self.call_after_refresh(self._clear_away)

    def _sync_ticker(self) -> None:
        """Let the spinner turn only while something is going on: an idle screen draws nothing."""
        if self._ticker is None:
            return
        if self.conversation.is_answering or self._is_busy:
            self._ticker.resume()
        else:
            self._ticker.pause()
            self._strip.is_dimmed = None

    @property
    def _is_busy(self) -> bool:
        return self.work_in_hand.is_going_on or self.view.is_arriving

    def _tick(self) -> None:
        self._spin += 1
        if self._is_busy:
            self._status.now_s = self._timing.clock()
            self._devices.list.now_s = self._timing.clock()
            self._status.spin = self._spin
            self.tick_picker()
        self.conversation.spin = self._spin
        if self._timing.animates:
            self._strip.is_dimmed = int(self._timing.clock() / BLINK_S) % 2 == 1

    # --- keys -------------------------------------------------------------------------------------------

    def on_key(self, event: Key) -> None:
        """What is written where it means nothing goes to the prompt."""
        is_free = event.key not in self.screen.active_bindings and len(self.screen_stack) == 1
        if event.character is not None and event.is_printable and is_free:
            self.conversation.prompt.focus()
            self.conversation.prompt.insert(event.character)

    def action_cluster(self) -> None:
        self.screen.toggle_class("-cluster")
        self.conversation.prompt.focus()

    def action_page_chat(self, direction: int) -> None:
        """Scroll the chat from the prompt, which keeps the focus."""
        if self.conversation.shows_chat:
            self.conversation.page(direction)
            return
        (self._devices.scroll_page_up if direction < 0 else self._devices.scroll_page_down)(animate=False)

    def key_owners(self) -> Iterable[Owner]:
        yield from super().key_owners()
        yield Owner(EVERYWHERE, DnetApp)
        yield Owner("in the activity log", ActivityLog)
        yield Owner("in the activity log", LogView)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        yield from self.personal_commands()
        yield from self.service_commands()
        yield from self.commands_of([*PLAN_BINDINGS, *DnetApp.BINDINGS])
        yield SystemCommand("Reload model", f"Load {self._model} again", self._load)
        if self._cluster is not None and (back := self._cluster.offered):
            text = "Place the model anew with what is back: answers pause, and go on"
            yield SystemCommand(f"Take in {' and '.join(back)}", text, self._take_in)
