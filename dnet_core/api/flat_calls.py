"""Calls whose arguments stand one by one, not in one JSON object: tags, and Python's keyword arguments.

    <function=weather>              [weather(city="Oslo", days=3)]
    <parameter=city>
    Oslo
    </parameter>

Such a form says less than JSON. `flat_arguments` tells whether a function's schema can be written in it at
all; calls of others are asked for in the generic envelope.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass

from dnet_core.api.call_grammars import CallGrammar, any_call
from dnet_core.api.tool_requests import BoundTool, CallRule
from dnet_core.grammar.build import GrammarWriter, JsonDict, literal

_OF_THE_WHOLE = {"type", "properties", "required", "additionalProperties", "title", "description", "$schema"}
_REMARKS = {"title", "description", "default", "examples", "deprecated"}
_OF_A_TEXT = {"type", "enum", "minLength", "maxLength"} | _REMARKS
_NAME = re.compile(r"[^\s<>\"'/=]+")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a function: a text, one of some texts (`choices`), or a value that JSON writes."""

    name: str
    schema: JsonDict
    is_required: bool
    is_text: bool

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(self.schema.get("enum", ())) if self.is_text else ()  # type: ignore[arg-type]

    @property
    def lengths(self) -> str:
        """How long a free text may be, as a regular expression repeats."""
        return f"{{{self.schema.get('minLength', 0)},{self.schema.get('maxLength', '')}}}"


def flat_arguments(tool: BoundTool) -> tuple[Argument, ...] | None:
    """The arguments of `tool`, those that are required first; None: its schema needs JSON to be written."""
    schema = tool.schema
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if schema.keys() - _OF_THE_WHOLE or not isinstance(properties, dict) or not isinstance(required, list):
        return None
    if not all(isinstance(name, str) and name in properties for name in required):
        return None
    found = [_argument(name, value, name in required) for name, value in properties.items()]
    arguments = [argument for argument in found if argument is not None]
    if len(arguments) < len(found):
        return None
    return tuple(sorted(arguments, key=lambda argument: not argument.is_required))


def _argument(name: str, schema: object, is_required: bool) -> Argument | None:
    if not isinstance(schema, dict) or not _NAME.fullmatch(name):
        return None
    if schema.get("type") != "string":
        return Argument(name, schema, is_required, False) if _has_no_text(schema) else None
    if schema.keys() - _OF_A_TEXT or ("enum" in schema and schema.keys() & {"minLength", "maxLength"}):
        return None
    lengths = [schema.get(key, 0) for key in ("minLength", "maxLength")]
    if not all(type(length) is int and length >= 0 for length in lengths):
        return None
    if "enum" in schema and not _are_plain(schema["enum"]):
        return None
    return Argument(name, schema, is_required, True)


def _are_plain(choices: object) -> bool:
    """Whether all are texts that mean the same in every form."""
    return (
        isinstance(choices, list)
        and bool(choices)
        and all(isinstance(text, str) and _is_plain(text) for text in choices)
    )


def _is_plain(text: str) -> bool:
    return text == text.strip() and "<" not in text and text.lower() != "null" and text.isprintable()


def _has_no_text(schema: object) -> bool:
    """Whether JSON of `schema` can hold no text that a model is free to write."""
    match schema:
        case {"type": "integer" | "number" | "boolean"}:
            return True
        case {"type": "string", "enum": choices, **rest}:
            return not rest.keys() - _REMARKS and _are_plain(choices)
        case {"type": "array", "items": items, **rest}:
            return not rest.keys() - _REMARKS - {"minItems", "maxItems"} and _has_no_text(items)
    return False


# ---- tags ----


@dataclass(frozen=True, slots=True)
class Tags:
    """How a family tags a call: `head` with the name, arguments between `opened` and `closed`, `foot`.

    `tag` ends an argument, whatever stands around it. Calls that follow have markers of their own, or stand
    between those of the first (`is_inside`): then `foot`, too, ends a call in any case. With `strips` the
    parser takes white space off a text.
    """

    head: str
    opened: str
    closed: str
    foot: str
    tag: str
    is_inside: bool = False
    strips: bool = False


QWEN_3_CODER = Tags(
    "\n<function={}>\n", "<parameter={}>\n", "\n</parameter>\n", "</function>\n", tag="</parameter>"
)
GLM_4 = Tags(
    "{}\n", "<arg_key>{}</arg_key>\n<arg_value>", "</arg_value>\n", "", tag="</arg_value>", strips=True
)
MINIMAX_M2 = Tags(
    '\n<invoke name="{}">\n',
    '<parameter name="{}">',
    "</parameter>\n",
    "</invoke>\n",
    tag="</parameter>",
    is_inside=True,
    strips=True,
)


