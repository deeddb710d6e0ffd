"""The keys of a screen as a line to read and to click: `enter loads · d downloads · esc closes`.

It takes as many rows as it needs, so that no key is ever cut off; with `rows` it takes no more than these and
leaves out what comes last.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len
from rich.style import Style
from textual.events import Click, MouseEvent, MouseMove
from textual.geometry import Size
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dnet_tui.keys import key_text, own_bindings, when_keys_change
from dnet_tui.look import fg, look_of
from dnet_tui.widgets.paint import Piece, row

_APART = " · "


@dataclass(frozen=True, slots=True)
class Hint:
    """What the binding with this id does, in a word or two: of the screen, a part of it, or the app."""

    id: str
    does: str


@dataclass(frozen=True, slots=True)
class _Placed:
    hint: Hint
    key: str
    x: int
    y: int

    @property
    def stop(self) -> int:
        return self.x + cell_len(self.key) + 1 + cell_len(self.hint.does)


class KeyBar(Widget):
    """Paints `hints` with their keys as they are now; a click does what the key does."""

    DEFAULT_CSS = "KeyBar { height: auto; width: 1fr; pointer: pointer; }"

    hints: reactive[tuple[Hint, ...]] = reactive((), init=False, layout=True)
    hovered: reactive[Hint | None] = reactive[Hint | None](None, init=False)
    """What is under the mouse."""

    def __init__(self, *hints: Hint, rows: int | None = None, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._rows = rows
        self._begun: Hint | None = None  # what the first of quick clicks was on
        self.set_reactive(KeyBar.hints, hints)

    def on_mount(self) -> None:
        when_keys_change(self, lambda: self.refresh(layout=True))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return max((placed.y + 1 for placed in self._placed(width)), default=1)

    def _placed(self, width: int) -> list[_Placed]:
        """Where each hint stands in `width` cells."""
        found: list[_Placed] = []
        x = y = 0
        for hint in self.hints:
            placed = _Placed(hint, key_text(self.app, hint.id), x + (len(_APART) if x else 0), y)
            if x and placed.stop > width:
                y += 1
                placed = _Placed(hint, placed.key, 0, y)
            if self._rows is not None and y >= self._rows:
                break
            found.append(placed)
            x = placed.stop
        return found

    def render_line(self, y: int) -> Strip:
        look = look_of(self.app.current_theme, self.app.theme_variables)
        pieces: list[Piece] = []
        for placed in self._placed(self.size.width):
            if placed.y == y:
                pieces += [(_APART, look.dim)] if pieces else []
                mark = Style(underline=True) if placed.hint == self.hovered else Style()
                pieces += [(placed.key, fg(look.accent) + mark), (f" {placed.hint.does}", look.dim + mark)]
        return row(pieces, self.size.width, self.rich_style)

    async def on_click(self, event: Click) -> None:
        """Do what is clicked; a double click does not answer the question that its first click raised."""
        event.stop()
        hint = self._at(event)
        if event.chain == 1:
            self._begun = hint
        if hint is not None and hint == self._begun:
            await self._do(hint.id)

    def _at(self, event: MouseEvent) -> Hint | None:
        at = event.get_content_offset_capture(self)
        shown = self._placed(self.size.width)
        return next((p.hint for p in shown if p.y == at.y and p.x <= at.x < p.stop), None)

    def on_mouse_move(self, event: MouseMove) -> None:
        self.hovered = self._at(event)

    def on_leave(self) -> None:
        self.hovered = None

    async def leave(self) -> None:
        """Do what the last of the hints says: on every screen that leaves it, or takes one step back."""
        if self.hints:
            await self._do(self.hints[-1].id)

    async def _do(self, binding_id: str) -> None:
        """Run the action of a binding of the screen, of the app, or of a part of the screen."""
        if binding_id == "app.palette":  # Textual's own
            await self.app.run_action("app.command_palette")
            return
        for node in (self.screen, self.app, *self.screen.query()):
            for kind in type(node).__mro__:
                for binding in own_bindings(kind):
                    if binding.id == binding_id:
                        await self.app.run_action(binding.action, node)
                        return
        raise AssertionError(f"no binding is called {binding_id}")
