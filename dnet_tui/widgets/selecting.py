"""Text of the chat that is selected with the mouse: how it looks, and what is copied of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.style import Style
from textual.geometry import Offset
from textual.selection import Selection
from textual.strip import Strip

_MARGINS = ("▎", " ")  # the first cell of a line


def selected_line(line: Strip, span: tuple[int, int], style: Style) -> Strip:
    """`line` with the cells `[start, end)` of `span` in `style`; -1 is its end."""
    start, end = span
    length = line.cell_length
    end = length if end == -1 else min(end, length)
    if start >= end:
        return line
    middle = Strip(
        segment._replace(style=(segment.style or Style()) + style) for segment in line.crop(start, end)
    )
    return Strip.join([line.crop(0, start), middle, line.crop(end, length)])


def selected_text(lines: Iterable[Strip], selection: Selection) -> str:
    """What is selected of `lines`, without the margin of lines that are selected from their beginning."""
    first, *others = selection.extract("\n".join(line.text.rstrip() for line in lines)).split("\n")
    if selection.start is None or selection.start.x == 0:
        first = _without_margin(first)
    return "\n".join([first, *map(_without_margin, others)])


def _without_margin(line: str) -> str:
    return line[1:] if line.startswith(_MARGINS) else line


def word_at(line: Strip, at: Offset) -> Selection:
    """The word at `at`, which is in `line`; nothing where no word is."""
    found = (word.span() for word in re.finditer(r"[^\s▎│]+", line.text))
    start, end = next((span for span in found if span[0] <= at.x < span[1]), (at.x, at.x))
    return Selection(Offset(start, at.y), Offset(end, at.y))
