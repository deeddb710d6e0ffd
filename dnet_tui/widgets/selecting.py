"""Text of the chat that is selected with the mouse: how it looks, and what is copied of it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.cells import cell_len
from rich.style import Style
from textual.geometry import Offset
from textual.selection import Selection
from textual.strip import Strip

_MARGINS = ("▎", " ")  # the first cell of a line


def selected_line(line: Strip, span: tuple[int, int], style: Style) -> Strip:
    """`line` with the characters `[start, end)` of `span` in `style`; -1 is its end."""
    text, length = line.text, line.cell_length
    start, end = cell_len(text[: span[0]]), length if span[1] == -1 else cell_len(text[: span[1]])
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
    """The word at the cell `at`, which is in `line`, in characters; nothing where no word is."""
    text = line.text
    x = next((index for index in range(len(text)) if at.x < cell_len(text[: index + 1])), len(text))
    found = (word.span() for word in re.finditer(r"[^\s▎│]+", text))
    start, end = next((span for span in found if span[0] <= x < span[1]), (x, x))
    return Selection(Offset(start, at.y), Offset(end, at.y))
