"""What OpenAI documents is known here: served, or refused by name; see `openai`'s own types of parameters."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params
from pydantic import ValidationError

from dnet_core.api.body import Body
from dnet_core.api.openai import ChatRequest
from dnet_core.api.responses_request import ResponsesRequest
from dnet_core.api.text_requests import CompletionRequest, EmbeddingRequest

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
RESPONSE: dict[str, Any] = {"input": "hi"}


@pytest.mark.parametrize(
    ("parameters", "model"),
    [
        (chat_params.CompletionCreateParamsBase, ChatRequest),
        (completion_create_params.CompletionCreateParamsBase, CompletionRequest),
        (embedding_create_params.EmbeddingCreateParams, EmbeddingRequest),
        (response_create_params.ResponseCreateParamsBase, ResponsesRequest),
    ],
)
def test_every_documented_field_is_known(parameters: type, model: type[Body]) -> None:
    assert parameters.__annotations__.keys() - {"stream"} <= model.model_fields.keys()


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "a", "safety_identifier": "b", "prompt_cache_key": "c"},
        {"prompt_cache_options": {"mode": "implicit"}, "prompt_cache_retention": "in_memory"},
    ],
)
def test_who_asks_and_what_is_cached(fields: dict[str, Any]) -> None:
    for asked in (ChatRequest(**CHAT, **fields), ResponsesRequest(**RESPONSE, **fields)):
        assert asked.asker == fields.get("safety_identifier")


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_cache_options": {"mode": "explicit"}},
        {"prompt_cache_options": {"ttl": "30m"}},
        {"prompt_cache_retention": "24h"},
        {"safety_identifier": 5},
    ],
)
def test_caching_that_cannot_be_promised_is_refused(fields: dict[str, Any]) -> None:
    for model, body in ((ChatRequest, CHAT), (ResponsesRequest, RESPONSE)):
        with pytest.raises(ValidationError):
            model(**body, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"background_options": {"completion_window": "2h"}},
        {"access_programs": {"cyber": "standard"}},
        {"image": {"size": 1}},
    ],
)
def test_what_only_openai_has_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ResponsesRequest(**RESPONSE, **fields)
