"""From what a request asks for to the text of a grammar: a list of llguidance's grammars, as JSON.

    {"grammars": [{"lark_grammar": "start: ... @answer"}, {"name": "answer", "json_schema": {...}}]}

The first one is the whole answer. A token that the model's tokenizer knows as a control token is named by its
number: spelled out, its text would be other tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from llguidance import LLMatcher

JsonDict = dict[str, object]
Part = JsonDict
"""One of llguidance's grammars: `json_schema` or `lark_grammar` by that key."""

_COMPACT = {"whitespace_flexible": False}
"""No white space between the parts of JSON: nothing to choose there means that it need not be sampled."""
_READABLE = {"whitespace_pattern": r"[ \t\r\n]{1,40}"}
"""As the model writes it, but not forever."""


def json_schema(schema: JsonDict, *, strict: bool = True) -> Part:
    """JSON that fits `schema`, without white space unless its own `x-guidance` says otherwise.

    What llguidance cannot enforce makes a `strict` schema an invalid one; otherwise it is left out.
    """
    return {"json_schema": _with_options(schema, _options(strict=strict))}


def json_object() -> Part:
    """Any JSON object."""
    return {"json_schema": _with_options({"type": "object"}, _READABLE)}


def regex(pattern: str) -> Part:
    """Text that matches `pattern` (of Rust's `regex`) from its first character to its last."""
    (part,) = json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"]
    return lark(part["lark_grammar"])


def lark(text: str) -> Part:
    """Text that `text`, rules of Lark in llguidance's dialect, derives from `start`."""
    return {"lark_grammar": text}


def choice(texts: Sequence[str]) -> Part:
    """One of `texts`."""
    return lark("start: " + " | ".join(map(literal, texts)))


def literal(text: str) -> str:
    """`text` as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


def without_forcing(grammar: str) -> str:
    """The same `grammar`, every token of whose answers is sampled."""
    parts = json.loads(grammar)["grammars"]
    first = {**parts[0], "lark_grammar": f'%llguidance {{"no_forcing": true}}\n{parts[0]["lark_grammar"]}'}
    return json.dumps({"grammars": [first, *parts[1:]]}, ensure_ascii=False)


class GrammarWriter:
    """Composes a grammar of expressions. Owned by who makes it."""

    def __init__(self, control: Mapping[int, str]) -> None:
        """`control` are the tokens that a grammar may name."""
        self._ids = {text: token for token, text in control.items() if text}
        self._rules: list[str] = []
        self._parts: list[Part] = []

    def marker(self, text: str) -> str:
        """The expression for `text`, in which control tokens stand for themselves."""
        found = sorted((name for name in self._ids if name in text), key=len, reverse=True)
        if not found:
            return literal(text) if text else ""
        pieces = re.split(f"({'|'.join(map(re.escape, found))})", text)
        return " ".join(self._piece(piece) for piece in pieces if piece)

    def is_control(self, text: str) -> bool:
        """Whether `text` begins with a control token."""
        return any(text.startswith(name) for name in self._ids)

    def part(self, part: Part) -> str:
        """The expression for another grammar."""
        name = f"part_{len(self._parts)}"
        self._parts.append({**part, "name": name})
        return f"@{name}"

    def json(self, schema: JsonDict, *, strict: bool) -> str:
        """The expression for JSON that fits `schema`; see `json_schema`."""
        return f"%json {json.dumps(_with_options(schema, _options(strict=strict)), ensure_ascii=False)}"

    def rule(self, expression: str, options: str = "") -> str:
        """The name of a new rule for `expression`; `options` as Lark's rules have them."""
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{options}: {expression}")
        return name

    def terminal(self, expression: str) -> str:
        """The name of a new terminal for `expression`: regular expressions, `&` and `~`."""
        name = f"TEXT_{len(self._rules)}"
        self._rules.append(f"{name}: {expression}")
        return name

    def text_until(self, end: str) -> str:
        """The expression for any text up to and with `end`, which is not in it."""
        if self.is_control(end):
            return f"{self.any_text} {self.marker(end)}"
        return self.rule(r"/(.|\n)*/", f"[suffix={literal(end)}]")

    @property
    def any_text(self) -> str:
        """The expression for any text without control tokens."""
        return r"/(.|\n)*/"

    def grammar(self, start: str) -> str:
        """The grammar of answers that `start` derives."""
        rules = "\n".join([f"start: {start}", *self._rules])
        return json.dumps({"grammars": [lark(rules), *self._parts]}, ensure_ascii=False)

    def _piece(self, text: str) -> str:
        return f"<[{self._ids[text]}]>" if text in self._ids else literal(text)


def _options(*, strict: bool) -> JsonDict:
    return {**_COMPACT, "lenient": not strict}


def _with_options(schema: JsonDict, options: Mapping[str, object]) -> JsonDict:
    own = schema.get("x-guidance")
    return {**schema, "x-guidance": {**options, **own} if isinstance(own, dict) else options}
