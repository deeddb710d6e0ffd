"""Markdown blocks to strips: containers are put together here, leaves are rendered by Rich and remembered.

    list, quote, table, code    composed line by line, from parts that are kept in a memo
    paragraph, heading, rule    one leaf each

A block that grows by a word at its end costs one small leaf, however long the block is: all its other parts
come from the memo, as the very same strips.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

from markdown_it.token import Token
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.padding import Padding
from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from rich.theme import Theme
from textual.strip import Strip

from dnet_tui.highlighter import Highlighter
from dnet_tui.look import Look

MIN_WIDTH = 8
_CODE_CHUNK_LINES = 12  # a live code block is highlighted in pieces of so many lines
_MIN_COLUMN = 3
_MIN_TABLE_WIDTH = 16
_CONTROL = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_CONTROL |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)

Memo = dict[tuple[object, ...], list[Strip]]


def printable(text: str) -> str:
    """Make control characters and bidirectional overrides visible: a model must not steer the terminal."""
    return text.replace("\r\n", "\n").translate(_CONTROL)


class _Heading(Heading):
    """All headings stand at the left, as in a chat there is no page to centre on."""

    LEVEL_ALIGN = dict.fromkeys(("h1", "h2", "h3", "h4", "h5", "h6"), "left")


class _Leaf(Markdown):
    """Rich's Markdown over the tokens of one leaf, which are parsed already."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {**Markdown.elements, "heading_open": _Heading}

    def __init__(self, tokens: list[Token]) -> None:
        # Not super().__init__: it builds a parser, which costs more than rendering does.
        self.markup = ""
        self.parsed = tokens
        self.code_theme = self.inline_code_theme = "default"
        self.justify = None
        self.style = "none"
        self.hyperlinks = True
        self.inline_code_lexer = None