def fits_tags(tool: BoundTool) -> bool:
    return flat_arguments(tool) is not None


def tagged(tags: Tags) -> CallGrammar:
    """The grammar of calls in `tags`."""

    def write(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
        def arguments(tool: BoundTool) -> Iterator[str]:
            for argument in flat_arguments(tool) or ():
                value = _tagged_value(writer, tags, tool, argument, end)
                told = f"{writer.marker(tags.opened.format(argument.name))} {value}"
                yield told if argument.is_required else f"({told})?"

        def call(writer: GrammarWriter, tool: BoundTool) -> str:
            head, foot = tags.head.format(tool.name), writer.marker(tags.foot)
            return f"{writer.marker(head)} {' '.join(arguments(tool))} {foot}"

        one, close = any_call(writer, rule, call), writer.marker(end)
        if tags.is_inside:
            return f"{begin} {one}{'+' if rule.many else ''} {close}"
        more = f'("\\n" {writer.marker(start)} {one} {close})*' if rule.many else ""
        return f"{begin} {one} {close} {more}"

    return write


def _tagged_value(writer: GrammarWriter, tags: Tags, tool: BoundTool, argument: Argument, end: str) -> str:
    closed = writer.marker(tags.closed)
    if argument.choices:
        return f"({' | '.join(map(literal, argument.choices))}) {closed}"
    if not argument.is_text:
        return f"{writer.json(argument.schema, strict=tool.strict)} {closed}"
    # What would end the argument or the call too early is not said, nor what parsers take for nothing.
    told = (tags.tag, end, tags.foot.strip()) if tags.is_inside else (tags.tag, end)
    ends = "|".join(map(_escaped, told))
    text = rf"/(.|\n){argument.lengths}/ & ~/(.|\n)*({ends})(.|\n)*/ & ~/[nN][uU][lL][lL]/"
    if tags.strips:
        text += r" & ~/[\s\x1c-\x1f](.|\n)*/ & ~/(.|\n)*[\s\x1c-\x1f]/"
    body = writer.terminal(text)
    before, after = tags.closed.split(tags.tag)
    if writer.is_control(tags.tag):
        return f"{body} {closed}"
    return f"{writer.rule(body, f'[suffix={literal(before + tags.tag)}]')} {literal(after) if after else ''}"


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


# ---- Python ----

_PYTHON_NUMBER = r"/-?(0|[1-9][0-9]{0,99})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?/"
"""A float of Python holds it: it is not infinite."""
_PYTHON_TEXT = r'([^"\\\x00-\x1f]|\\["\\nt])'


def fits_python(tool: BoundTool) -> bool:
    found = flat_arguments(tool)
    return found is not None and all(map(_is_name, (*tool.name.split("."), *(a.name for a in found))))


def _is_name(text: str) -> bool:
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


def pythonic(writer: GrammarWriter, rule: CallRule, begin: str, start: str, end: str) -> str:
    """LFM2: a list of Python's calls with keyword arguments."""

    def call(writer: GrammarWriter, tool: BoundTool) -> str:
        arguments = flat_arguments(tool) or ()
        told = [writer.rule(_keyword(writer, tool, argument, end)) for argument in arguments]
        required = [one for one, argument in zip(told, arguments, strict=True) if argument.is_required]
        optional = told[len(required) :]
        if required:
            inside = ' ", " '.join(required) + _following(optional)
        else:
            firsts = [f"{one}{_following(optional[place + 1 :])}" for place, one in enumerate(optional)]
            inside = f"({' | '.join(firsts)})?" if firsts else ""
        return f'{literal(tool.name + "(")} {inside} ")"'

    one = any_call(writer, rule, call)
    more = f'(", " {one})*' if rule.many else ""
    return f'{begin} "[" {one} {more} "]" {writer.marker(end)}'


def _following(optional: list[str]) -> str:
    return "".join(f' (", " {one})?' for one in optional)


def _keyword(writer: GrammarWriter, tool: BoundTool, argument: Argument, end: str) -> str:
    name = literal(f"{argument.name}=")
    if argument.choices:
        choices = (literal(json.dumps(text, ensure_ascii=False)) for text in argument.choices)
        return f"{name} ({' | '.join(choices)})"
    if argument.is_text:
        text = rf'/"{_PYTHON_TEXT}{argument.lengths}"/ & ~/(.|\n)*({_escaped(end)})(.|\n)*/'
        return f"{name} {writer.terminal(text)}"
    if argument.schema.get("type") == "boolean":
        return f'{name} ("True" | "False")'
    if argument.schema.get("type") == "number" and not argument.schema.keys() - _REMARKS - {"type"}:
        return f"{name} {writer.terminal(_PYTHON_NUMBER)}"
    return f"{name} {writer.json(argument.schema, strict=tool.strict)}"
