"""A list to choose from with keys and with the mouse."""

from __future__ import annotations

from textual.events import Click
from textual.widgets import OptionList


class PickList(OptionList):
    """A click highlights a line, to do something with it; one on the highlighted line picks it."""

    async def _on_click(self, event: Click) -> None:
        clicked: int | None = event.style.meta.get("option")
        if clicked is not None and clicked != self.highlighted:
            event.prevent_default()  # of picking it
            if not self.get_option_at_index(clicked).disabled:
                self.highlighted = clicked
