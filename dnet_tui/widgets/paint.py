"""One line of cells from styled pieces: what every `render_line` here ends in."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

Piece = tuple[str, Style]


def width_of(pieces: Iterable[Piece]) -> int:
    return sum(cell_len(text) for text, _ in pieces)


def row(pieces: Iterable[Piece], width: int, base: Style) -> Strip:
    """Paint `pieces` from the left over `base`, cut or filled to `width` cells; a cut line ends in `…`."""
    segments: list[Segment] = []
    left = width
    for text, style in pieces:
        cells = cell_len(text)
        if cells > left:
            if left > 0:
                segments.append(Segment(set_cell_size(text, left - 1) + "…", base + style))
            left = 0
            break
        segments.append(Segment(text, base + style))
        left -= cells
    if left:
        segments.append(Segment(" " * left, base))
    return Strip(segments, width)
