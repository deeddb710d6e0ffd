"""A widget that paints lines of its own: built once per change, and only the rows that differ are drawn."""

from __future__ import annotations

from textual.geometry import Region, Size
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from dnet_tui.look import Look, look_of
from dnet_tui.state import ClusterView
from dnet_tui.widgets.paint import Piece, row

Line = list[Piece]
_LEAST = 24  # narrower lines are built for this width and cut


class Panel(Widget):
    """Shows `view`. What is hidden builds nothing; it catches up when it is shown."""

    view: reactive[ClusterView] = reactive(ClusterView(), init=False, repaint=False)

    def __init__(self, id: str | None = None) -> None:  # noqa: A002  as Widget calls it
        super().__init__(id=id)
        self._strips: list[Strip] | None = None
        self._built_for = (0, 0)

    def lines(self, width: int, room: int, look: Look) -> list[Line]:
        """The lines for `width` cells, in the `room` rows of the container where it matters."""
        raise NotImplementedError

    def watch_view(self) -> None:
        self.repaint()

    def repaint(self) -> None:
        """Build the lines again and draw those that changed."""
        old, self._strips = self._strips, None
        if not self._is_shown:
            return  # its lines are built when it is laid out
        if old is None or not self.size.width:
            self.refresh(layout=True)
            return
        new = self._build(*self._built_for)
        if len(new) != len(old):
            self.refresh(layout=True)
            return
        changed = [y for y, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
        if changed:
            width = self.size.width
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    @property
    def _is_shown(self) -> bool:
        return all(node.display for node in self.ancestors_with_self)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._strips = None

    def _build(self, width: int, room: int) -> list[Strip]:
        if self._strips is None or (width, room) != self._built_for:
            look = look_of(self.app.current_theme, self.app.theme_variables)
            base = self.rich_style
            self._strips = [row(line, width, base) for line in self.lines(max(width, _LEAST), room, look)]
            self._built_for = (width, room)
        return self._strips

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._build(width, container.height))

    def render_line(self, y: int) -> Strip:
        width, room = self.content_size.width, self._built_for[1]
        strips = self._build(width, room)
        return strips[y] if y < len(strips) else Strip.blank(width, self.rich_style)
