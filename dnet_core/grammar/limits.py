"""How much of a machine one grammar may use. Anything beyond is the request's error, never a hang.

llguidance bounds its own time and memory while it follows an answer. What it does before that, recursing over
rules and unfolding repetitions, is bounded here: a long chain of rules overflows its stack, and a repetition
of a million takes minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from llguidance import LLParserLimits

from dnet_core.errors import GrammarError

MAX_GRAMMAR_BYTES = 256 * 1024
MAX_SCHEMA_OBJECTS = 2_000
"""Time grows with the square: about a second for so many properties of one object."""
MAX_RULES = 1_000
MAX_REPEATS = 50_000

MAX_FORCED_TOKENS = 64
"""Forced tokens that are taken at once; those beyond are forced again, after the next one was picked."""

_COUNTED_KEYS = ("Length", "Items", "Properties")
_COUNTS = re.compile(
    r'(?:\{|~)\s*(\d*)\s*(?:,|\.\.)?\s*(\d*)\s*\}?|"(?:min|max)(?:Length|Items|Properties)"\s*:\s*(\d+)'
)


def parser_limits() -> LLParserLimits:
    """The library's own limits on time and memory, with a tenth of its size; errors without its state."""
    return LLParserLimits(max_grammar_size=50_000, verbose_errors=False)


def check_bounds(grammar: str) -> None:
    """Raise GrammarError unless `grammar`, a list as `build` writes it, is small enough to be compiled."""
    if (size := len(grammar.encode("utf-8", "surrogatepass"))) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"the grammar has {size:,} bytes: at most {MAX_GRAMMAR_BYTES:,} are taken")
    try:
        parts = json.loads(grammar)["grammars"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GrammarError(f"the grammar cannot be read: {error}") from error
    if not isinstance(parts, list):
        raise GrammarError("the grammar cannot be read: it is no list")
    num_objects = 0
    for value in _values(parts):
        if isinstance(value, dict):
            num_objects += 1
            _check_counts(value)
        elif isinstance(value, str):
            _check_text(value)
    if num_objects > MAX_SCHEMA_OBJECTS:
        raise GrammarError(
            f"the schema consists of {num_objects:,} objects: at most {MAX_SCHEMA_OBJECTS:,} are taken"
        )


def _values(value: object) -> Iterator[object]:
    """`value` and all that is in it, keys too."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        yield value
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value


def _check_counts(schema: dict[str, object]) -> None:
    for key, value in schema.items():
        if key.endswith(_COUNTED_KEYS) and type(value) in (int, float) and value > MAX_REPEATS:  # type: ignore[operator]
            raise GrammarError(f"{key} is {value}: at most {MAX_REPEATS:,} is taken")


def _check_text(text: str) -> None:
    """A regular expression or rules of Lark, or any other text of a schema, which these never hurt."""
    if (num_rules := sum(":" in line for line in text.splitlines())) > MAX_RULES:
        raise GrammarError(f"the grammar has {num_rules:,} rules: at most {MAX_RULES:,} are taken")
    for found in _COUNTS.finditer(text):
        if any(count and (len(count) > 9 or int(count) > MAX_REPEATS) for count in found.groups()):
            raise GrammarError(f"'{found[0][:40]}' repeats too often: at most {MAX_REPEATS:,} times")
