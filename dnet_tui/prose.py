"""Markdown to lines of cells, in one piece or as it streams.

Textual's Markdown mounts a widget per block and re-mounts lists and quotes on every append. Here a document
is plain lines: blocks that can no longer change are rendered once, an append renders only the last block.

    source   [ settled blocks ........ | last block ... ]
    strips   [ rendered once per width | rendered anew ]

A block is settled when the first line of the next block is complete; from then on no further text can reach
it (CommonMark closes blocks line by line).
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, ListElement, ListItem, Markdown, MarkdownElement
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme
from textual.strip import Strip

from dnet_tui.look import Look

_MIN_WIDTH = 8
_CONTROL = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_CONTROL |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


def printable(text: str) -> str:
    """Make control characters and bidirectional overrides visible: a model must not steer the terminal."""
    return text.replace("\r\n", "\n").translate(_CONTROL)


class _Heading(Heading):
    """All headings stand at the left, as in a chat there is no page to centre on."""

    LEVEL_ALIGN = dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), "left")


class _Code(CodeBlock):
    """A code block on raised ground, without the theme's own background."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ground = console.get_style("dnet.code")
        code = str(self.text).rstrip("\n")
        if ground.bgcolor is None:
            yield Padding(Text(code, style=ground), (0, 1))
            return
        syntax = Syntax(code, self.lexer_name, theme=self.theme, word_wrap=True, padding=(0, 1),
                        background_color=ground.bgcolor.name)  # fmt: skip
        yield syntax


class _Item(ListItem):
    """A list item whose number has its dot."""

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        gutter = len(str(last_number)) + 3
        lines = console.render_lines(self.elements, options.update(width=options.max_width - gutter))
        style = console.get_style("markdown.item.number")
        for index, line in enumerate(lines):
            yield Segment(f"{number}. ".rjust(gutter) if index == 0 else " " * gutter, style)
            yield from line
            yield Segment("\n")


class _Blocks(Markdown):
    """Rich's Markdown over tokens that are already parsed."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "list_item_open": _Item,
        "bullet_list_open": ListElement,
    }

    def __init__(self, tokens: list[Token], code_theme: str) -> None:
        super().__init__("", code_theme=code_theme)
        self.parsed = tokens


class Renderer:
    """Markdown blocks and plain text to strips, in one theme."""

    def __init__(self, look: Look) -> None:
        self.look = look
        self._code_theme = "github-dark" if look.dark else "default"
        self._console = Console(
            file=io.StringIO(),
            force_terminal=True,
            color_system="truecolor",
            legacy_windows=False,
            markup=False,
            emoji=False,
            highlight=False,
            theme=_theme(look),
            _environ={},
        )

    def blocks(self, tokens: list[Token], width: int) -> list[Strip]:
        """Render one top-level block to strips of at most `width` cells, without blank lines around it."""
        return _trimmed(self._strips(_Blocks(tokens, self._code_theme), width))

    def text(self, text: str, style: Style, width: int, *, pad: int = 0) -> list[Strip]:
        """Wrap plain `text` as it is, every line filled to `width` cells, `pad` of them on each side."""
        lines = Text(printable(text), style=style, overflow="fold", tab_size=4)
        options = self._options(width)
        rendered = self._console.render_lines(Padding(lines, (0, pad), style=style), options, style=style)
        return [Strip(line) for line in rendered]

    def _strips(self, markdown: Markdown, width: int) -> list[Strip]:
        return [Strip(line) for line in self._console.render_lines(markdown, self._options(width), pad=False)]

    def _options(self, width: int) -> ConsoleOptions:
        return self._console.options.update(width=max(width, _MIN_WIDTH), height=None)


def _trimmed(strips: list[Strip]) -> list[Strip]:
    start, stop = 0, len(strips)
    while start < stop and not strips[start].text.strip() and not _is_painted(strips[start]):
        start += 1
    while stop > start and not strips[stop - 1].text.strip() and not _is_painted(strips[stop - 1]):
        stop -= 1
    return strips[start:stop]


def _is_painted(strip: Strip) -> bool:
    return any(segment.style and segment.style.bgcolor for segment in strip)


def _theme(look: Look) -> Theme:
    accent = Style(color=(look.accent if look.dark else look.vivid(look.accent)).rich_color)
    primary = Style(color=look.vivid(look.primary).rich_color)
    heading = primary + Style(bold=True)
    return Theme(
        {
            "markdown.paragraph": Style(),
            "markdown.text": Style(),
            "markdown.em": Style(italic=True),
            "markdown.strong": Style(bold=True),
            "markdown.s": Style(strike=True),
            "markdown.code": accent,
            "markdown.code_block": Style(),
            "markdown.block_quote": look.dim,
            "markdown.list": Style(),
            "markdown.item": Style(),
            "markdown.item.bullet": primary,
            "markdown.item.number": primary,
            "markdown.hr": look.dim,
            "markdown.h1": heading + Style(underline=True),
            **{f"markdown.h{level}": heading for level in range(2, 7)},
            "markdown.h7": heading,
            "markdown.link": primary,
            "markdown.link_url": primary + Style(underline=True),
            "markdown.table.border": look.dim,
            "markdown.table.header": Style(bold=True),
            "dnet.code": Style(bgcolor=None if look.is_ansi else look.raised.rich_color),
        }
    )


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

    def append(self, text: str) -> None:
        """Add `text` at the end; cost follows the last block, not the document."""
        self._tail += printable(text)
        tokens = self._parser.parse(self._tail, _copied(self._env))
        boundary = self._boundary(tokens)
        if boundary:
            lines = self._tail.splitlines(keepends=True)
            done = self._parser.parse("".join(lines[:boundary]), self._env)
            self._settled = self._joined(self._settled, self._rendered(done))
            self._tail = "".join(lines[boundary:])
            tokens = self._parser.parse(self._tail, _copied(self._env))
        joined = self._joined(self._settled[-1:], self._rendered(tokens))
        self._live = joined[1:] if self._settled else joined

    def _boundary(self, tokens: list[Token]) -> int:
        """Return the first line of the last block whose first line is complete (0: nothing to settle)."""
        complete = self._tail.count("\n")
        starts = [t.map[0] for t in tokens if t.level == 0 and t.map is not None and t.map[0] < complete]
        return starts[-1] if starts else 0

    def _rendered(self, tokens: list[Token]) -> list[Strip]:
        strips: list[Strip] = []
        for block in _top_level(tokens):
            strips = self._joined(strips, self._renderer.blocks(block, self._width))
        return strips

    def _joined(self, above: list[Strip], below: list[Strip]) -> list[Strip]:
        """One blank line between blocks."""
        return [*above, Strip.blank(0), *below] if above and below else [*above, *below]


def _copied(env: dict[str, object]) -> dict[str, object]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in env.items()}


def _top_level(tokens: Iterable[Token]) -> list[list[Token]]:
    """Split a token stream into its top-level blocks."""
    blocks: list[list[Token]] = []
    depth = 0
    for token in tokens:
        if depth == 0:
            blocks.append([])
        blocks[-1].append(token)
        depth += token.nesting
    return blocks
