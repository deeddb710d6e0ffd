"""How much of a machine one grammar may use. Anything beyond is the request's error, never a hang."""

from __future__ import annotations

from llguidance import LLParserLimits

MAX_GRAMMAR_BYTES = 256 * 1024
"""The largest real schemas are about as long; time to compile grows faster than length."""

MAX_FORCED_TOKENS = 64
"""Forced tokens that go round together: their logits, which nobody needs, are computed all the same."""


def parser_limits() -> LLParserLimits:
    """The library's own limits on time and memory, with a third of its size; errors without its state."""
    return LLParserLimits(max_grammar_size=50_000, verbose_errors=False)
