"""The plan: what it does and why, and changing it by hand; the loaded model goes on meanwhile.

Every change is shown only when the solver has checked it. The screen asks its owner for that (`Wanted`) and
is told the outcome (`accept`, `refuse`); it is dismissed with the plan to load, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Click, MouseDown, MouseMove, MouseUp
from textual.message import Message
from textual.reactive import reactive
from textual.screen import ModalScreen

from dnet_core.types.plan import Pin, Solution
from dnet_tui.keys import key_text
from dnet_tui.plan_edit import Edit, NoStep, edit_of, grow, join, keep, move_boundary
from dnet_tui.state import ClusterView, Ready
from dnet_tui.widgets.device_list import DeviceList
from dnet_tui.widgets.key_bar import Hint, KeyBar
from dnet_tui.widgets.layer_strip import LayerStrip
from dnet_tui.widgets.plan_panel import PlanPanel, PlanState, rows_of

_MOST_UNDOS = 100


class PlanStrip(LayerStrip, can_focus=False):
    """The plan's layers; a boundary can be dragged, a click chooses a window."""

    @dataclass
    class Dragged(Message):
        """The boundary after window `slot` is at `layer`; `begins` a new drag."""

        slot: int
        layer: int

    @dataclass
    class Chosen(Message):
        slot: int

    def __init__(self) -> None:
        super().__init__(id="plan-strip")
        self._held: int | None = None

    def on_mouse_down(self, event: MouseDown) -> None:
        plan, width = self.view.plan, self.content_size.width
        if plan is None:
            return
        x = event.get_content_offset_capture(self).x
        edges = [window.stop * width / plan.num_layers for window, _ in plan.path[:-1]]
        near = [slot for slot, edge in enumerate(edges) if abs(edge - x) <= 2]
        if near:
            self._held = min(near, key=lambda slot: abs(edges[slot] - x))
            self.capture_mouse()

    def on_mouse_move(self, event: MouseMove) -> None:
        super().on_mouse_move(event)
        layer = self._layer_at(event.get_content_offset_capture(self).x)
        if self._held is not None and layer is not None:
            self.post_message(self.Dragged(self._held, layer))

    def on_mouse_up(self, event: MouseUp) -> None:
        if self._held is not None:
            self._held = None
            self.release_mouse()

    def action_open(self) -> None:
        plan = self.view.plan
        if plan is not None:
            slots = [slot for slot, (window, _) in enumerate(plan.path) if self.cursor in window]
            self.post_message(self.Chosen(slots[0]))


