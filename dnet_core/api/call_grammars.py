"""How model families write calls of tools, as expressions of a grammar: what the parsers read.

    begin  {"name": "f", "arguments": ARGUMENTS}  end

`begin` is the expression for what comes before the first call: the family's start marker, or any text up to
it. Each function here returns the expression for one or more calls, `begin` included.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

from dnet_core.api.tool_requests import BoundTool, CallRule
from dnet_core.grammar.build import GrammarWriter, literal


class CallGrammar(Protocol):
    """Writes the calls that `rule` allows; `start` and `end` are the family's markers."""

    def __call__(self, writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str: ...


def json_blocks(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
    """Hermes, Qwen, the generic envelope: each call between markers of its own."""
    rest = f'"\\n" {any_call(writer, rule, _json_object)} "\\n" {writer.marker(end)}'
    more = f'("\\n" {writer.marker(start)} {rest})*' if rule.many else ""
    return f"{begin} {rest} {more}"


def llama_3(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
    """One object; the model was trained on one call per turn."""
    return f"{begin} {any_call(writer, rule, _json_object_as('name', 'parameters'))}"


def json_list(
    before: str = "[", after: str = "]", *, name: str = "name", arguments: str = "arguments"
) -> CallGrammar:
    """Granite 3, Phi 4, Nemotron, Mistral, Command: a list of objects between the markers.

    `before` and `after` are its brackets, `name` and `arguments` the keys of an object.
    """

    def write(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
        call = any_call(writer, rule, _json_object_as(name, arguments))
        more = f'(", " {call})*' if rule.many else ""
        return f"{begin} {literal(before)} {call} {more} {literal(after)} {writer.marker(end)}"

    return write


def command_a(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
    """A list of objects that number the calls."""

    def write(writer: GrammarWriter, tool: BoundTool) -> str:
        head = f'", "tool_name": {json.dumps(tool.name)}, "parameters": '
        return f'"{{\\"tool_call_id\\": \\"" /[0-9]{{1,2}}/ {literal(head)} {_arguments(writer, tool)} "}}"'

    call = any_call(writer, rule, write)
    more = f'(",\\n    " {call})*' if rule.many else ""
    return f'{begin} "[\\n    " {call} {more} "\\n]" {writer.marker(end)}'


def mistral_headers(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
    """Mistral since its eleventh tokenizer: `[TOOL_CALLS]NAME[ARGS]{...}`."""

    def write(writer: GrammarWriter, tool: BoundTool) -> str:
        return f"{literal(tool.name)} {writer.marker('[ARGS]')} {_arguments(writer, tool)}"

    call = any_call(writer, rule, write)
    return f"{begin} {call} {f'({writer.marker(start)} {call})*' if rule.many else ''}"


def deepseek_v3(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
    """`function<sep>NAME`, then the arguments in a fenced block."""
    foot = writer.marker("\n```<｜tool▁call▁end｜>")

    def write(writer: GrammarWriter, tool: BoundTool) -> str:
        head = writer.marker(f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{tool.name}\n```json\n")
        return f"{head} {_arguments(writer, tool)} {foot}"

    call = any_call(writer, rule, write)
    more = f'("\\n" {call})*' if rule.many else ""
    return f"{begin} {call} {more} {writer.marker(end)}"


def deepseek_v3_1(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
    """`NAME<sep>{...}`."""

    def write(writer: GrammarWriter, tool: BoundTool) -> str:
        head = writer.marker(f"<｜tool▁call▁begin｜>{tool.name}<｜tool▁sep｜>")
        return f"{head} {_arguments(writer, tool)} {writer.marker('<｜tool▁call▁end｜>')}"

    call = any_call(writer, rule, write)
    return f"{begin} {call}{'+' if rule.many else ''} {writer.marker(end)}"


def kimi_k2(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
    """`functions.NAME:PLACE`, then the arguments."""

    def write(writer: GrammarWriter, tool: BoundTool) -> str:
        head = f"{writer.marker(f'<|tool_call_begin|>functions.{tool.name}:')} /[0-9]{{1,2}}/"
        begin = writer.marker("<|tool_call_argument_begin|>")
        return f"{head} {begin} {_arguments(writer, tool)} {writer.marker('<|tool_call_end|>')}"

    call = any_call(writer, rule, write)
    return f"{begin} {call}{'+' if rule.many else ''} {writer.marker(end)}"


def harmony(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
    """gpt-oss: a message to the function. The model ends its turn with it: there is one call."""

    def write(writer: GrammarWriter, tool: BoundTool) -> str:
        head = f"<|channel|>commentary to=functions.{tool.name} <|constrain|>json<|message|>"
        return f"{writer.marker(head)} {_arguments(writer, tool)}"

    return f"{begin} {any_call(writer, rule, write)}"


def any_call(writer: GrammarWriter, rule: CallRule, write: Callable[[GrammarWriter, BoundTool], str]) -> str:
    """A rule for a call of one of the tools."""
    return writer.rule(" | ".join(write(writer, tool) for tool in rule.tools))


def _json_object(writer: GrammarWriter, tool: BoundTool) -> str:
    return _json_object_as("name", "arguments")(writer, tool)


def _json_object_as(name: str, arguments: str) -> Callable[[GrammarWriter, BoundTool], str]:
    def write(writer: GrammarWriter, tool: BoundTool) -> str:
        head = f'{{"{name}": {json.dumps(tool.name)}, "{arguments}": '
        return f'{literal(head)} {_arguments(writer, tool)} "}}"'

    return write


def _arguments(writer: GrammarWriter, tool: BoundTool) -> str:
    return writer.json(tool.schema, strict=tool.strict)
