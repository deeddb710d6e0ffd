"""Markdown to lines of cells, in one piece or as it streams.

Textual's Markdown mounts a widget per block and re-mounts lists and quotes on every append. Here a document
is plain lines: blocks that can no longer change are rendered once, an append renders only what is new in the
last block (`dnet_tui.blocks` remembers its parts).

    source   [ settled blocks ........ | last block ... ]
    strips   [ rendered once per width | put together anew ]

A block is settled when the first line of the next block is complete; from then on no further text can reach
it (CommonMark closes blocks line by line).
"""

from __future__ import annotations

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual.strip import Strip

from dnet_tui.blocks import Memo, Renderer, printable


class Prose:
    """A Markdown document that grows at its end, as lines `width` cells wide. Owned by one widget."""

    def __init__(self, renderer: Renderer, width: int) -> None:
        self._renderer = renderer
        self._width = width
        # Raw HTML is shown as text: a model that writes `<div>` or `<think>` means it to be seen.
        self._parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        self._env: dict[str, object] = {}  # link definitions of the settled part
        self._settled: list[Strip] = []
        self._tail = ""
        self._live: list[Strip] = []
        self._memo: Memo = {}  # parts of the last block

    @property
    def strips(self) -> list[Strip]:
        return self._settled + self._live

    @property
    def num_strips(self) -> int:
        return len(self._settled) + len(self._live)

    @property
    def num_settled(self) -> int:
        """Strips `[0, num_settled)` will never change."""
        return len(self._settled)

    def strip(self, y: int) -> Strip:
        settled = len(self._settled)
        return self._settled[y] if y < settled else self._live[y - settled]

    def append(self, text: str) -> int:
        """Add `text` at the end; return the first line that changed.

        The cost follows what is new in the last block, not the document.
        """
        before = self._live
        self._tail += printable(text)
        tokens = self._parser.parse(self._tail, _copied(self._env))
        boundary = self._boundary(tokens)
        unchanged = len(self._settled)
        if boundary:
            lines = self._tail.splitlines(keepends=True)
            done = self._parser.parse("".join(lines[:boundary]), self._env)
            unchanged = 0 if not self._settled else unchanged
            self._settled = _joined(self._settled, self._rendered(done, final=True))
            self._tail = "".join(lines[boundary:])
            self._memo = {}
            tokens = self._parser.parse(self._tail, _copied(self._env))
        joined = _joined(self._settled[-1:], self._rendered(tokens, final=False))
        self._live = joined[1:] if self._settled else joined
        return unchanged if boundary else unchanged + _num_same(before, self._live)

    def finish(self) -> None:
        """Render the last block as one that will not grow."""
        joined = _joined(self._settled[-1:], self._rendered(self._parse_tail(), final=True))
        self._live = joined[1:] if self._settled else joined
        self._memo = {}

    def _parse_tail(self) -> list[Token]:
        return self._parser.parse(self._tail, _copied(self._env))

    def _boundary(self, tokens: list[Token]) -> int:
        """Return the first line of the last block whose first line is complete (0: nothing to settle)."""
        complete = self._tail.count("\n")
        starts = [t.map[0] for t in tokens if t.level == 0 and t.map is not None and t.map[0] < complete]
        return starts[-1] if starts else 0

    def _rendered(self, tokens: list[Token], *, final: bool) -> list[Strip]:
        return self._renderer.blocks(tokens, self._width, self._memo, final=final)


def _num_same(before: list[Strip], after: list[Strip]) -> int:
    """How many strips at the start are the very same ones."""
    same = 0
    for old, new in zip(before, after, strict=False):
        if old is not new:
            break
        same += 1
    return same


def _joined(above: list[Strip], below: list[Strip]) -> list[Strip]:
    """One blank line between blocks."""
    return [*above, Strip.blank(0), *below] if above and below else [*above, *below]


def _copied(env: dict[str, object]) -> dict[str, object]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in env.items()}