class PlanScreen(ModalScreen[Solution | None]):
    """Shows and edits `solution`, beside the plan that is loaded in `view`; begins without `leave_out`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f12", "cancel", "Close", id="plan.close", tooltip="Leave everything as it is"),
        Binding("up,k", "move(-1)", "Device above", id="plan.up"),
        Binding("down,j", "move(1)", "Device below", id="plan.down"),
        Binding("home,g", "move(-1000)", "First device", id="plan.first"),
        Binding("end,G", "move(1000)", "Last device", id="plan.last"),
        Binding("left,h", "grow(-1)", "Fewer", id="plan.fewer", tooltip="One layer fewer"),
        Binding("right,l", "grow(1)", "More", id="plan.more", tooltip="One layer more"),
        Binding("shift+left,H", "grow(-5)", "Five fewer", id="plan.five_fewer"),
        Binding("shift+right,L", "grow(5)", "Five more", id="plan.five_more"),
        Binding("minus", "keep(-1)", "Stream", id="plan.stream",
                tooltip="One layer more streams from disk"),
        Binding("plus,equals_sign", "keep(1)", "Keep", id="plan.keep",
                tooltip="One layer more stays in memory"),
        Binding("x", "exclude", "Out/in", id="plan.exclude", tooltip="Leave the device out, or take it in"),
        Binding("p", "pin", "Pin", id="plan.pin", tooltip="Keep its layers when the others are planned anew"),
        Binding("u", "undo", "Undo", id="plan.undo"),
        Binding("a", "automatic", "Auto", id="plan.automatic", tooltip="The plan that the solver finds best"),
        Binding("enter", "apply", "Load", id="plan.apply", tooltip="Load the model so"),
    ]  # fmt: skip

    view: reactive[ClusterView] = reactive(ClusterView(), init=False, repaint=False)

    @dataclass
    class Wanted(Message):
        """Somebody wants to know what this placement does; without `edit`, what the solver finds best."""

        screen: PlanScreen
        edit: Edit | None
        excluded: frozenset[str]
        pins: tuple[Pin, ...]

    def __init__(self, view: ClusterView, solution: Solution, leave_out: str | None = None) -> None:
        super().__init__()
        self.set_reactive(PlanScreen.view, view)
        self._leave_out_first = leave_out
        self._strip = PlanStrip()
        self._panel = PlanPanel()
        self._box = VerticalScroll(id="plan-box")
        self._state = PlanState(solution, rows_of(solution), edit_of(solution.plan), loaded=view.plan)
        self._good: list[PlanState] = [self._state]  # what was accepted, oldest first
        self._edit = self._state.edit  # what is wanted; ahead of the state while it is being checked
        self._is_checking = False

    def compose(self) -> ComposeResult:
        with self._box:
            yield self._strip
            yield self._panel
            yield KeyBar(
                Hint("plan.fewer", "fewer"),
                Hint("plan.more", "more"),
                Hint("plan.stream", "streams"),
                Hint("plan.keep", "keeps"),
                Hint("plan.exclude", "out/in"),
                Hint("plan.pin", "pins"),
                Hint("plan.undo", "undoes"),
                Hint("plan.automatic", "automatic"),
                Hint("plan.apply", "loads"),
                Hint("plan.close", "closes"),
            )

    def on_mount(self) -> None:
        self._box.border_title = f"Plan · {self._state.solution.plan.model}"
        self._panel.set_reactive(PlanPanel.view, self.view)
        self._box.focus()
        self._show(self._state)
        if self._leave_out_first is not None:
            self.leave_out(self._leave_out_first)

    def watch_view(self, view: ClusterView) -> None:
        self._panel.view = view
        self._show(replace(self._state, loaded=view.plan))

    def _show(self, state: PlanState) -> None:
        self._state = state
        self._panel.state = state
        shown = Ready(state.solution.plan, 0.0)
        self._strip.view = replace(self.view, model=shown, laps=(), sessions={}, devices=())
        what = "by hand" if state.by_hand else "as the solver finds best"
        self._box.border_subtitle = (
            "loaded" if state.solution.plan == state.loaded else f"{what} · not loaded"
        )

    # --- what its owner answers -------------------------------------------------------------------------

    def accept(self, solution: Solution, wanted: Wanted) -> None:
        """`solution` is lawful: show it."""
        self._is_checking = False
        rows = rows_of(solution)
        names = [row.peer for row in rows]
        cursor = self._state.cursor
        if names != [row.peer for row in self._state.rows]:
            cursor = names.index(self._state.chosen.peer) if self._state.chosen.peer in names else 0
        state = replace(
            self._state,
            solution=solution,
            rows=rows,
            edit=edit_of(solution.plan, wanted.edit.num_resident if wanted.edit is not None else None),
            cursor=cursor,
            by_hand=wanted.edit is not None or bool(wanted.pins or wanted.excluded),
            excluded=wanted.excluded,
            problem=None,
        )
        self._good = [*self._good[-_MOST_UNDOS:], state]
        if wanted.edit is None or wanted.edit == self._edit:
            self._edit = state.edit
        self._show(state)

    def refuse(self, message: str) -> None:
        """What was wanted is no plan: say why and go back to what was."""
        self._is_checking = False
        self._edit = self._state.edit
        self._show(replace(self._state, problem=message))

    # --- what a person does -----------------------------------------------------------------------------

    def _want(self, change: Callable[[], Edit]) -> None:
        """Change what is wanted and ask what it does."""
        try:
            self._edit = change()
        except NoStep as error:
            self._show(replace(self._state, problem=str(error)))
        else:
            self._check(self._edit, self._state.excluded, ())

    def _check(self, edit: Edit | None, excluded: frozenset[str], pins: tuple[Pin, ...]) -> None:
        self._is_checking = True
        self.post_message(self.Wanted(self, edit, excluded, pins))

    def action_move(self, step: int) -> None:
        cursor = max(0, min(len(self._state.rows) - 1, self._state.cursor + step))
        self._show(replace(self._state, cursor=cursor, problem=None))

    @on(PlanPanel.Chosen)
    def _choose_row(self, event: PlanPanel.Chosen) -> None:
        self._show(replace(self._state, cursor=event.row, problem=None))

    @on(PlanStrip.Chosen)
    def _choose_slot(self, event: PlanStrip.Chosen) -> None:
        self._show(replace(self._state, cursor=event.slot, problem=None))

    @on(DeviceList.Opened)
    def _swallow(self, event: DeviceList.Opened) -> None:
        event.stop()

    @on(PlanStrip.Dragged)
    def _drag(self, event: PlanStrip.Dragged) -> None:
        if self._edit.path[event.slot][1].stop != event.layer:
            self._want(lambda: move_boundary(self._edit, event.slot, event.layer))

    def action_grow(self, count: int) -> None:
        row = self._state.chosen
        if row.slot is None:
            if count > 0:
                excluded = self._state.excluded - {row.peer}
                self._state = replace(self._state, excluded=excluded)
                self._want(lambda: join(self._edit, row.peer))
            return
        slot = row.slot
        self._want(lambda: grow(self._edit, slot, count))

    def action_keep(self, count: int) -> None:
        row = self._state.chosen
        assignment = next((a for a in self._state.solution.plan.assignments if a.peer == row.peer), None)
        if assignment is not None:
            now = self._edit.num_resident.get(row.peer, len(assignment.resident))
            self._want(lambda: keep(self._edit, row.peer, now + count))

    def action_exclude(self) -> None:
        self.leave_out(self._state.chosen.peer)

    def leave_out(self, peer: str) -> None:
        """Plan without `peer`, or with it again."""
        self._plan_anew(self._state.excluded ^ {peer})

    def action_pin(self) -> None:
        row = self._state.chosen
        if row.slot is None or self._state.solution.plan.rounds > 1:
            why = "only a device of a ring of one round can be pinned"
            self._show(replace(self._state, problem=why))
            return
        self._show(replace(self._state, pinned=self._state.pinned ^ {row.peer}, problem=None))

    def action_automatic(self) -> None:
        self._state = replace(self._state, pinned=frozenset())
        self._plan_anew(frozenset())

    def _plan_anew(self, excluded: frozenset[str]) -> None:
        own = self._edit.windows
        pins = tuple(Pin(peer, own[peer]) for peer in sorted(self._state.pinned - excluded) if peer in own)
        self._check(None, excluded, pins)

    def action_undo(self) -> None:
        if len(self._good) > 1:
            self._good.pop()
        before = self._good[-1]
        self._edit = before.edit
        self._show(replace(before, loaded=self._state.loaded, problem=None))

    def action_apply(self) -> None:
        if self._state.solution.plan == self._state.loaded:
            self._show(replace(self._state, problem="this is the plan that is loaded: change it first"))
        else:
            self.dismiss(self._state.solution)

    def on_click(self, event: Click) -> None:
        """A click beside the plan throws nothing away that was changed here."""
        state = self._state
        is_new = state.by_hand and state.solution.plan != state.loaded
        if event.widget is self and (is_new or self._is_checking or state.pinned):
            event.stop()
            load, close = key_text(self.app, "plan.apply"), key_text(self.app, "plan.close")
            said = f"what you changed is not loaded: {load} loads it, {close} leaves everything as it is"
            self._show(replace(state, problem=said))

    def action_cancel(self) -> None:
        self.dismiss(None)
