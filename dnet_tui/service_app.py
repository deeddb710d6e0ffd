"""The part of the application that serves: the model picker, the endpoint, the doctor, the log.

PersonalApp   the person's: conversation, history, settings, keys
ServiceApp    this one
DnetApp       the cluster's: events, views, loading
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from textual import work
from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.worker import Worker, WorkerError

from dnet_core.errors import DnetError, PortTaken, StartError
from dnet_core.events import STOPPED, DownloadEnded
from dnet_core.types.devices import PeerSource
from dnet_tui.catalogue import Catalogue
from dnet_tui.cluster import Cluster
from dnet_tui.conversation import Ring
from dnet_tui.keys import EVERYWHERE, Owner, key_text
from dnet_tui.librarian import Library, ModelLibrarian
from dnet_tui.pace import Timing
from dnet_tui.personal_app import Personal, PersonalApp
from dnet_tui.screens.endpoint import EndpointScreen
from dnet_tui.screens.findings import DoctorScreen, Examine, LogScreen
from dnet_tui.screens.join import JoinScreen
from dnet_tui.screens.models import ModelPicker
from dnet_tui.serving import EndpointState, Off, On, OpenEndpoint, Served, Starting
from dnet_tui.state import ClusterView, Ready, arrival_of
from dnet_tui.widgets.model_list import ModelList
from dnet_tui.widgets.prompt import Prompt
from dnet_tui.wishes import EndpointWish
from dnet_tui.work import Step, Work

SERVICE_BINDINGS: list[BindingType] = [
    Binding("ctrl+o", "models", "Model", id="model.pick",
            tooltip="Choose a model: what is here, what is known, what the hub has"),
    Binding("f4", "endpoint", "Endpoint", id="endpoint.toggle",
            tooltip="Switch the OpenAI endpoint on and show it; there the key switches it off"),
    Binding("f5", "measure", "Measure again", id="cluster.measure",
            tooltip="Look for devices, measure them again and place the model anew"),
    Binding("f9", "join", "Add a device", id="cluster.join",
            tooltip="The command for another device, and what has to hold there"),
]  # fmt: skip


Panel = TypeVar("Panel", bound=Screen[Any])

_WELCOME = (
    "Welcome. A small sample model is being loaded: {chat} goes to the chat, and a question typed here is"
    " asked there. Larger models answer better; what fits is computed for the devices that are here."
)


@asynccontextmanager
async def no_endpoint(cluster: Cluster, wish: EndpointWish) -> AsyncIterator[Served]:
    raise StartError("there is no endpoint here")
    yield


@dataclass(frozen=True, slots=True)
class Services:
    """What this part stands on and cannot know by itself.

    `badge` stands on the screen before everything else; `more_commands` are offered in the palette, too.
    """

    open_endpoint: OpenEndpoint = no_endpoint
    endpoint: EndpointWish = field(default_factory=EndpointWish)
    badge: str = ""
    more_commands: Callable[[], Iterable[SystemCommand]] = tuple
    log: Path | None = None
    examine: Examine | None = None
    is_first_use: bool = False
    """Whether nobody has chosen a model yet: then the picker opens once."""
    remember: Callable[[str], None] | None = None
    """Keeps which model was chosen, for the next start."""


class ServiceApp(PersonalApp):
    """Its subclass opens the cluster and says how a model is loaded."""

    BINDINGS: ClassVar[list[BindingType]] = SERVICE_BINDINGS

    def __init__(
        self, ring: Callable[[], Ring | None], timing: Timing, personal: Personal, services: Services
    ) -> None:
        super().__init__(ring, timing, personal)
        self._cluster: Cluster | None = None
        self._services = services
        self._serving: Worker[None] | None = None
        self.endpoint: EndpointState = Off()
        self.work_in_hand = Work()
        self._librarian = ModelLibrarian(self, self._library, self._show_catalogue, self.load_model)

    def load_model(self, model: str) -> None:
        """Load `model` instead of what is loaded or loading."""
        raise NotImplementedError

    def _top(self, kind: type[Panel]) -> Panel | None:
        """The screen on top, if it is of this kind; an app that ends has none."""
        top = self.screen_stack[-1] if self.screen_stack else None
        return top if isinstance(top, kind) else None

    def key_owners(self) -> Iterable[Owner]:
        yield from super().key_owners()
        yield Owner(EVERYWHERE, ServiceApp)
        yield Owner("in the model picker", ModelPicker, is_over=True)
        yield Owner("in the model picker", ModelList, is_over=True)
        yield Owner("in the endpoint's panel", EndpointScreen, is_over=True)
        yield Owner("where a device is added", JoinScreen, is_over=True)
        yield Owner("in the doctor", DoctorScreen, is_over=True)
        yield Owner("in the log", LogScreen, is_over=True)

    # --- models -----------------------------------------------------------------------------------------

    def action_models(self) -> None:
        self.open_models()

    def open_models(self, intro: str = "") -> None:
        """Show the model picker, below `intro`."""
        if self._top(ModelPicker) is None:
            picker = ModelPicker(self._librarian, self._librarian.catalogue, intro)
            self.push_screen(picker, self._close_models)
            self._librarian.open()

    def _close_models(self, question: str | None) -> None:
        self._librarian.close()
        if question:
            self.conversation.prompt.post_message(Prompt.Sent(question))

    def _show_catalogue(self, catalogue: Catalogue) -> None:
        picker = self._top(ModelPicker)
        if picker is not None:
            picker.catalogue = catalogue

    def _library(self) -> Library | None:
        return self._cluster.library if self._cluster is not None else None

    def tell_librarian(self, view: ClusterView) -> None:
        """What is loaded and what is on its way, on which devices; the downloads it can see."""
        here = [device.peer for device in view.here]
        local = tuple(peer.name for peer in here if peer.source is PeerSource.LOCAL)
        remote = tuple(peer.name for peer in here if peer.source is not PeerSource.LOCAL)
        loaded = view.plan.model if isinstance(view.model, Ready) and view.plan is not None else None
        self._librarian.tell_arrival(arrival_of(view, self.work_in_hand))
        is_placing = view.is_arriving and self.work_in_hand.step not in (Step.FETCHING, Step.LOADING)
        self._librarian.tell(loaded, self.work_in_hand.downloads, local, remote, is_placing=is_placing)

    def tick_picker(self) -> None:
        """Time has passed: a transfer may have stalled."""
        picker = self._top(ModelPicker)
        if picker is not None:
            picker.now_s = self._timing.clock()

    # --- the endpoint -----------------------------------------------------------------------------------

    def action_endpoint(self) -> None:
        """Switch it on if it is off, and show it: who wants its address again does not switch it off."""
        if isinstance(self.endpoint, Off):
            self.start_endpoint()
        self.action_endpoint_panel()

    def action_endpoint_panel(self) -> None:
        if self._top(EndpointScreen) is None:
            badge = self._services.badge
            note = f"{badge}: nothing listens here" if badge else ""
            self.push_screen(EndpointScreen(self, self.endpoint, note))

    def start_endpoint(self, port: int | None = None) -> None:
        """Serve OpenAI clients, on `port` if it is given."""
        if self._cluster is None:
            self._show_endpoint(Off("the cluster is still starting: try again in a moment"))
            return
        self._show_endpoint(Starting())
        wish = self._services.endpoint
        self._serving = self._serve(self._cluster, wish if port is None else replace(wish, port=port))

    def stop_endpoint(self) -> None:
        """Stop serving; what is in flight is ended and told so."""
        if self._serving is not None:
            self._serving.cancel()

    async def endpoint_stopped(self) -> None:
        """Stop serving, and return when it has stopped."""
        self.stop_endpoint()
        if self._serving is not None:
            with suppress(WorkerError):
                await self._serving.wait()

    @work(exclusive=True, group="endpoint")
    async def _serve(self, cluster: Cluster, wish: EndpointWish) -> None:
        off = Off()
        try:
            async with (
                self._services.open_endpoint(cluster, wish) as served,
                aclosing(served.watch()) as activities,
            ):
                key = served.api_keys[0] if served.api_keys else None
                async for activity in activities:
                    self._show_endpoint(On(served.url, served.port, key, activity))
        except PortTaken as error:
            off = Off(str(error), error.free_port)
        except DnetError as error:
            off = Off(str(error))
        finally:
            self._show_endpoint(off)

    @property
    def is_serving(self) -> bool:
        """Whether the endpoint has requests in flight."""
        return isinstance(self.endpoint, On) and bool(self.endpoint.activity.requests)

    def _show_endpoint(self, state: EndpointState) -> None:
        self.endpoint = state
        self.show_endpoint(state)
        panel = self._top(EndpointScreen)
        if panel is not None:
            panel.state = state

    def show_endpoint(self, state: EndpointState) -> None:
        """Called with every new state; the subclass has the status line."""

    # --- devices, doctor, log ---------------------------------------------------------------------------

    def greet(self, model: str) -> None:
        """The cluster is open: the first time, offer models; `model` can be asked meanwhile."""
        if self._services.is_first_use:
            self.remember_model(model)
            if self.conversation.is_begun:  # whoever types already is not interrupted
                self.notify(f"{key_text(self, 'model.pick')} offers better models than the sample.")
            else:
                self.open_models(_WELCOME.format(chat=key_text(self, "picker.close")))

    def note_download(self, event: DownloadEnded) -> None:
        """Load what was fetched for it, but not into the middle of an answer; say what was not fetched."""
        is_wanted = self._librarian.takes_fetched(event.model)
        if event.problem is not None:
            if event.problem != STOPPED:
                told = f"{event.model} was not fetched: {event.problem}"
                self.notify(told, severity="error", timeout=20, markup=False)
        elif is_wanted and not self.is_serving and not self.conversation.is_answering:
            self.load_model(event.model)
        elif is_wanted:
            self.notify(f"{event.model} is here: {key_text(self, 'model.pick')} loads it.", markup=False)

    def remember_model(self, model: str) -> None:
        """Load `model` at the next start, unless another is asked for."""
        if self._services.remember is not None:
            self._services.remember(model)

    def action_measure(self) -> None:
        if self._cluster is None:
            return
        if self.conversation.is_answering:
            stops, measures = key_text(self, "chat.stop"), key_text(self, "cluster.measure")
            text = f"An answer is being written: {stops} stops it, then {measures} measures."
            self.notify(text, severity="warning")
            return
        self._cluster.forget_measurements()
        self.reload()

    def reload(self) -> None:
        """Place the model anew."""
        raise NotImplementedError

    def action_join(self) -> None:
        if self._cluster is not None and self._top(JoinScreen) is None:
            self.push_screen(JoinScreen(self._cluster.cluster_key, self.cluster_view))

    @property
    def cluster_view(self) -> ClusterView:
        raise NotImplementedError

    def show_devices(self, view: ClusterView) -> None:
        """The devices have changed."""
        panel = self._top(JoinScreen)
        if panel is not None:
            panel.view = view

    def open_doctor(self) -> None:
        if self._services.examine is not None:
            self.push_screen(DoctorScreen(self._services.examine))

    def open_log(self) -> None:
        if self._services.log is not None:
            self.push_screen(LogScreen(self._services.log))

    # --- quitting, palette ------------------------------------------------------------------------------

    def what_stops(self) -> tuple[str, ...]:
        stops = list(self._downloads_that_stop())
        if isinstance(self.endpoint, On):
            running = len(self.endpoint.activity.requests)
            with_requests = f", with {running} in flight" if running else ""
            stops.append(f"the endpoint {self.endpoint.url} is switched off{with_requests}")
        return tuple(stops)

    def _downloads_that_stop(self) -> tuple[str, ...]:
        return tuple(
            f"{model} is being fetched; what has come stays" for model in self.work_in_hand.downloads
        )

    def service_commands(self) -> Iterable[SystemCommand]:
        """What the palette offers of this part."""
        yield from self.commands_of(SERVICE_BINDINGS)
        panel = "Its address, a curl command, requests in flight, last errors"
        yield SystemCommand("Endpoint panel", panel, self.action_endpoint_panel)
        if self._services.examine is not None:
            yield SystemCommand("Doctor", "What is wrong here, and what to do", self.open_doctor)
        if self._services.log is not None:
            yield SystemCommand("Open log", "What the program and its libraries wrote", self.open_log)
        yield from self._services.more_commands()
