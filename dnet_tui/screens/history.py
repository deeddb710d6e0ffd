"""ctrl+f: the conversations of the past, found by what was said in them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from dnet_tui.export import write_export
from dnet_tui.history import ChatSummary, History, HistoryError
from dnet_tui.keys import key_text
from dnet_tui.screens.ask import AskScreen
from dnet_tui.units import ago_text
from dnet_tui.widgets.key_bar import Hint, KeyBar
from dnet_tui.widgets.pick_list import PickList

_LEAST_TITLE = 12  # cells


@dataclass(frozen=True, slots=True)
class HistoryResult:
    """What was chosen (None: nothing), and what was deleted meanwhile."""

    opened: int | None
    deleted: frozenset[int]


class HistoryScreen(ModalScreen[HistoryResult]):
    """Lists the chats of `history`; `current` is the one that is open. Exports go to `folder`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close", id="history.close"),
        Binding("enter", "open", "Open", id="history.open"),
        Binding("slash", "search", "Search", id="history.search"),
        Binding("r", "rename", "Rename", id="history.rename"),
        Binding("x,delete", "delete", "Delete", id="history.delete"),
        Binding("u", "undo", "Bring back what was deleted last", id="history.undo"),
        Binding("e", "export", "Export as Markdown and JSON", id="history.export"),
        Binding("j", "move(1)", "Next", id="history.next"),
        Binding("k", "move(-1)", "Previous", id="history.previous"),
        Binding("g", "first", "First", id="history.first"),
        Binding("G", "last", "Last", id="history.last"),
        Binding("down", "list", "From the search to the list", id="history.list"),
    ]

    def __init__(
        self,
        history: History,
        current: int | None,
        folder: Path,
        now_unix_s: float,
    ) -> None:
        super().__init__()
        self._history = history
        self._current = current
        self._folder = folder
        self._now_unix_s = now_unix_s  # ages are told as of the opening
        self._chats: tuple[ChatSummary, ...] = ()
        self._deleted: list[int] = []  # the last one at the end

    def compose(self) -> ComposeResult:
        with Vertical(id="history-box"):
            yield Input(placeholder="search in all chats", id="history-search", compact=True)
            yield PickList(id="history-list", compact=True, markup=False)
            yield Static("", id="history-note", markup=False)
            yield KeyBar()

    def on_mount(self) -> None:
        self.query_one("#history-box").border_title = "History"
        self.query_one(OptionList).focus()
        self._fill()

    def on_descendant_focus(self) -> None:
        self._show_hints()

    def _show_hints(self) -> None:
        """What can be done where the focus is: in the search letters are no keys."""
        search = self.query_one(Input)
        close = Hint("history.close", "clears the search" if search.value else "closes")
        if search.has_focus:
            hints = [Hint("history.list", "to the list")]
        else:
            hints = [
                Hint("history.open", "opens"),
                Hint("history.rename", "renames"),
                Hint("history.delete", "deletes"),
                *([Hint("history.undo", "brings back")] if self._deleted else []),
                Hint("history.export", "exports"),
                Hint("history.search", "searches"),
            ]
        self.query_one(KeyBar).hints = (*hints, close)

    # --- the list ---------------------------------------------------------------------------------------

    @work(exclusive=True, group="fill")
    async def _fill(self, keep: int | None = None) -> None:
        """Show what is found; the highlight stays at line `keep`."""
        words = self.query_one(Input).value
        self._show_hints()
        try:
            self._chats = await self._history.chats(words)
        except HistoryError as error:
            self._say(str(error))
            return
        self._show_chats(keep)
        if self._chats:
            self._say("")
        else:
            self._say("nothing found: other words?" if words else "No chat yet. What you ask is kept here.")

    def _show_chats(self, at: int | None) -> None:
        """List the chats, as wide as there is room now, with line `at` highlighted."""
        chats = self.query_one(OptionList)
        chats.clear_options()
        chats.add_options([Option(self._line(chat), id=str(chat.id)) for chat in self._chats])
        if self._chats:
            chats.highlighted = min(at or 0, len(self._chats) - 1)

    def on_resize(self) -> None:
        self.call_after_refresh(lambda: self._show_chats(self.query_one(OptionList).highlighted))

    def _line(self, chat: ChatSummary) -> Text:
        here = "● " if chat.id == self._current else "  "
        turns = "1 turn" if chat.num_turns == 1 else f"{chat.num_turns} turns"
        when = f"  {ago_text(self._now_unix_s - chat.updated_unix_s)} · {turns}"
        # less the list's padding, and `here`
        room = self.query_one(OptionList).scrollable_content_region.width - 4
        title = Text(chat.title, "bold")
        title.truncate(max(_LEAST_TITLE, room - len(when)), overflow="ellipsis")
        line = Text.assemble(here, title, (when, "dim"))
        if chat.found:
            line.append(f"\n    {' '.join(chat.found.split())}", "dim italic")
        return line

    def _say(self, text: str) -> None:
        self.query_one("#history-note", Static).update(text)

    @property
    def _highlighted(self) -> ChatSummary | None:
        at = self.query_one(OptionList).highlighted
        return self._chats[at] if at is not None and at < len(self._chats) else None

    @on(Input.Changed, "#history-search")
    def _search(self) -> None:
        self._fill()

    @on(Input.Submitted, "#history-search")
    def action_list(self) -> None:
        self.query_one(OptionList).focus()

    @on(OptionList.OptionSelected)
    def action_open(self) -> None:
        chat = self._highlighted
        if chat is not None:
            self._end(chat.id)

    # --- keys -------------------------------------------------------------------------------------------

    def _end(self, opened: int | None) -> None:
        self.dismiss(HistoryResult(opened, frozenset(self._deleted)))

    def action_close(self) -> None:
        search = self.query_one(Input)
        if search.value:
            search.value = ""
            self.query_one(OptionList).focus()
        else:
            self._end(None)

    def action_search(self) -> None:
        self.query_one(Input).focus()

    def action_move(self, step: int) -> None:
        chats = self.query_one(OptionList)
        (chats.action_cursor_down if step > 0 else chats.action_cursor_up)()

    def action_first(self) -> None:
        self.query_one(OptionList).action_first()

    def action_last(self) -> None:
        self.query_one(OptionList).action_last()

    def action_rename(self) -> None:
        self._rename()

    @work(exclusive=True, group="change")
    async def _rename(self) -> None:
        chat = self._highlighted
        if chat is None:
            return
        title = await self.app.push_screen_wait(AskScreen("Rename", chat.title))
        if title is not None:
            await self._change(self._history.rename(chat.id, title))

    def action_delete(self) -> None:
        self._delete()

    @work(exclusive=True, group="change")
    async def _delete(self) -> None:
        chat = self._highlighted
        if chat is None:
            return
        self._deleted.append(chat.id)
        await self._change(self._history.delete(chat.id))
        self._say(f"'{chat.title}' is deleted; {key_text(self.app, 'history.undo')} brings it back.")

    def action_undo(self) -> None:
        self._undo()

    @work(exclusive=True, group="change")
    async def _undo(self) -> None:
        if self._deleted:
            await self._change(self._history.restore(self._deleted.pop()))

    async def _change(self, change: Awaitable[None]) -> None:
        keep = self.query_one(OptionList).highlighted
        try:
            await change
        except HistoryError as error:
            self._say(str(error))
            return
        await self._fill(keep).wait()

    def action_export(self) -> None:
        self._export()

    @work(exclusive=True, group="change")
    async def _export(self) -> None:
        chat = self._highlighted
        if chat is None:
            return
        try:
            saved = await self._history.read(chat.id)
            markdown, _ = await asyncio.to_thread(write_export, saved, self._folder)
        except (HistoryError, OSError) as error:
            self._say(f"not exported: {error}")
            return
        self._say(f"written: {markdown} and .json beside it")
