"""ctrl+o: choose a model. What is here, what is well known, what the hub has; and what each would do here."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import ClassVar, Protocol

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.events import Key
from textual.reactive import reactive
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from dnet_tui.catalogue import (
    Catalogue,
    Row,
    download_question,
    fit_sentence,
    holders_text,
    part_text,
    state_text,
)
from dnet_tui.keys import key_text
from dnet_tui.widgets.key_bar import Hint, KeyBar
from dnet_tui.widgets.model_list import ModelList

_SEARCH_FROM = 3
"""Characters of the filter from which the hub is asked, too."""
_MOST_PARTS = 6
"""Devices of which the detail tells how far their load is."""
_PATH = r"(~[^\s/]*|\.\.?)/.*|/[^\s/]+(/.*)?"
"""With spaces only behind the slash that makes it one: `~5 km?` and `/help me` are questions."""
_PLAIN = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)+(@[\w./-]+)?"
"""A hub id, `owner/name` and a revision; a folder below this one with an ordinary name (others: `./...`)."""
_NAME = re.compile(f"{_PATH}|{_PLAIN}", re.ASCII)
"""What can be a model that no list has; whether it is one, loading it says."""
_FILTER = Hint("picker.filter", "filters")


class Asked(StrEnum):
    """What the screen asks once before it does it."""

    LOAD = "load"
    """What has to be fetched first."""
    DOWNLOAD = "download"
    DELETE = "delete"


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


class ModelPicker(ModalScreen[str | None]):
    """Shows `catalogue`; asks `librarian`.

    With `intro` it is shown unasked: what is written there and is no model's name is a question to the chat,
    and is what the screen ends with.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Close", id="picker.close", tooltip="Clear the filter, then close"),
        Binding("enter", "load", "Load", id="picker.load", tooltip="Load the highlighted model"),
        Binding("d", "download", "Download", id="picker.download",
                tooltip="Fetch it without loading it, or stop fetching it"),
        Binding("x", "delete", "Delete", id="picker.delete", tooltip="Take it off this machine"),
        Binding("slash", "filter", "Filter", id="picker.filter",
                tooltip="Filter by name; three letters search the hub, too"),
        Binding("tab,shift+tab", "list", "List", id="picker.list",
                tooltip="From the filter to the list, and back"),
    ]  # fmt: skip

    catalogue: reactive[Catalogue] = reactive(Catalogue(), init=False, repaint=False)
    now_s: reactive[float] = reactive(0.0, init=False, repaint=False)

    def __init__(self, librarian: Librarian, catalogue: Catalogue, intro: str = "") -> None:
        super().__init__()
        self.set_reactive(ModelPicker.catalogue, catalogue)
        self._librarian = librarian
        self._intro = intro
        self._list = ModelList()
        self._filter_box = Input(
            id="picker-filter",
            select_on_focus=False,
        )
        self._detail = Static(id="picker-detail", markup=False)
        self._note = Static(id="picker-note", markup=False)
        self._keys = KeyBar()
        self._told = ("", "")  # in the detail and below it
        self._asked: Asked | None = None  # of the highlighted model, not yet answered
        self._is_typing = False  # a letter went to the filter, and the focus is on its way there

    def compose(self) -> ComposeResult:
        with Vertical(id="picker"):
            yield Static(self._intro, id="picker-intro", markup=False)
            yield self._filter_box
            yield self._list
            yield self._detail
            yield self._note
            yield self._keys

    def on_mount(self) -> None:
        box = self.query_one("#picker")
        box.border_title = "Models"
        key = key_text(self.app, "picker.filter")
        self._filter_box.placeholder = f"{key} filters by name · three letters search the hub"
        self.query_one("#picker-intro").display = bool(self._intro)
        self._list.focus()
        self._show()
        self.watch(self._list, "chosen", self._highlight)

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
        if not self._list.was_moved and not self._wanted and self._asked is None:
            suggested = self.catalogue.suggested() if self._intro else None
            self._list.chosen = suggested or self.catalogue.preselected() or self._list.chosen
        self._list.sections = self.catalogue.sections(self._wanted)
        self._show_detail()

    def _highlight(self, model: str | None) -> None:
        self._ask(None)
        if model is not None:
            self._librarian.look_at(model)

    def _ask(self, what: Asked | None) -> None:
        self._asked = what
        self._show_detail()

    def _show_detail(self) -> None:
        row = self._list.row
        lines = self._no_lines() if row is None else self._lines(row)
        told = ("\n".join(lines), self._hub_text())
        if told != self._told:  # time passes more often than it changes anything
            self._told = told
            self._detail.update(told[0])
            self._note.update(told[1])
            self._note.display = bool(told[1])
        self._keys.hints = self._hints(row)

    def _no_lines(self) -> list[str]:
        """What is told while nothing in the lists is meant."""
        lines = ["no model has these words in its name"]
        if self._typed_name is not None:
            key = key_text(self.app, "picker.load")
            lines.append(f"{key} loads it as what it is: a folder, a .gguf file, or a hub id (owner/name)")
        return lines

    def _lines(self, row: Row) -> list[str]:
        """What is told of the highlighted model: three lines, more where more is to be said."""
        model = row.entry.id
        if row.transfer is not None:
            return [model, f"fetching to this machine {row.transfer.text(self.now_s)}", fit_sentence(row)]
        match self._asked:
            case Asked.DELETE:
                return [model, "delete it from this machine?", ""]
            case Asked.DOWNLOAD | Asked.LOAD:
                told, can_begin = download_question(row, self.catalogue.room)
                short = () if can_begin else ("that is not enough: delete models that are not used",)
                return [model, told, *short, fit_sentence(row)]
        lines = [f"{model} · {state_text(row)}", fit_sentence(row)]
        if row.arrival is None or not row.arrival.parts:
            return [*lines, holders_text(row, self.catalogue)]
        arrival = row.arrival
        parts = [*arrival.fetching, *(part for part in arrival.parts if part.fetch is None)]
        lines += [f"{p.letter} {p.device:<12} {part_text(p, self.now_s)}" for p in parts[:_MOST_PARTS]]
        if len(parts) > _MOST_PARTS:
            lines.append(f"and {len(parts) - _MOST_PARTS} more")
        return lines

    def _hints(self, row: Row | None) -> tuple[Hint, ...]:
        """What can be done now."""
        match self._asked:
            case Asked.DELETE:
                return (Hint("picker.delete", "again deletes it"), Hint("picker.close", "keeps it"))
            case Asked.DOWNLOAD | Asked.LOAD if not self._can_download(row):
                return (Hint("picker.close", "leaves it"),)
            case Asked.DOWNLOAD:
                return (Hint("picker.load", "downloads it"), Hint("picker.close", "leaves it"))
            case Asked.LOAD:
                return (Hint("picker.load", "downloads and loads it"), Hint("picker.close", "leaves it"))
        close = Hint("picker.close", "clears the filter" if self._wanted else "closes")
        is_written = self._filter_box.has_focus
        if row is None:
            does = "asks it in the chat" if self._is_question else "loads it" if self._typed_name else None
            enter = () if does is None else (Hint("picker.load", does),)
            return (*enter, close) if is_written else (*enter, _FILTER, close)
        stays = row.is_loaded or row.arrival is not None
        hints = [Hint("picker.load", "goes on with it" if stays else "loads")]
        if is_written:  # where letters are no keys
            return (*hints, Hint("picker.list", "to the list"), close)
        if row.transfer is not None:
            hints.append(Hint("picker.download", "stops fetching"))
        elif not row.entry.is_here:
            hints.append(Hint("picker.download", "downloads only"))
        if row.entry.here_bytes and row.transfer is None and not stays:
            hints.append(Hint("picker.delete", "deletes"))
        return (*hints, _FILTER, close)

    @property
    def _is_question(self) -> bool:
        is_meant = bool(self._intro and self._wanted) and self._typed_name is None
        return is_meant and self._list.row is None

    @property
    def _typed_name(self) -> str | None:
        """What stands in the filter, if it can be a model that no list has."""
        name = self._wanted
        return name if _NAME.fullmatch(name) and self._list.row is None else None

    def _can_download(self, row: Row | None) -> bool:
        return row is not None and download_question(row, self.catalogue.room)[1]

    def _hub_text(self) -> str:
        """What is going on behind the list, if anything is."""
        if self.catalogue.is_searching and self._wanted:
            return f"searching the hub for {self._wanted} …"
        if self.catalogue.problem is not None and self._wanted:
            return self.catalogue.problem
        return "measuring the devices …" if self.catalogue.is_measuring else ""

    # --- keys -------------------------------------------------------------------------------------------

    def on_key(self, event: Key) -> None:
        """Up and down lead from the filter to the list; what means nothing there goes on with the filter."""
        bound = self.active_bindings.get(event.key)
        answers = bound is not None and (bound.binding.id or "").startswith("picker.")
        if self._asked is not None and not answers:
            self._ask(None)
        filter_ = self._filter_box
        if self._list.has_focus:
            begun = self._is_typing and event.is_printable
            if event.character is not None and (begun or (bound is None and event.character.isalnum())):
                event.stop()
                event.prevent_default()
                self.action_filter()
                filter_.insert_text_at_cursor(event.character)
            elif event.key == "backspace" and filter_.value:
                event.stop()
                self.action_filter()
                filter_.action_delete_left()
        elif event.key in ("up", "down"):
            event.stop()
            self._list.focus()
            self._list.action_move(-1 if event.key == "up" else 1)

    def on_descendant_focus(self) -> None:
        self._is_typing = self._is_typing and self._list.has_focus
        self._show_detail()

    @on(Input.Changed, "#picker-filter")
    def _filter(self, event: Input.Changed) -> None:
        self._show()
        words = event.value.strip()
        self._librarian.search(words if len(words) >= _SEARCH_FROM else "")

    @on(Input.Submitted, "#picker-filter")
    def _submitted(self) -> None:
        self.action_load()

    @on(ModelList.Picked)
    def _picked(self) -> None:
        """A second click loads; to a question it is no answer, as any key that is not named there."""
        if self._asked is None:
            self.action_load()
        else:
            self._ask(None)

    def action_filter(self) -> None:
        self._is_typing = True
        self._filter_box.focus()

    def action_list(self) -> None:
        (self._filter_box if self._list.has_focus else self._list).focus()

    def action_leave(self) -> None:
        filter_ = self._filter_box
        if self._asked is not None:
            self._ask(None)
        elif filter_.value or filter_.has_focus:
            filter_.value = ""
            self._list.focus()
        else:
            self.dismiss()

    def action_load(self) -> None:
        """Load the highlighted model if it is not loaded or on its way; answer a question that stands."""
        row, asked = self._list.row, self._asked
        if row is None:
            if self._is_question:
                self.dismiss(self._wanted)
            elif (name := self._typed_name) is not None:
                self._load(name)
            return
        is_coming = row.is_loaded or row.arrival is not None
        match asked:
            case None if is_coming:
                self.dismiss()
            case None if not row.entry.is_here and row.transfer is None:
                self._ask(Asked.LOAD)
            case None:
                self._load(row.entry.id)
            case Asked.LOAD if self._can_download(row):
                self._load(row.entry.id)
            case Asked.DOWNLOAD if self._can_download(row):
                self._librarian.download(row.entry.id)
                self._ask(None)
            case _:
                self._ask(None)

    def _load(self, model: str) -> None:
        self.dismiss()
        self._librarian.load(model)

    def action_download(self) -> None:
        """Ask before fetching; stop what is fetched."""
        row = self._list.row
        if row is None:
            return
        if row.transfer is not None:
            self._librarian.cancel_download(row.entry.id)
        elif row.entry.is_here:
            self.notify(f"{row.entry.id} is on this machine already.", markup=False)
        elif row.arrival is not None:
            self.notify(f"{row.entry.id} is on its way: it is being loaded.", markup=False)
        else:
            self._ask(None if self._asked is Asked.DOWNLOAD else Asked.DOWNLOAD)

    def action_delete(self) -> None:
        """Ask before deleting; a second time answers."""
        row = self._list.row
        if row is None:
            return
        if self._asked is Asked.DELETE:
            self._librarian.delete(row.entry.id)
            self._ask(None)
        elif row.is_loaded or row.arrival is not None:
            self.notify(f"{row.entry.id} is loaded: load another one first.", markup=False)
        elif not row.entry.here_bytes:
            self.notify(f"{row.entry.id} is not on this machine.", markup=False)
        else:
            self._ask(Asked.DELETE)
