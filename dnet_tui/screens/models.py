"""ctrl+o: choose a model. What is here, what is well known, what the hub has; and what each would do here."""

from __future__ import annotations

from typing import ClassVar, Protocol

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from dnet_tui.catalogue import Catalogue, fit_sentence, state_text
from dnet_tui.widgets.model_list import ModelList

_SEARCH_FROM = 3
"""Characters of the filter from which the hub is asked, too."""


class Librarian(Protocol):
    """Who does what the picker asks for; results come back as `ModelPicker.catalogue`."""

    def search(self, words: str) -> None: ...
    def look_at(self, model: str) -> None:
        """`model` is highlighted: say what it would do here."""
        ...

    def load(self, model: str) -> None: ...
    def download(self, model: str) -> None: ...
    def cancel_download(self, model: str) -> None: ...
    def delete(self, model: str) -> None: ...


class ModelPicker(ModalScreen[None]):
    """Shows `catalogue`; asks `librarian`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="picker.close", tooltip="Clear the filter, then close"),
        Binding("enter", "load", "Load", id="picker.load", tooltip="Load the highlighted model"),
        Binding("d", "download", "Download", id="picker.download", tooltip="Fetch it, or stop fetching it"),
        Binding("x", "delete", "Delete", id="picker.delete", tooltip="Take it off this machine"),
        Binding("slash", "filter", "Filter", id="picker.filter", key_display="/",
                tooltip="Filter by name; three letters search the hub, too"),
    ]  # fmt: skip

    catalogue: reactive[Catalogue] = reactive(Catalogue(), init=False, repaint=False)
    now_s: reactive[float] = reactive(0.0, init=False, repaint=False)

    def __init__(
        self, librarian: Librarian, catalogue: Catalogue, intro: str = "", *, blink: bool = True
    ) -> None:
        super().__init__()
        self.set_reactive(ModelPicker.catalogue, catalogue)
        self._librarian = librarian
        self._intro = intro
        self._list = ModelList()
        self._filter_box = Input(
            placeholder="/ filters by name · three letters search the hub",
            id="picker-filter",
            select_on_focus=False,
        )
        self._filter_box.cursor_blink = blink
        self._detail = Static(id="picker-detail", markup=False)
        self._keys = Static(id="picker-keys", markup=False)
        self._deleting: str | None = None  # asked once, not yet confirmed

    def compose(self) -> ComposeResult:
        with Vertical(id="picker"):
            yield Static(self._intro, id="picker-intro", markup=False)
            yield self._filter_box
            yield self._list
            yield self._detail
            yield self._keys

    def on_mount(self) -> None:
        box = self.query_one("#picker")
        box.border_title = "Models"
        self.query_one("#picker-intro").display = bool(self._intro)
        self._list.focus()
        self._show()
        self.watch(self._list, "chosen", self._highlight)

    def on_resize(self) -> None:
        """The list takes what the rest leaves; then it scrolls."""
        others = 8 + (self.query_one("#picker-intro").size.height + 1 if self._intro else 0)
        self._list.styles.max_height = max(3, self.size.height - others)

    @property
    def _wanted(self) -> str:
        return self._filter_box.value.strip()

    # --- what is shown ----------------------------------------------------------------------------------

    def watch_catalogue(self) -> None:
        if self.is_mounted:
            self._show()

    def watch_now_s(self, now_s: float) -> None:
        if self.is_mounted:
            self._list.now_s = now_s
            self._show_detail()

    def _show(self) -> None:
        if not self._list.was_moved and not self._wanted:
            self._list.chosen = self.catalogue.preselected() or self._list.chosen
        self._list.sections = self.catalogue.sections(self._wanted)
        self._show_detail()

    def _highlight(self, model: str | None) -> None:
        self._deleting = None
        self._show_detail()
        if model is not None:
            self._librarian.look_at(model)

    def _show_detail(self) -> None:
        row = self._list.row
        lines: list[str] = []
        if row is None:
            lines.append("no model has these words in its name")
        elif row.transfer is not None:
            lines += [row.entry.id, f"fetching {row.transfer.text(self.now_s)} · d stops"]
        elif self._deleting == row.entry.id:
            lines += [row.entry.id, "delete it from this machine? x again deletes, any other key keeps it"]
        else:
            lines += [f"{row.entry.id} · {state_text(row)}", fit_sentence(row)]
        self._detail.update("\n".join(lines[:2]))
        self._keys.update(self._hub_text())

    def _hub_text(self) -> str:
        keys = "enter loads · d downloads only · x deletes · / filters · esc closes"
        if self.catalogue.is_searching:
            return f"searching the hub for {self._wanted} …"
        if self.catalogue.problem is not None and self._wanted:
            return self.catalogue.problem
        return "measuring the devices …" if self.catalogue.is_measuring else keys

    # --- keys -------------------------------------------------------------------------------------------

    def on_key(self, event: Key) -> None:
        """Up and down move the list from the filter, too; letters that mean nothing in the list start it."""
        if event.key != "x" and self._deleting is not None:
            self._deleting = None
            self._show_detail()
        if self._list.has_focus:
            bound = event.key in self.active_bindings
            begun = bool(self._filter_box.value) and event.is_printable  # the focus has not moved yet
            if event.character is not None and (begun or (not bound and event.character.isalnum())):
                event.stop()
                event.prevent_default()
                filter_ = self._filter_box
                filter_.focus()
                filter_.insert_text_at_cursor(event.character)
        elif event.key in ("up", "down"):
            event.stop()
            self._list.action_move(-1 if event.key == "up" else 1)

    @on(Input.Changed, "#picker-filter")
    def _filter(self, event: Input.Changed) -> None:
        self._show()
        words = event.value.strip()
        if len(words) >= _SEARCH_FROM:
            self._librarian.search(words)

    @on(Input.Submitted, "#picker-filter")
    def _submitted(self) -> None:
        self.action_load()

    @on(ModelList.Picked)
    def _picked(self) -> None:
        self.action_load()

    def action_filter(self) -> None:
        self._filter_box.focus()

    def action_leave(self) -> None:
        filter_ = self._filter_box
        if filter_.value or filter_.has_focus:
            filter_.value = ""
            self._list.focus()
        else:
            self.dismiss()

    def action_load(self) -> None:
        row = self._list.row
        if row is not None:
            self.dismiss()
            self._librarian.load(row.entry.id)

    def action_download(self) -> None:
        row = self._list.row
        if row is None:
            return
        if row.transfer is not None:
            self._librarian.cancel_download(row.entry.id)
        elif row.entry.is_here:
            self.notify(f"{row.entry.id} is on this machine already.", markup=False)
        else:
            self._librarian.download(row.entry.id)

    def action_delete(self) -> None:
        row = self._list.row
        if row is None:
            return
        if self._deleting == row.entry.id:
            self._deleting = None
            self._librarian.delete(row.entry.id)
        else:
            self._deleting = row.entry.id
        self._show_detail()
