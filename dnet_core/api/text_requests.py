"""What requests about plain texts and token ids may hold: completions, embeddings, tokens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, InstanceOf, model_validator
from pydantic_core import PydanticCustomError

from dnet_core.api.body import Body, Many, Refused
from dnet_core.api.openai import ChatMessage, Sampled, TemplateVariables
from dnet_core.api.tool_requests import Tool

TokenIds = tuple[int, ...]


def _prompts(value: object) -> object:
    """One text, several, one list of token ids, or several."""
    match value:
        case str():
            return (value,)
        case [int(), *_]:
            return (_ids(value),)
        case [str(), *_] | [[*_], *_]:
            return tuple(item if isinstance(item, str) else _ids(item) for item in value)
    raise PydanticCustomError("prompt", "must be a text, token ids, or a list of either")


def _ids(value: object) -> TokenIds:
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 2**31 for item in value):
        return tuple(value)
    raise PydanticCustomError("prompt", "must be a text, token ids, or a list of either")


Prompts = Annotated[tuple[InstanceOf[str] | InstanceOf[tuple], ...], BeforeValidator(_prompts)]  # type: ignore[type-arg]


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: Annotated[Prompts, Field(max_length=128)]
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool = False
    best_of: int | None = None
    suffix: Refused = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.best_of not in (None, self.n):
            raise PydanticCustomError("unsupported", "'best_of' other than 'n' is not supported")
        if self.echo and self.logprobs is not None:
            raise PydanticCustomError("unsupported", "'echo' with 'logprobs' is not supported")
        return self


class EmbeddingRequest(Body):
    """POST /v1/embeddings."""

    input: Annotated[Prompts, Field(max_length=2048)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)
    user: str | None = None


# ---- text and tokens ----


class TokenizeRequest(Body):
    """POST /tokenize: a text, or messages as a chat would render them."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Many[ChatMessage] | None = None
    tools: Many[Tool] = ()
    add_special_tokens: bool | None = None  # None: as the model is used to
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_one_text(self) -> Self:
        if sum(given is not None for given in (self.content, self.prompt, self.messages)) != 1:
            raise PydanticCustomError("one_text", "give one of 'prompt', 'content' and 'messages'")
        return self


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[Many[Annotated[int, Field(ge=0)]], Field(max_length=2**20)]


class TemplateRequest(Body):
    """POST /apply-template."""

    model: str | None = None
    messages: Annotated[Many[ChatMessage], Field(min_length=1)]
    tools: Many[Tool] = ()
    chat_template_kwargs: TemplateVariables = Field(default_factory=dict)
