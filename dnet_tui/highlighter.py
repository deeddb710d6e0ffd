"""Code to strips: coloured by its language, over a ground of its own."""

from __future__ import annotations

from collections.abc import Iterator

from pygments.token import Text as PlainText  # type: ignore[import-untyped]
from pygments.token import _TokenType
from pygments.util import ClassNotFound  # type: ignore[import-untyped]
from rich.segment import Segment
from rich.style import Style
from rich.syntax import PygmentsSyntaxTheme
from textual.strip import Strip

from dnet_tui.look import Look


class Highlighter:
    """Colours code for one theme that has colours of its own."""

    def __init__(self, look: Look) -> None:
        self._theme = PygmentsSyntaxTheme("github-dark" if look.dark else "default")
        self._ground = Style(bgcolor=look.raised.rich_color)

    def lines(self, code: str, lexer: str) -> Iterator[Strip]:
        """Each line in coloured pieces, neighbours of one style as one: painting costs by the piece.

        Not by Rich's `Syntax`: it puts a text with marks together and takes it apart again, at several
        times the cost.
        """
        line: list[Segment] = []
        for kind, text in _tokens(code.expandtabs(4), lexer):
            style = self._theme.get_style_for_token(kind) + self._ground
            for index, part in enumerate(text.split("\n")):
                if index:
                    yield Strip(line)
                    line = []
                if not part:
                    continue
                if line and line[-1].style == style:
                    line[-1] = Segment(line[-1].text + part, style)
                else:
                    line.append(Segment(part, style))
        yield Strip(line)

    def boxed(self, content: Strip, width: int) -> list[Strip]:
        """The line `content` over the ground, a cell on each side, folded where `width` is too small."""
        room = width - 2
        margin = Segment(" ", self._ground)
        cuts = [*range(room, max(content.cell_length, 1), room), max(content.cell_length, room)]
        parts = content.divide(cuts) if len(cuts) > 1 else [content]
        return [
            Strip([margin, *part, Segment(" " * (room - part.cell_length + 1), self._ground)])
            for part in parts
        ]


def _tokens(code: str, name: str) -> Iterator[tuple[_TokenType, str]]:
    """Lex `code`; a language that nobody knows is text, and so is all from where a lexer changes the code.

    Some lexers end every text with a newline or put other ones in: what they return is not trusted.
    """
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]  # noqa: PLC0415 - takes 20 ms

    at = 0
    try:
        lexer = get_lexer_by_name(name, stripnl=False, ensurenl=False)
    except ClassNotFound:
        pass
    else:
        for kind, text in lexer.get_tokens(code):
            if not code.startswith(text, at):
                break
            at += len(text)
            yield kind, text
    if at < len(code):
        yield PlainText, code[at:]
