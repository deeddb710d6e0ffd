"""What a mouse finds on the prompt's lower edge: it sends what is written, or stops what is going on."""

from __future__ import annotations

from typing import Literal

from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

Deed = Literal["", "⏎ send", "■ stop"]
_CELLS = 8
_ASIDE = 2  # of the right edge


class SendKey(Widget):
    """Says what a click does; shown while there is anything to do."""

    DEFAULT_CSS = """
    SendKey { layer: above; dock: bottom; display: none; width: 8; height: 1; padding: 0 1; color: $accent;
              pointer: pointer; }
    SendKey:hover { text-style: reverse; }
    """

    deed: reactive[Deed] = reactive[Deed]("", init=False)

    class Clicked(Message):
        pass

    def offer(self, deed: Deed, width: int) -> None:
        """Offer `deed` at the right of a parent that is `width` cells wide."""
        self.deed = deed
        if deed:
            self.styles.offset = (width - _CELLS - _ASIDE, 0)

    def watch_deed(self, deed: Deed) -> None:
        self.display = bool(deed)

    def render(self) -> str:
        return self.deed

    def on_click(self) -> None:
        self.post_message(self.Clicked())
