"""Whatever the body, the reply is an answer or an error in its envelope, and never a fault of the server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnet_core.api.openai import ChatRequest
from dnet_core.api.responses_request import ResponsesRequest
from dnet_core.api.text_requests import (
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TemplateRequest,
    TokenizeRequest,
)
from dnet_core.coordinator import Coordinator
from tests.api.test_errors import error_of
from tests.ring_tools import until_idle

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODIES_AT_ONCE = 12
EXAMPLES = 60

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=8)
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
WORDS = st.sampled_from(
    [
        *("text", "image_url", "function", "auto", "none", "required", "low", "user", "assistant", "tool"),
        *("message", "function_call", "function_call_output", "reasoning", "json_schema", "input_text"),
        *("system", "developer", "allowed_tools", "the", "<|user|>", "\ud800", "\x00", ""),
    ]
)
KEYS = st.sampled_from(
    [
        *("type", "role", "content", "text", "name", "function", "arguments", "parameters", "id", "call_id"),
        *("tool_calls", "tool_call_id", "tools", "mode", "allowed_tools", "output", "effort", "format"),
        *("include_usage", "schema", "strict", "description", "5", "json_schema"),
    ]
)
NEAR_MISSES = st.recursive(
    LEAVES | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": WORDS, "content": WORDS | NEAR_MISSES},
        optional={"tool_calls": NEAR_MISSES, "tool_call_id": WORDS, "name": WORDS, "reasoning": WORDS},
    ),
    min_size=1,
    max_size=3,
)

# Sent unless something else is drawn: the answer is short, whatever else is asked for.
ROUTES: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/chat/completions": (
        ChatRequest,
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "max_completion_tokens": 2},
    ),
    "/v1/completions": (CompletionRequest, {"prompt": "hi", "max_tokens": 1}),
    "/v1/embeddings": (EmbeddingRequest, {"input": "hi"}),
    "/v1/responses": (ResponsesRequest, {"input": "hi", "max_output_tokens": 1}),
    "/tokenize": (TokenizeRequest, {"prompt": "hi"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1]}),
    "/apply-template": (TemplateRequest, {"messages": [{"role": "user", "content": "hi"}]}),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    route = draw(st.sampled_from(sorted(ROUTES)))
    model, body = ROUTES[route]
    fields = sorted({*model.model_fields, "unknown"} - {"background"})
    change = draw(st.dictionaries(st.sampled_from(fields), NEAR_MISSES | ANYTHING, max_size=4))
    if "messages" in fields and draw(st.booleans()):
        change["messages"] = draw(MESSAGES)
    if "input" in fields and draw(st.booleans()):
        change["input"] = draw(MESSAGES)
    for limit in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n"):
        value = change.get(limit)
        if value is None or (type(value) is int and value > 3):
            change.pop(limit, None)
    return route, json.dumps({**body, **change}).encode()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=st.lists(requests(), min_size=1, max_size=BODIES_AT_ONCE))
async def test_any_json(sent: list[tuple[str, bytes]], raw: httpx2.AsyncClient) -> None:
    await asyncio.gather(*(check(raw, route, body) for route, body in sent))


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(route=st.sampled_from(sorted(ROUTES)), body=st.binary(max_size=60))
async def test_any_bytes(route: str, body: bytes, raw: httpx2.AsyncClient) -> None:
    await check(raw, route, body)


async def check(raw: httpx2.AsyncClient, route: str, body: bytes) -> None:
    response = await raw.post(str(raw.base_url).removesuffix("/v1/") + route, content=body)
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, (body, response.text)
        error_of(response)
    elif response.headers["content-type"] == "application/json":
        assert "error" not in response.json() or response.json()["error"] is None, (body, response.text)
    else:
        check_stream(response.text)


def check_stream(text: str) -> None:
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    last = events[-1]
    assert last == "[DONE]" or json.loads(last)["type"] in ("response.completed", "response.incomplete"), text


async def test_nothing_is_left_on_the_shards(ring: Coordinator) -> None:
    await until_idle(ring)
