"""Markdown to lines of cells, in one piece or as it streams.

Textual's Markdown mounts a widget per block and re-mounts lists and quotes on every append. Here a document
is plain lines: blocks that can no longer change are rendered once, an append renders only what is new in the
last block (`dnet_tui.blocks` remembers its parts).

    source   [ settled blocks ........ | last block ... ]
    strips   [ rendered once per width | put together anew ]

A block is settled when the first line of the next block is complete; from then on no further text can reach
it (CommonMark closes blocks line by line), but for a link that is defined further down: `finish` sees to it.
Of a long paragraph only the end is rendered (`dnet_tui.paragraph`). Long code streams in pieces that are
highlighted one by one; once it is settled, `polish` highlights it as a whole, a little at a time, so that no
step of the loop is long.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token
from textual.strip import Strip

from dnet_tui.blocks import Memo, Renderer, printable
from dnet_tui.paragraph import LONG_CHARS, LongParagraph

_BLANK = Strip.blank(0)


@dataclass(slots=True, eq=False)
class _Part:
    """Settled blocks, which came together."""

    source: str
    num_links: int  # that were defined when it was rendered
    strips: list[Strip]


@dataclass(frozen=True, slots=True, eq=False)
class _Unpolished:
    """A part with code that is still in pieces, and what makes it whole."""

    part: _Part
    tokens: list[Token]
    memo: Memo
    steps: Iterator[None]


class Prose:
    """A Markdown document that grows at its end, as lines `width` cells wide. Owned by one widget."""

    def __init__(self, renderer: Renderer, width: int) -> None:
        self._renderer = renderer
        self._width = width
        # Raw HTML is shown as text: a model that writes `<div>` or `<think>` means it to be seen.
        self._parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        self._blocks = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
        self._blocks.disable("inline")  # to see where blocks begin
        self._env: dict[str, object] = {}  # link definitions of the settled part
        self._parts: list[_Part] = []
        self._unpolished: deque[_Unpolished] = deque()
        self._settled: list[Strip] = []  # of all parts, with what is between them
        self._tail = ""
        self._live: list[Strip] = []
        self._memo: Memo = {}  # parts of the last block
        self._long: LongParagraph | None = None  # the last block

    @property
    def strips(self) -> list[Strip]:
        return self._settled + self._live

    @property
    def num_strips(self) -> int:
        return len(self._settled) + len(self._live)

    @property
    def num_settled(self) -> int:
        """Strips `[0, num_settled)` will not change while text comes."""
        return len(self._settled)

    def strip(self, y: int) -> Strip:
        settled = len(self._settled)
        return self._settled[y] if y < settled else self._live[y - settled]

    def append(self, text: str) -> int:
        """Add `text` at the end; return the first line that changed.

        The cost follows what is new in the last block, not the document.
        """
        settled, before = len(self._settled), self._live
        self._tail += printable(text)
        live = self._paragraph_goes_on()
        if live is None:
            live = self._parse_tail()
        joined = _joined(self._settled[-1:], live)
        self._live = joined[1:] if self._settled else joined
        return settled + _num_same(before, [*self._settled[settled:], *self._live])

    def _parse_tail(self) -> list[Strip]:
        """Settle what can be; the lines of the last block."""
        tokens = self._parser.parse(self._tail, _copied(self._env))
        boundary = self._boundary(tokens)
        if boundary:
            above, self._tail = _split(self._tail, boundary)
            self._settle(above)
            tokens = self._parser.parse(self._tail, _copied(self._env))
        content = _last_paragraph(tokens)
        is_long = content is not None and len(content) >= LONG_CHARS
        self._long = LongParagraph(self._renderer, self._parser, self._width) if is_long else None
        return self._renderer.blocks(tokens, self._width, self._memo, final=False)

    def _paragraph_goes_on(self) -> list[Strip] | None:
        """The lines of the tail while its last block is the long paragraph that it was; None: it is not."""
        if self._long is None:
            return None
        blocks, env = self._blocks.parse(self._tail), _copied(self._env)
        content = _last_paragraph(blocks)
        if content is None or self._boundary(blocks) or not self._long.is_of(content):
            return None
        assert blocks[-3].map is not None, "blocks have lines"
        above, _ = _split(self._tail, blocks[-3].map[0])
        strips = self._renderer.blocks(self._parser.parse(above, env), self._width, self._memo, final=False)
        return _joined(strips, self._long.lines(content, env))

    def show(self, text: str) -> None:
        """Show a whole document, which does not grow."""
        self._settle(printable(text), final=True)

    def finish(self) -> int:
        """No more text comes: settle the last block, and what links late; return the first changed line."""
        before = self.strips
        source, self._tail, self._live = self._tail, "", []
        self._settle(source)
        num_links = self._num_links
        late = [part for part in self._parts if part.num_links < num_links and "[" in part.source]
        if late:
            self._unpolished = deque(u for u in self._unpolished if u.part not in late)
            for part in late:
                self._render_part(part)
            self._join_parts()
        return _num_same(before, self._settled)

    # --- settled blocks ---------------------------------------------------------------------------------

    def _settle(self, source: str, *, final: bool = False) -> None:
        part = _Part(source, 0, [])
        self._render_part(part, final=final)
        self._parts.append(part)
        self._settled = _joined(self._settled, part.strips)
        self._memo = {}
        self._long = None

    def _render_part(self, part: _Part, *, final: bool = False) -> None:
        tokens = self._parser.parse(part.source, self._env)
        part.num_links = self._num_links
        part.strips = self._renderer.blocks(tokens, self._width, self._memo, final=final)
        if not final and self._renderer.has_pieces(tokens):
            steps = self._renderer.highlighting(tokens, self._memo)
            self._unpolished.append(_Unpolished(part, tokens, self._memo, steps))

    def _join_parts(self) -> None:
        self._settled = []
        for part in self._parts:
            self._settled = _joined(self._settled, part.strips)

    @property
    def _num_links(self) -> int:
        links = self._env.get("references", {})
        assert isinstance(links, dict), "the parser keeps definitions by name"
        return len(links)

    @property
    def is_polished(self) -> bool:
        return not self._unpolished

    def polish(self, seconds: float = float("inf")) -> tuple[int, int] | None:
        """Highlight settled code as a whole, for about so long; return the changed lines `[start, stop)`.

        Their number stays. None: nothing is ready to be shown yet.
        """
        end_s = time.monotonic() + seconds
        changed: tuple[int, int] | None = None
        while self._unpolished:
            for _ in self._unpolished[0].steps:
                if time.monotonic() > end_s:
                    return changed
            start, stop = self._polished(self._unpolished.popleft())
            changed = (min(start, changed[0]), max(stop, changed[1])) if changed else (start, stop)
        return changed

    def _polished(self, done: _Unpolished) -> tuple[int, int]:
        """Put the part whose code is whole now in its place, the lines `[start, stop)`."""
        strips = self._renderer.blocks(done.tokens, self._width, done.memo, final=True)
        assert len(strips) == len(done.part.strips), "code folds where it folded in pieces"
        start = 0
        for part in self._parts:
            start += bool(start and part.strips)  # the blank line between two
            if part is done.part:
                break
            start += len(part.strips)
        stop = start + len(strips)
        done.part.strips = self._settled[start:stop] = strips
        return start, stop

    def _boundary(self, tokens: list[Token]) -> int:
        """Return the first line of the last block whose first line is complete (0: nothing to settle)."""
        complete = self._tail.count("\n")
        starts = [t.map[0] for t in tokens if t.level == 0 and t.map is not None and t.map[0] < complete]
        return starts[-1] if starts else 0


def _num_same(before: list[Strip], after: list[Strip]) -> int:
    """How many strips at the start are the very same ones."""
    same = 0
    for old, new in zip(before, after, strict=False):
        if old is not new:
            break
        same += 1
    return same


def _last_paragraph(tokens: list[Token]) -> str | None:
    """The source of the paragraph that is the last block; None: another block is, or tabs are in it."""
    last = tokens[-3:]
    if [token.type for token in last] != ["paragraph_open", "inline", "paragraph_close"] or last[0].level:
        return None
    return None if "\t" in last[1].content else last[1].content


def _split(text: str, line: int) -> tuple[str, str]:
    """The first `line` lines of `text`, as the parser counts them, and the others."""
    at = 0
    for _ in range(line):
        at = text.index("\n", at) + 1
    return text[:at], text[at:]


def _joined(above: list[Strip], below: list[Strip]) -> list[Strip]:
    """One blank line between blocks."""
    return [*above, _BLANK, *below] if above and below else [*above, *below]


def _copied(env: dict[str, object]) -> dict[str, object]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in env.items()}
