"""What POST /v1/responses may hold, and what its input means as messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, InstanceOf, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from dnet_core.api.body import Body, Many, Refused
from dnet_core.api.openai import Asker, CalledFunction, CalledTool, ChatMessage, Sampled, StreamOptions, Text
from dnet_core.api.structured import JsonObjectFormat, NamedSchema, TextFormat, Wanted
from dnet_core.api.tool_requests import CallRule, Function, Tool, ToolChoice, bound_tool, parse_tool_choice

MAX_INPUT_ITEMS = 4096


class _FunctionCall(Body):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class _FunctionOutput(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: Text


class _ReasoningPart(Body):
    text: str = ""


class _ReasoningItem(Body):
    type: Literal["reasoning"]
    content: Many[_ReasoningPart] = ()


_ITEMS: dict[object, TypeAdapter[Any]] = {
    "function_call": TypeAdapter(_FunctionCall),
    "function_call_output": TypeAdapter(_FunctionOutput),
    "reasoning": TypeAdapter(_ReasoningItem),
    "message": TypeAdapter(ChatMessage),
    None: TypeAdapter(ChatMessage),
}
_Item = _FunctionCall | _FunctionOutput | _ReasoningItem | ChatMessage


def input_items(value: object) -> tuple[Body, ...]:
    """Read an input: a text is what the user says; else a list of items of the kinds above.

    Raises PydanticCustomError.
    """
    if isinstance(value, str):
        return (ChatMessage(role="user", content=value),)
    if not isinstance(value, list):
        raise PydanticCustomError("input", "must be a text or a list of items")
    return tuple(_item(item, place) for place, item in enumerate(value))


def _item(value: object, place: int) -> _Item:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not (kind is None or isinstance(kind, str)):
        raise PydanticCustomError("input", "item {place} must be an object with a type", {"place": place})
    if kind not in _ITEMS:
        raise PydanticCustomError(
            "unsupported", "item {place} is of the unsupported type '{kind}'", {"place": place, "kind": kind}
        )
    try:
        item: _Item = _ITEMS[kind].validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        details = {"place": place, "field": field, "message": first["msg"]}
        kind = "unsupported" if first["type"] == "unsupported" else "input"
        raise PydanticCustomError(kind, "item {place}: {field}: {message}", details) from None
    return item


class _ResponseFunction(Body):
    """A tool of this API: what chat nests under `function` stands beside `type`."""

    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = False

    def as_tool(self) -> Tool:
        function = Function(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return Tool(type="function", function=function)

    def told(self) -> dict[str, object]:
        """The tool as a response repeats it."""
        return self.model_dump()


class _SchemaFormat(NamedSchema):
    """What chat nests under `json_schema` stands beside `type`."""

    type: Literal["json_schema"]

    def wanted(self, param: str) -> Wanted | None:
        return Wanted(param, self.part())


class _TextOptions(Body):
    format: Annotated[TextFormat | JsonObjectFormat | _SchemaFormat, Field(discriminator="type")] = (
        TextFormat(type="text")
    )
    verbosity: Literal["medium"] | None = None


class _ReasoningOptions(Body):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Refused = None


class _BackgroundOptions(Body):
    completion_window: Literal["soonest"] | None = None


Include = Literal["message.output_text.logprobs", "reasoning.encrypted_content"]


class ResponsesRequest(Sampled, Asker):
    """POST /v1/responses."""

    input: Annotated[
        tuple[InstanceOf[Body], ...],
        Field(min_length=1, max_length=MAX_INPUT_ITEMS),
        BeforeValidator(input_items),
    ]
    n: Literal[1] = 1
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    top_logprobs: int = Field(0, ge=0, le=20)
    include: Many[Include] = ()
    stream_options: StreamOptions | None = None
    previous_response_id: str | None = None
    store: bool = True
    background: bool = False
    metadata: dict[str, str] | None = None
    tools: Annotated[Many[_ResponseFunction], Field(max_length=128)] = ()
    tool_choice: Annotated[InstanceOf[ToolChoice], BeforeValidator(parse_tool_choice)] = ToolChoice()
    parallel_tool_calls: bool = True
    reasoning: _ReasoningOptions = _ReasoningOptions()
    text: _TextOptions = _TextOptions()
    truncation: Literal["disabled"] = "disabled"
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    service_tier: Literal["auto", "default"] | None = None
    background_options: _BackgroundOptions | None = None
    access_programs: Refused = None
    conversation: Refused = None
    context_management: Refused = None
    image: Refused = None
    max_tool_calls: Refused = None
    moderation: Refused = None
    prompt: Refused = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.background and not self.store:
            raise PydanticCustomError("store", "'background' needs 'store': nobody could fetch the response")
        self.tool_choice.check({tool.name for tool in self.tools})
        return self

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in self.include or self.top_logprobs > 0

    @property
    def callable_tools(self) -> list[dict[str, object]]:
        """The tools that may be called, as templates read them."""
        return [tool.for_template() for _, tool in self._callable()]

    @property
    def call_rule(self) -> CallRule:
        """How the tools may be called."""
        tools = [bound_tool(tool.function, f"tools[{place}].parameters") for place, tool in self._callable()]
        return CallRule(tuple(tools), self.tool_choice.must_call, self.parallel_tool_calls)

    def _callable(self) -> list[tuple[int, Tool]]:
        names = self.tool_choice.names
        tools = self.tools if self.tool_choice.may_call else ()
        return [
            (place, tool.as_tool()) for place, tool in enumerate(tools) if names is None or tool.name in names
        ]

    def all_wanted(self) -> list[Wanted]:
        form = self.text.format.wanted("text.format")
        return [*self.guided(), *([form] if form else [])]

    @property
    def told_format(self) -> dict[str, object]:
        """The format as a response repeats it."""
        form = self.text.format
        return form.told() if isinstance(form, _SchemaFormat) else {"type": form.type}

    @property
    def told_tool_choice(self) -> object:
        """The choice as a response repeats it."""
        if not self.tool_choice.may_call:
            return "none"
        mode = "required" if self.tool_choice.must_call else "auto"
        if self.tool_choice.names is None:
            return mode
        tools = [{"type": "function", "name": name} for name in sorted(self.tool_choice.names)]
        if len(tools) == 1 and self.tool_choice.must_call:
            return tools[0]
        return {"type": "allowed_tools", "mode": mode, "tools": tools}


def messages_of(items: Sequence[Body]) -> list[dict[str, object]]:
    """Items as chat messages; calls and reasoning belong to the assistant's message beside them."""
    messages: list[dict[str, object]] = []
    reasoning: str | None = None
    for item in items:
        match item:
            case ChatMessage():
                told = item.for_template()
            case _FunctionCall():
                called = CalledTool(
                    id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments)
                )
                told = ChatMessage(role="assistant", tool_calls=(called,)).for_template()
            case _FunctionOutput():
                told = {"role": "tool", "tool_call_id": item.call_id, "content": item.output}
            case _ReasoningItem():
                reasoning = "".join(part.text for part in item.content) or None
                continue
            case _:
                raise AssertionError(f"{type(item).__name__} is no item")
        if reasoning is not None and told["role"] == "assistant":
            told["reasoning_content"] = reasoning
        reasoning = None
        if messages and _belong_together(messages[-1], told):
            _merge(messages[-1], told)
        else:
            messages.append(told)
    return messages


def _belong_together(last: Mapping[str, object], told: Mapping[str, object]) -> bool:
    return last["role"] == told["role"] == "assistant" and "tool_calls" in told


def _merge(last: dict[str, object], told: Mapping[str, object]) -> None:
    calls, more = last.get("tool_calls", []), told["tool_calls"]
    assert isinstance(calls, list), "made by for_template"
    assert isinstance(more, list), "made by for_template"
    last["tool_calls"] = calls + more
