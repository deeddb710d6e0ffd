"""The conversation: turns from the top, the view at the newest unless the user has scrolled up."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.reactive import reactive
from textual.widgets import Static

from dnet_tui.chat import Turn
from dnet_tui.widgets.turn import TurnWidget

HINT = (
    "Ask anything. The answer comes from the devices above, nothing leaves them.\n"
    "enter sends · ctrl+j starts a new line · F1 shows every key"
)


class ChatLog(VerticalScroll):
    """Shows `turns`; a turn that did not change is not touched."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll_up", "Scroll up", show=False, id="log.up"),
        Binding("down", "scroll_down", "Scroll down", show=False, id="log.down"),
        Binding("pageup", "page_up", "Page up", show=False, id="log.page_up"),
        Binding("pagedown", "page_down", "Page down", show=False, id="log.page_down"),
        Binding("home", "scroll_home", "To the first turn", show=False, id="log.home"),
        Binding("end", "scroll_end", "To the newest turn", show=False, id="log.end"),
    ]

    turns: reactive[tuple[Turn, ...]] = reactive((), init=False, repaint=False)
    spin: reactive[int] = reactive(0, init=False, repaint=False)

    problem: reactive[str | None] = reactive(None, init=False, repaint=False)
    """Why nothing can be asked."""

    def __init__(self) -> None:
        super().__init__(Static(HINT, id="hint"), Static(id="problem", markup=False), id="chat")
        self._turn_widgets: list[TurnWidget] = []

    def on_mount(self) -> None:
        self.anchor()

    def watch_turns(self, old: tuple[Turn, ...], new: tuple[Turn, ...]) -> None:
        self.query_one("#hint").display = not new
        for gone in self._turn_widgets[len(new) :]:
            gone.remove()
        del self._turn_widgets[len(new) :]
        for widget, turn in zip(self._turn_widgets, new, strict=False):
            widget.turn = turn
        added = [TurnWidget(turn) for turn in new[len(self._turn_widgets) :]]
        if added:
            self._turn_widgets += added
            self.mount_all(added, before="#problem")
            self.anchor()  # who asks wants to see the answer, wherever the view was

    def watch_problem(self, problem: str | None) -> None:
        notice = self.query_one("#problem", Static)
        notice.display = problem is not None
        notice.update(f"✗ {problem}\n\nctrl+r tries again" if problem else "")

    def watch_spin(self, spin: int) -> None:
        if self._turn_widgets:
            self._turn_widgets[-1].spin = spin
