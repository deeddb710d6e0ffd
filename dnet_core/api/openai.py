"""What a chat may hold, as OpenAI documents it, and what it has in common with other requests.

Known fields are checked strictly; `null` means absent; fields nobody knows are let through. A known field
that this server cannot honour is refused by its type: `Refused`, or a `Literal` of the values that change
nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, InstanceOf, model_validator
from pydantic_core import PydanticCustomError

from dnet_core.api.body import Body, Many, Refused
from dnet_core.api.structured import Guided, ResponseFormat, Wanted, only_one
from dnet_core.api.tool_requests import CallRule, Tool, ToolChoice, bound_tool, parse_tool_choice

# ---- messages ----


def _text_of_parts(value: object) -> object:
    """Content may be one text or a list of parts; several texts are set apart by line breaks."""
    if not isinstance(value, list):
        return value
    return "\n".join(_text_of_part(part, place) for place, part in enumerate(value))


def _text_of_part(part: object, place: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text", "refusal"):
        assert isinstance(part, dict), "only objects have a type"
        text = part.get("refusal" if kind == "refusal" else "text")
        if isinstance(text, str):
            return text
        raise PydanticCustomError("content_part", "part {place} has no text", {"place": place})
    if isinstance(kind, str):
        raise PydanticCustomError(
            "unsupported",
            "part {place} is of type '{kind}', but this server runs text models only",
            {"place": place, "kind": kind},
        )
    raise PydanticCustomError("content_part", "part {place} must be an object with a type", {"place": place})


Text = Annotated[str, BeforeValidator(_text_of_parts)]


class CalledFunction(Body):
    name: str
    arguments: str


class CalledTool(Body):
    """A call that the assistant made earlier in the conversation."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | None = None
    name: str | None = None
    tool_calls: Many[CalledTool] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    audio: Refused = None
    function_call: Refused = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.role == "tool" and self.tool_call_id is None:
            raise PydanticCustomError("missing", "a message of role 'tool' needs 'tool_call_id'")
        if self.tool_calls is not None and self.role != "assistant":
            raise PydanticCustomError("role", "only the assistant has 'tool_calls'")
        if self.content is None and not (self.role == "assistant" and (self.tool_calls or self.refusal)):
            raise PydanticCustomError(
                "missing", "a message of role '{role}' needs 'content'", {"role": self.role}
            )
        return self

    def for_template(self) -> dict[str, object]:
        """The message as chat templates read it; arguments of calls become objects where they are JSON."""
        message: dict[str, object] = {"role": self.role, "content": self.content or self.refusal or ""}
        optional = {
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content or self.reasoning,
        }
        message.update({key: value for key, value in optional.items() if value is not None})
        if self.tool_calls:
            message["tool_calls"] = [_call_for_template(call) for call in self.tool_calls]
        return message


def _call_for_template(call: CalledTool) -> dict[str, object]:
    arguments: object = call.function.arguments
    with suppress(ValueError, RecursionError):  # broken JSON of a model: it is shown what it wrote
        arguments = json.loads(call.function.arguments)
    return {
        "id": call.id,
        "type": call.type,
        "function": {"name": call.function.name, "arguments": arguments},
    }


# ---- sampling ----


def _one_or_more(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _token_ids(value: object) -> object:
    """JSON has no integer keys: OpenAI writes token ids as strings."""
    if not isinstance(value, dict):
        return value
    for key in value:
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            raise PydanticCustomError("token_id", "keys must be token ids")
    return {int(key): bias for key, bias in value.items()}


def _no_fields_of_the_request(value: object) -> object:
    for name in ("messages", "tools"):
        if isinstance(value, dict) and name in value:
            raise PydanticCustomError("reserved", "'{name}' is a field of the request itself", {"name": name})
    return value


TemplateVariables = Annotated[dict[str, Any], BeforeValidator(_no_fields_of_the_request)]
Stop = Annotated[
    Many[Annotated[str, Field(min_length=1)]], Field(max_length=4), BeforeValidator(_one_or_more)
]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
LookBack = Annotated[int, Field(ge=1, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class _CacheOptions(Body):
    """Prompts are cached as long as there is room: for no stated time, and at no stated places."""

    mode: Literal["implicit"] | None = None
    ttl: Refused = None
    comparison_response_id: Refused = None


class Asker(Body):
    """Who asks, and how far prompts are cached for him, in chats and responses."""

    user: str | None = None
    safety_identifier: str | None = None  # the newer name of `user`
    prompt_cache_key: str | None = None  # every prompt is looked for in the cache anyhow
    prompt_cache_options: _CacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory"] | None = None

    @property
    def asker(self) -> str | None:
        """Who takes turns with others."""
        return self.safety_identifier or self.user


class Sampled(Guided):
    """What chat and plain completions have in common."""

    model: str | None = None
    n: int = Field(1, ge=1, le=128)
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stop = ()
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: Probability = 1.0
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: Probability = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    repetition_context_size: LookBack = 20
    presence_context_size: LookBack | None = None  # None, OpenAI's way: the whole answer, without the prompt
    frequency_context_size: LookBack | None = None
    xtc_probability: Probability = 0.0
    xtc_threshold: float = Field(0.1, ge=0, le=0.5)
    logit_bias: Annotated[dict[int, Bias], BeforeValidator(_token_ids)] = Field(default_factory=dict)
    user: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _stream_options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "'stream_options' needs 'stream': true")
        return self

    @model_validator(mode="after")
    def _one_thing_is_wanted(self) -> Self:
        only_one(self.all_wanted())
        return self

    def all_wanted(self) -> list[Wanted]:
        """All that the fields bind the answer to; a lawful request has at most one."""
        return self.guided()

    @property
    def wanted(self) -> Wanted | None:
        """What the answer is bound to."""
        return only_one(self.all_wanted())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of its usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Sampled, Asker):
    """POST /v1/chat/completions."""

    messages: Annotated[Many[ChatMessage], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[Many[Tool], Field(max_length=128)] = ()
    tool_choice: Annotated[InstanceOf[ToolChoice], BeforeValidator(parse_tool_choice)] = ToolChoice()
    parallel_tool_calls: bool = True
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)
    modalities: Many[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    audio: Refused = None
    functions: Refused = None
    function_call: Refused = None
    moderation: Refused = None
    prediction: Refused = None
    verbosity: Literal["medium"] | None = None
    web_search_options: Refused = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "'top_logprobs' needs 'logprobs': true")
        self.tool_choice.check({tool.function.name for tool in self.tools})
        return self

    def all_wanted(self) -> list[Wanted]:
        form = self.response_format.wanted("response_format") if self.response_format else None
        return [*self.guided(), *([form] if form else [])]

    @property
    def callable_tools(self) -> list[dict[str, object]]:
        """The tools that may be called, as templates read them."""
        return [tool.for_template() for _, tool in self._callable()]

    @property
    def call_rule(self) -> CallRule:
        """How the tools may be called."""
        tools = [
            bound_tool(tool.function, f"tools[{place}].function.parameters")
            for place, tool in self._callable()
        ]
        return CallRule(tuple(tools), self.tool_choice.must_call, self.parallel_tool_calls)

    def _callable(self) -> list[tuple[int, Tool]]:
        names = self.tool_choice.names
        tools = self.tools if self.tool_choice.may_call else ()
        return [
            (place, tool) for place, tool in enumerate(tools) if names is None or tool.function.name in names
        ]