class Renderer:
    """Blocks and plain text to strips, in one theme."""

    def __init__(self, look: Look) -> None:
        self.look = look
        self._highlighter = None if look.is_ansi else Highlighter(look)
        self._bullet = Style(color=look.vivid(look.primary).rich_color)
        self._dim = look.dim
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

    def blocks(self, tokens: Sequence[Token], width: int, memo: Memo, *, final: bool) -> list[Strip]:
        """Render blocks, one blank line between two, to strips of at most `width` cells.

        `final`: they will not grow any more, so code is highlighted as a whole. Else it is in pieces, of
        which only the last one grows.
        """
        return self._flow(_top_level(tokens), max(width, MIN_WIDTH), memo, final=final, tight=False)

    def text(self, text: str, style: Style, width: int, *, pad: int = 0) -> list[Strip]:
        """Wrap plain `text` as it is, every line filled to `width` cells, `pad` of them on each side."""
        lines = Text(printable(text), style=style, overflow="fold", tab_size=4)
        options = self._options(width)
        rendered = self._console.render_lines(Padding(lines, (0, pad), style=style), options, style=style)
        return [Strip(line) for line in rendered]

    # --- containers -------------------------------------------------------------------------------------

    def _flow(
        self, blocks: list[list[Token]], width: int, memo: Memo, *, final: bool, tight: bool
    ) -> list[Strip]:
        strips: list[Strip] = []
        for block in blocks:
            below = self._block(block, width, memo, final=final)
            if strips and below and not tight:
                strips.append(_BLANK)
            strips += below
        return strips

    def _block(self, block: list[Token], width: int, memo: Memo, *, final: bool) -> list[Strip]:
        head = block[0]
        match head.type:
            case "bullet_list_open" | "ordered_list_open":
                return self._list(block, width, memo, final=final)
            case "blockquote_open":
                inner = self._flow(
                    _top_level(block[1:-1]), max(width - 2, MIN_WIDTH), memo, final=final, tight=False
                )
                return [_prefixed("▌ ", self._dim, strip, memo) for strip in inner]
            case "fence" | "code_block":
                return self._code(head, width, memo, final=final)
            case "table_open" if width >= _MIN_TABLE_WIDTH:
                return self._table(block, width, memo)
            case _:
                return self._leaf(block, width, memo)

    def _list(self, block: list[Token], width: int, memo: Memo, *, final: bool) -> list[Strip]:
        items = _top_level(block[1:-1])
        first = block[0].attrGet("start")
        start = int(first) if first is not None else 1
        ordered = block[0].type == "ordered_list_open"
        gutter = len(str(start + len(items) - 1)) + 3 if ordered else 3
        loose = any(
            t.type == "paragraph_open" and t.level == block[0].level + 2 and not t.hidden for t in block
        )
        airy = loose and any(len(_top_level(item[1:-1])) > 1 for item in items)
        strips: list[Strip] = []
        for index, item in enumerate(items):
            marker = f"{start + index}. ".rjust(gutter) if ordered else " • "
            inner = self._flow(
                _top_level(item[1:-1]), max(width - gutter, MIN_WIDTH), memo, final=final, tight=not loose
            ) or [_BLANK]
            if strips and airy:
                strips.append(_BLANK)
            margins = (marker, *[" " * gutter] * (len(inner) - 1))
            strips += [_prefixed(m, self._bullet, s, memo) for m, s in zip(margins, inner, strict=True)]
        return strips

    # --- leaves -----------------------------------------------------------------------------------------

    def _leaf(self, block: list[Token], width: int, memo: Memo) -> list[Strip]:
        text = _plain_text(block)
        if text is not None and cell_len(text) <= width:  # Rich takes ten times as long for the same
            return _kept(memo, ("plain", text), lambda: [Strip([Segment(text)])])
        shape = tuple((t.type, t.content, t.tag, t.hidden) for t in block)
        links = tuple(
            str(child.attrs.get("href") or child.attrs.get("src"))
            for token in block
            for child in token.children or ()
            if child.type in ("link_open", "image")
        )
        return _kept(memo, ("leaf", shape, links, width), lambda: self._render(block, width))

    def _render(self, block: list[Token], width: int) -> list[Strip]:
        shown = [_visible(token) for token in block]
        lines = self._console.render_lines(_Leaf(shown), self._options(width), pad=False)
        return _trimmed([_without_margin(line) for line in lines])

    def _code(self, token: Token, width: int, memo: Memo, *, final: bool) -> list[Strip]:
        lexer, lines = _lexer_of(token), _code_of(token).split("\n")
        size = len(lines) if final else _CODE_CHUNK_LINES
        strips: list[Strip] = []
        for start in range(0, len(lines), size):
            code = "\n".join(lines[start : start + size])

            def render(code: str = code) -> list[Strip]:
                return self._highlighted(code, lexer, width, memo)

            strips += _kept(memo, ("code", lexer, code, width), render)
        return strips

    def highlighting(self, tokens: Sequence[Token], memo: Memo) -> Iterator[None]:
        """Highlight as a whole, a line per step, the code that was highlighted in pieces while it grew.

        After the last step `blocks` with `final` and this `memo` costs little.
        """
        for token in tokens:
            if self._highlighter is not None and self.has_pieces((token,)):
                lexer, code = _lexer_of(token), _code_of(token)
                lines: list[Strip] = []
                for line in self._highlighter.lines(code, lexer):
                    lines.append(line)
                    yield
                memo["lines", lexer, code] = lines

    def has_pieces(self, tokens: Sequence[Token]) -> bool:
        """Whether some code among `tokens` looks otherwise as a whole than in pieces."""
        return self._highlighter is not None and any(
            t.type in ("fence", "code_block") and t.content.count("\n") > _CODE_CHUNK_LINES for t in tokens
        )

    def _highlighted(self, code: str, lexer: str, width: int, memo: Memo) -> list[Strip]:
        if self._highlighter is None:
            body = Padding(Text(code, overflow="fold"), (0, 1))
            return [Strip(line) for line in self._console.render_lines(body, self._options(width))]
        lines = memo.get(("lines", lexer, code)) or self._highlighter.lines(code, lexer)
        return [strip for line in lines for strip in self._highlighter.boxed(line, max(width, MIN_WIDTH))]

    # --- tables -----------------------------------------------------------------------------------------

    def _table(self, block: list[Token], width: int, memo: Memo) -> list[Strip]:
        rows, alignments = _cells(block)
        natural = [
            max((self._cell(row[c], None, memo)[0].cell_length for row in rows if c < len(row)), default=0)
            for c in range(len(alignments))
        ]
        widths = _fitted([max(n, 1) for n in natural], width - 3 * (len(natural) - 1))
        if not widths or min(widths) < min(_MIN_COLUMN, *natural):
            return [s for row in rows for s in self._stacked(row, width, memo)]
        strips: list[Strip] = []
        for index, row in enumerate(rows):
            key = ("row", index == 0, tuple(cell.content for cell in row), tuple(widths))

            def render(row: list[Token] = row, index: int = index) -> list[Strip]:
                return self._row(row, widths, alignments, memo, bold=index == 0)

            strips += _kept(memo, key, render)
            if index == 0:
                rule = "─┼─".join("─" * w for w in widths)
                strips += _kept(memo, ("rule", rule), lambda r=rule: [Strip([Segment(r, self._dim)])])  # type: ignore[misc]
        return strips

    def _cell(self, inline: Token, width: int | None, memo: Memo) -> list[Strip]:
        """The lines of a cell; without `width` in one line."""
        paragraph = [Token("paragraph_open", "p", 1), inline, Token("paragraph_close", "p", -1)]
        if not inline.content:
            return [_BLANK]
        return self._leaf(paragraph, 10_000 if width is None else width, memo) or [_BLANK]

    def _stacked(self, row: list[Token], width: int, memo: Memo) -> list[Strip]:
        """A row that has no room: its cells one below the other."""
        return [strip for cell in row for strip in self._cell(cell, width, memo)]

    def _row(
        self, row: list[Token], widths: list[int], alignments: list[str], memo: Memo, *, bold: bool
    ) -> list[Strip]:
        columns = [
            self._cell(row[c], max(w, 1), memo) if c < len(row) else [_BLANK] for c, w in enumerate(widths)
        ]
        lines: list[Strip] = []
        for y in range(max(len(column) for column in columns)):
            segments: list[Segment] = []
            for c, (column, w) in enumerate(zip(columns, widths, strict=True)):
                if c:
                    segments.append(Segment(" │ ", self._dim))
                cell = column[y] if y < len(column) else _BLANK
                cell = cell.crop(0, w).apply_style(Style(bold=True)) if bold else cell.crop(0, w)
                spare = w - cell.cell_length
                left = {"right": spare, "center": spare // 2}.get(alignments[c], 0)
                segments += [Segment(" " * left), *cell, Segment(" " * (spare - left))]
            lines.append(Strip(segments))
        return lines

    def _options(self, width: int) -> ConsoleOptions:
        return self._console.options.update(width=max(width, MIN_WIDTH), height=None)


_BLANK = Strip.blank(0)


def _code_of(token: Token) -> str:
    return token.content.rstrip("\n")


def _lexer_of(token: Token) -> str:
    words = token.info.split()
    return words[0] if words else "text"


def _kept(memo: Memo, key: tuple[object, ...], render: Callable[[], list[Strip]]) -> list[Strip]:
    found = memo.get(key)
    if found is None:
        found = memo[key] = render()
    return found


def _prefixed(margin: str, style: Style, strip: Strip, memo: Memo) -> Strip:
    """`strip` behind `margin`; the same strip again for the same parts, so that it counts as unchanged."""
    key = ("prefixed", margin, id(strip))
    found = memo.get(key)
    if found is None:
        # The second strip is kept only so that its id is not given to another one.
        found = memo[key] = [Strip([Segment(margin, style), *strip]), strip]
    return found[0]


def _plain_text(block: list[Token]) -> str | None:
    """The text of a paragraph that has nothing else; None for every other block."""
    if len(block) != 3 or block[0].type != "paragraph_open":
        return None
    children = block[1].children or []
    if len(children) != 1 or children[0].type != "text" or "\t" in children[0].content:
        return None
    return children[0].content


def _visible(token: Token) -> Token:
    """Rich does not draw paragraphs of tight lists, which are `hidden`: here they are drawn like others."""
    return token.copy(hidden=False) if token.hidden else token


def _cells(block: list[Token]) -> tuple[list[list[Token]], list[str]]:
    """The inline token of every cell, row by row, and the alignment of every column."""
    rows: list[list[Token]] = []
    alignments: list[str] = []
    for index, token in enumerate(block):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append(block[index + 1])
            if len(rows) == 1:
                style = str(token.attrs.get("style", ""))
                alignments.append(style.removeprefix("text-align:"))
    return rows, alignments


def _fitted(natural: list[int], room: int) -> list[int]:
    """Narrow the widest columns until all fit in `room` cells."""
    widths = list(natural)
    while sum(widths) > room and max(widths) > 1:
        excess = sum(widths) - room
        widest = max(widths)
        below = max([w for w in widths if w < widest], default=0)
        ties = [c for c, w in enumerate(widths) if w == widest]
        cut = min(widest - below, -(-excess // len(ties)), widest - 1)
        for c in ties:
            widths[c] -= cut
    return widths


def _without_margin(line: list[Segment]) -> Strip:
    """`line` without the spaces that fill it up at the right."""
    segments = list(line)
    while (
        segments and not segments[-1].text.strip() and not (segments[-1].style and segments[-1].style.bgcolor)
    ):
        segments.pop()
    if segments and not (segments[-1].style and segments[-1].style.bgcolor):
        segments[-1] = segments[-1]._replace(text=segments[-1].text.rstrip())
    return Strip(segments)


def _trimmed(strips: list[Strip]) -> list[Strip]:
    start, stop = 0, len(strips)
    while start < stop and not strips[start].text.strip() and not _is_painted(strips[start]):
        start += 1
    while stop > start and not strips[stop - 1].text.strip() and not _is_painted(strips[stop - 1]):
        stop -= 1
    return strips[start:stop]


def _is_painted(strip: Strip) -> bool:
    return any(segment.style and segment.style.bgcolor for segment in strip)


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
            "markdown.hr": look.dim,
            "markdown.h1": heading + Style(underline=True),
            **{f"markdown.h{level}": heading for level in range(2, 7)},
            "markdown.h7": heading,
            "markdown.link": primary,
            "markdown.link_url": primary + Style(underline=True),
        }
    )
