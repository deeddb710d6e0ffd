"""What a mouse finds on the prompt's lower edge: it sends what is written, or stops what is going on."""

from __future__ import annotations

from enum import StrEnum

from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

_CELLS = 8
_ASIDE = 2  # of the right edge


class Offer(StrEnum):
    """What a click does, in the words that say so."""

    SEND = "⏎ send"
    STOP = "■ stop"


class SendKey(Widget):
    """Says what a click does; shown while there is anything to do."""

    DEFAULT_CSS = """
    SendKey { layer: above; dock: bottom; display: none; height: 1; padding: 0 1; color: $accent;
              pointer: pointer; }
    SendKey:hover { text-style: reverse; }
    """

    offered: reactive[Offer | None] = reactive[Offer | None](None, init=False)

    class Clicked(Message):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.styles.width = _CELLS

    def offer(self, offer: Offer | None, width: int) -> None:
        """Offer it at the right of a parent that is `width` cells wide."""
        self.offered = offer
        if offer is not None:
            self.styles.offset = (width - _CELLS - _ASIDE, 0)

    def watch_offered(self, offered: Offer | None) -> None:
        self.display = offered is not None

    def render(self) -> str:
        return self.offered or ""

    def on_click(self) -> None:
        self.post_message(self.Clicked())
