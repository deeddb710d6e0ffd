"""The tools of a request, and whether they may or must be called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from dnet_core.api.body import Body


class Function(Body):
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None  # True asks for arguments bound to the schema while decoding


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
    """Whether tools may be called, and which (None: all of them)."""

    may_call: bool = True
    names: frozenset[str] | None = None


def parse_tool_choice(value: object) -> object:
    """Read the `tool_choice` of chat or of responses."""
    match value:
        case "auto":
            return ToolChoice()
        case "none":
            return ToolChoice(may_call=False)
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [*tools]}} | {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [*tools],
        }:
            return ToolChoice(names=frozenset(_chosen_name(tool) for tool in tools))
        case "required" | {"type": "function" | "custom" | "allowed_tools"}:
            raise PydanticCustomError(
                "unsupported", "a call cannot be enforced by this server: use 'auto' or 'none'"
            )
    raise PydanticCustomError("tool_choice", "must be 'auto', 'none', 'required' or an object with a type")


def _chosen_name(tool: object) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return name
    raise PydanticCustomError("tool_choice", "allowed tools must be functions with a name")
