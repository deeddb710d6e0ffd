"""What a request may bind its answer to: OpenAI's formats, and the fields of vLLM and llama.cpp for the rest.

    response_format  {"type": "json_schema", "json_schema": {"name", "schema", "strict"}}   chat
    text.format      {"type": "json_schema", "name", "schema", "strict"}                    responses
    guided_json, guided_regex, guided_choice, guided_grammar; structured_outputs: {...}     vLLM
    json_schema, grammar                                                                    llama.cpp

All of it becomes one `Wanted`: a part of a grammar, and the field that it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from llguidance.gbnf_to_lark import any_to_lark
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from dnet_core.api.body import Body, Many, Refused
from dnet_core.grammar import build
from dnet_core.grammar.build import JsonDict, Part

MAX_RULES_CHARS = 32 * 1024
"""Of a grammar in text: it is read on the event loop."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the answer must be. `param` is the field that says so."""

    param: str
    part: Part


class TextFormat(Body):
    type: Literal["text"]

    def wanted(self, param: str) -> Wanted | None:
        return None


class JsonObjectFormat(Body):
    type: Literal["json_object"]

    def wanted(self, param: str) -> Wanted | None:
        return Wanted(param, build.json_object())


class NamedSchema(Body):
    """A schema as OpenAI's formats carry it.

    What llguidance cannot enforce is refused when it is `strict`, and left to the model when it is not.
    """

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = False

    def part(self) -> Part:
        return build.json_schema(self.schema_, strict=self.strict)

    def told(self) -> JsonDict:
        """The format as a response repeats it."""
        return {
            "type": "json_schema",
            "name": self.name,
            "description": self.description,
            "schema": self.schema_,
            "strict": self.strict,
        }


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema

    def wanted(self, param: str) -> Wanted | None:
        return Wanted(param, self.json_schema.part())


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


def _schema(value: object) -> object:
    """A schema may be written as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise PydanticCustomError("schema", "is not JSON: {error}", {"error": str(error)}) from None


def _lark(value: object) -> object:
    """A grammar may be written in Lark's way, or in the way of llama.cpp (GBNF)."""
    if not isinstance(value, str):
        return value
    if len(value) > MAX_RULES_CHARS:
        raise PydanticCustomError("grammar", "is longer than {most} characters", {"most": MAX_RULES_CHARS})
    # The script's time grows with the square of a run of empty lines.
    lines = "\n".join(line for line in value.splitlines() if line.strip())
    try:
        return any_to_lark(lines)
    except Exception as error:  # noqa: BLE001 - llguidance raises plain Exception here
        raise PydanticCustomError(
            "grammar", "is neither Lark nor GBNF: {error}", {"error": str(error)}
        ) from None


Schema = Annotated[dict[str, Any], BeforeValidator(_schema)]
Rules = Annotated[str, BeforeValidator(_lark)]
Choices = Annotated[Many[str], Field(min_length=1, max_length=1000)]
Pattern = Annotated[str, Field(min_length=1)]


class _StructuredOutputs(Body):
    """vLLM's newer field for what the `guided_` ones say."""

    json_: Schema | None = Field(None, alias="json")
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Rules | None = None
    json_object: Literal[True] | None = None
    structural_tag: Refused = None
    whitespace_pattern: Refused = None


class Guided(Body):
    """Fields of other local servers that bind an answer."""

    guided_json: Schema | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Rules | None = None
    guided_whitespace_pattern: Refused = None
    structured_outputs: _StructuredOutputs | None = None
    json_schema: Schema | None = None
    grammar: Rules | None = None

    def guided(self) -> list[Wanted]:
        """Everything that the fields ask for: more than one thing is a contradiction."""
        newer = self.structured_outputs
        given: list[tuple[str, Any, Callable[[Any], Part]]] = [
            ("guided_json", self.guided_json, build.json_schema),
            ("guided_regex", self.guided_regex, build.regex),
            ("guided_choice", self.guided_choice, build.choice),
            ("guided_grammar", self.guided_grammar, build.lark),
            ("json_schema", self.json_schema, build.json_schema),
            ("grammar", self.grammar, build.lark),
        ]
        if newer is not None:
            given += [
                ("structured_outputs.json", newer.json_, build.json_schema),
                ("structured_outputs.regex", newer.regex, build.regex),
                ("structured_outputs.choice", newer.choice, build.choice),
                ("structured_outputs.grammar", newer.grammar, build.lark),
                ("structured_outputs.json_object", newer.json_object, lambda _: build.json_object()),
            ]
        return [Wanted(param, make(value)) for param, value, make in given if value is not None]


def only_one(wanted: list[Wanted]) -> Wanted | None:
    """What is wanted, if anything. Raises PydanticCustomError when it is more than one thing."""
    if len(wanted) > 1:
        raise PydanticCustomError(
            "structured",
            "'{one}' and '{other}' both say what the answer must be: give one of them",
            {"one": wanted[0].param, "other": wanted[1].param},
        )
    return wanted[0] if wanted else None
