"""A paragraph that has become long while it streams: what its front shows is not rendered again.

    source   [ front ................... | rest, rendered at every append ]
    lines    [ whole lines, kept | carry | ............................. ]

The front ends at a space where none of its marks is open, so that no further text changes what it says; the
last of its lines goes on with the rest.
"""

from __future__ import annotations

import io
import re

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console
from rich.text import Text
from textual.strip import Strip

from dnet_tui.blocks import MIN_WIDTH, Renderer

LONG_CHARS = 1500
"""From this length on a paragraph is rendered by parts."""
_REST_CHARS = 300  # are left to the rest when the front grows, for marks that close soon
_MAY_OPEN = re.compile(r"~~|[`\[]|\*(?!\s)|(?<!\w)_(?!\s)")
_IN_BRACKETS = re.compile(
    r"\[[^\[\]]*\]"
)  # `[1]`, which is no link: what makes it one stands right behind it
_CONSOLE = Console(file=io.StringIO(), color_system="truecolor", legacy_windows=False, _environ={})


class LongParagraph:
    """The lines of one paragraph that grows at its end. Owned by its document."""

    def __init__(self, renderer: Renderer, parser: MarkdownIt, width: int) -> None:
        self._renderer = renderer
        self._parser = parser
        self._width = max(width, MIN_WIDTH)
        self._front = ""
        self._kept: list[Strip] = []
        self._carry = Text()
        self._next_chars = LONG_CHARS  # the length at which the front is to grow

    def is_of(self, source: str) -> bool:
        """Whether `source` is the same paragraph with more at its end."""
        return source.startswith(self._front)

    def lines(self, source: str, env: dict[str, object]) -> list[Strip]:
        """All lines of `source`, which `is_of` this one; `env` has the links that are defined."""
        if len(source) >= self._next_chars:
            self._grow_front(source, env)
            self._next_chars = len(source) + _REST_CHARS
        rest, _ = self._text(source[len(self._front) :], env)
        return [*self._kept, *map(_strip, self._wrapped(rest))]

    def _grow_front(self, source: str, env: dict[str, object]) -> None:
        """Put as much as can be into the front; nothing while a mark is open."""
        spaces = [m.start() for m in re.finditer(r"(?<=[^\s\\]) (?=\S)", source[: len(source) - _REST_CHARS])]
        if not spaces or spaces[-1] <= len(self._front):
            return
        text, is_open = self._text(source[len(self._front) : spaces[-1]], env)
        if is_open:
            return
        *whole, last = self._wrapped(text)
        self._kept = [*self._kept, *map(_strip, whole)]
        self._carry = last + Text(" ")
        self._front = source[: spaces[-1] + 1]

    def _text(self, source: str, env: dict[str, object]) -> tuple[Text, bool]:
        """`source` in one line, more where it breaks, and whether a mark in it may go on behind it."""
        (inline,) = self._parser.parseInline(source, env)
        block = [Token("paragraph_open", "p", 1), inline, Token("paragraph_close", "p", -1)]
        strips = self._renderer.blocks(block, 2 * len(source) + MIN_WIDTH, {}, final=False)
        lines = [Text.assemble(*((s.text, s.style or "") for s in strip)) for strip in strips]
        told = "".join(token.content for token in inline.children or () if token.type == "text")
        return Text("\n").join(lines), _MAY_OPEN.search(_IN_BRACKETS.sub("", told)) is not None

    def _wrapped(self, rest: Text) -> list[Text]:
        return list((self._carry + rest).wrap(_CONSOLE, self._width, overflow="fold"))


def _strip(line: Text) -> Strip:
    return Strip(line.render(_CONSOLE))
