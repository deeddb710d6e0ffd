"""The tools of a request, and whether they may or must be called."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from dnet_core.api.body import Body


class Function(Body):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False  # the arguments fit the schema, or the call is not made


class Tool(Body):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, object]:
        """The tool as chat templates and parsers of calls read it."""
        return {
            "type": "function",
            "function": {
                "name": self.function.name,
                "description": self.function.description or "",
                "parameters": self.function.parameters or {"type": "object", "properties": {}},
            },
        }


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools may be called, whether one must be, and which (None: all of them)."""

    may_call: bool = True
    must_call: bool = False
    names: frozenset[str] | None = None

    def check(self, known: Collection[str]) -> None:
        """Raise PydanticCustomError unless the request, whose tools are `known`, has what this needs."""
        if strange := (self.names or frozenset()) - set(known):
            raise PydanticCustomError(
                "tool_choice", "'tool_choice' names '{name}', which is no tool", {"name": min(strange)}
            )
        if self.must_call and not known:
            raise PydanticCustomError("tool_choice", "'tool_choice' asks for a call, but there are no tools")


@dataclass(frozen=True, slots=True)
class BoundTool:
    """A function whose arguments fit `schema`; `param` is where the request has it.

    What cannot be enforced of a schema that is not `strict` is left to the model.
    """

    name: str
    schema: dict[str, Any]
    strict: bool
    param: str


@dataclass(frozen=True, slots=True)
class CallRule:
    """What an answer may call: at least one of `tools` if it `must_call`, several only with `many`."""

    tools: tuple[BoundTool, ...]
    must_call: bool
    many: bool

    @property
    def binds(self) -> bool:
        """Whether the answer cannot be left to the model."""
        return self.must_call or any(tool.strict for tool in self.tools)


def bound_tool(function: Function, param: str) -> BoundTool:
    """`function`, whose parameters stand in the field `param`. Without parameters it takes no arguments."""
    schema = function.parameters or {"properties": {}, "additionalProperties": False}
    return BoundTool(function.name, {"type": "object", **schema}, function.strict, param)


def parse_tool_choice(value: object) -> object:
    """Read the `tool_choice` of chat or of responses."""
    match value:
        case "auto":
            return ToolChoice()
        case "none":
            return ToolChoice(may_call=False)
        case "required":
            return ToolChoice(must_call=True)
        case {"type": "function"}:
            return ToolChoice(must_call=True, names=frozenset([_chosen_name(value)]))
        case {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto" | "required" as mode, "tools": [*tools]},
        } | {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": [*tools]}:
            names = frozenset(_chosen_name(tool) for tool in tools)
            return ToolChoice(must_call=mode == "required", names=names)
        case {"type": "custom"}:
            raise PydanticCustomError("unsupported", "only functions can be called here")
    raise PydanticCustomError("tool_choice", "must be 'auto', 'none', 'required' or an object with a type")


def _chosen_name(tool: object) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return name
    raise PydanticCustomError("tool_choice", "a chosen tool must be a function with a name")
