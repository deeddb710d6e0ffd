"""The code in an answer."""

from __future__ import annotations

from markdown_it import MarkdownIt

_PARSER = MarkdownIt("commonmark", {"html": False})


def code_blocks(markdown: str) -> list[str]:
    """The code blocks of `markdown` in order, without their fences; one that is not closed yet counts."""
    found = [t.content.rstrip("\n") for t in _PARSER.parse(markdown) if t.type in ("fence", "code_block")]
    return [code for code in found if code]
