"""What can be done with one turn, as the line below it says; a click on the words does it.

e edits · c copies · j k others                  while the chat has the focus: with its keys
edits · copies · copies code · answers again     after a click, which leaves the focus in the prompt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len

_APART = " · "
_MARGIN = 1  # before the first of them


@dataclass(frozen=True, slots=True)
class Deed:
    text: str
    do: Callable[[], object]


def deeds_text(deeds: Sequence[Deed]) -> str:
    return _APART.join(deed.text for deed in deeds)


def do_at(deeds: Sequence[Deed], x: int) -> None:
    """Do that one whose words stand at cell `x` of their line, if any does."""
    start = _MARGIN
    for deed in deeds:
        stop = start + cell_len(deed.text)
        if start <= x < stop:
            deed.do()
        start = stop + len(_APART)
