"""What can be done with one turn, as the line below it says; a click on the words does it.

e edits · c copies · j k others                  while the chat has the focus: with its keys
edits · copies · copies code · answers again     after a click, which leaves the focus in the prompt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

_APART = " · "


@dataclass(frozen=True, slots=True)
class Deed:
    text: str
    do: Callable[[], object]


def deeds_text(deeds: Sequence[Deed]) -> str:
    return _APART.join(deed.text for deed in deeds)


def deed_at(deeds: Sequence[Deed], x: int) -> Deed | None:
    """The one whose words stand at cell `x` of their line."""
    start = 0
    for deed in deeds:
        stop = start + cell_len(deed.text)
        if start <= x < stop:
            return deed
        start = stop + len(_APART)
    return None
