"""The part of the application that serves: the model picker, the endpoint, the doctor, the log.

PersonalApp   the person's: conversation, history, settings, keys
ServiceApp    this one
DnetApp       the cluster's: events, views, loading
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import ClassVar

from textual.app import SystemCommand
from textual.binding import Binding, BindingType

from dnet_tui.catalogue import Catalogue
from dnet_tui.cluster import Cluster
from dnet_tui.conversation import Ring
from dnet_tui.librarian import Library, ModelLibrarian
from dnet_tui.pace import Timing
from dnet_tui.personal_app import Personal, PersonalApp
from dnet_tui.screens.models import ModelPicker
from dnet_tui.work import Work

SERVICE_BINDINGS: list[BindingType] = [
    Binding("ctrl+o", "models", "Model", id="model.pick",
            tooltip="Choose a model: what is here, what is known, what the hub has"),
]  # fmt: skip


class ServiceApp(PersonalApp):
    """Its subclass opens the cluster and says how a model is loaded."""

    BINDINGS: ClassVar[list[BindingType]] = SERVICE_BINDINGS

    def __init__(self, ring: Callable[[], Ring | None], timing: Timing, personal: Personal) -> None:
        super().__init__(ring, timing, personal)
        self._cluster: Cluster | None = None
        self.work_in_hand = Work()
        self._librarian = ModelLibrarian(self, self._library, self._show_catalogue, self.load_model)

    def load_model(self, model: str) -> None:
        """Load `model` instead of what is loaded or loading."""
        raise NotImplementedError

    # --- models -----------------------------------------------------------------------------------------

    def action_models(self) -> None:
        self.open_models()

    def open_models(self, intro: str = "") -> None:
        """Show the model picker, below `intro`."""
        if not isinstance(self.screen, ModelPicker):
            picker = ModelPicker(self._librarian, self._librarian.catalogue, intro, blink=self._timing.blink)
            self.push_screen(picker, self._close_models)
            self._librarian.open()

    def _close_models(self, _result: None) -> None:
        self._librarian.close()

    def _show_catalogue(self, catalogue: Catalogue) -> None:
        if isinstance(self.screen, ModelPicker):
            self.screen.catalogue = catalogue

    def _library(self) -> Library | None:
        return self._cluster.library if self._cluster is not None else None

    def tell_librarian(self, loaded: str | None, devices: frozenset[str]) -> None:
        """Which model is loaded, which devices are here; the downloads it can see."""
        self._librarian.tell(loaded, self.work_in_hand.downloads, devices)

    def tick_picker(self) -> None:
        """Time has passed: a transfer may have stalled."""
        if isinstance(self.screen, ModelPicker):
            self.screen.now_s = self._timing.clock()

    # --- quitting, palette ------------------------------------------------------------------------------

    def what_stops(self) -> tuple[str, ...]:
        return tuple(
            f"{model} is being fetched; what has come stays" for model in self.work_in_hand.downloads
        )

    def service_commands(self) -> Iterable[SystemCommand]:
        """What the palette offers of this part."""
        for binding in SERVICE_BINDINGS:
            assert isinstance(binding, Binding), "all are written out"
            yield SystemCommand(
                binding.description, binding.tooltip, partial(self.run_action, binding.action)
            )
