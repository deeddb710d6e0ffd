"""Whatever the body, the reply is an answer or an error in its envelope, and never a fault of the server."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnet_core.api.app import endpoint
from dnet_core.api.cluster import LoadBody, ManualBody, PrepareBody
from dnet_core.api.openai import Body, ChatRequest
from dnet_core.api.responses_request import ResponsesRequest
from dnet_core.api.text_requests import (
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TemplateRequest,
    TokenizeRequest,
)
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from tests.api.test_errors import error_of
from tests.ring_tools import until_idle
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODIES_AT_ONCE = 24
EXAMPLES = 100  # of 12 to 24 bodies each: more than a thousand in all
LONG = 40  # times as many with --hypothesis-profile=long: the routes are then asked for an hour

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

# Sent to these unless something else is drawn: the answer is short, whatever else is asked for.
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
# These change what is loaded: they are asked on a ring of their own, where TINY stands for a model.
CLUSTER_ROUTES: dict[str, tuple[Any, dict[str, Any]]] = {
    "/v1/prepare_topology": (PrepareBody, {"model": "TINY"}),
    "/v1/prepare_topology_manual": (
        ManualBody,
        {"model": "TINY", "assignments": [{"instance": "here", "layers": [[0, 1], [2]]}]},
    ),
    "/v1/load_model": (LoadBody, {}),
    "/v1/unload_model": (Body, {}),
}
GET_ROUTES = (
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/devices",
    "/v1/topology",
    "/v1/responses",
    "/v1/models/",
)
# No model is there, or a name is looked for on a hub that cannot be reached.
MAY_BE_MISSING = ("model_not_loaded", "model_not_ready", "load_failed")
sent_bodies: Counter[str] = Counter()


def scaled(examples: int) -> int:
    return examples * (LONG if settings().max_examples > 1000 else 1)


@st.composite
def requests(draw: st.DrawFn, routes: dict[str, tuple[Any, dict[str, Any]]] = ROUTES) -> tuple[str, bytes]:
    route = draw(st.sampled_from(sorted(routes)))
    model, body = routes[route]
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


@pytest.mark.timeout(7200)
@settings(max_examples=scaled(EXAMPLES), deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=st.lists(requests(), min_size=BODIES_AT_ONCE // 2, max_size=BODIES_AT_ONCE))
async def test_any_json(sent: list[tuple[str, bytes]], raw: httpx2.AsyncClient) -> None:
    await asyncio.gather(*(check(raw, route, body) for route, body in sent))


async def test_those_were_more_than_a_thousand() -> None:
    assert sent_bodies.total() > 1000, sent_bodies
    assert sent_bodies.keys() >= ROUTES.keys()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def apart() -> AsyncIterator[httpx2.AsyncClient]:
    """For an endpoint on a ring of its own, with nothing loaded at first."""
    async with (
        Coordinator(ClusterOptions(local_shards=1)) as coordinator,
        endpoint(coordinator, "127.0.0.1", 0) as served,
        httpx2.AsyncClient(base_url=served.url) as made,
    ):
        await coordinator.wait_for_local_shards()
        yield made


@pytest.fixture(scope="module")
def tiny(models: Path) -> Path:
    return write_tiny_model("llama", models / "any-body")


@settings(max_examples=scaled(60), deadline=None, suppress_health_check=list(HealthCheck))
@given(sent=st.lists(requests(ROUTES | CLUSTER_ROUTES), min_size=1, max_size=BODIES_AT_ONCE))
async def test_any_json_while_models_come_and_go(
    sent: list[tuple[str, bytes]], apart: httpx2.AsyncClient, tiny: Path
) -> None:
    for route, body in sent:  # in turn, so that a failing case can be made smaller
        told = body.replace(b'"TINY"', json.dumps(str(tiny)).encode())
        await check(apart, route, told, MAY_BE_MISSING)


@settings(max_examples=scaled(100), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    method=st.sampled_from(["GET", "DELETE", "POST", "PUT", "PATCH", "OPTIONS"]),
    route=st.sampled_from(sorted({*GET_ROUTES, *ROUTES})),
    tail=st.text(max_size=12),
    query=st.dictionaries(
        st.sampled_from(["stream", "starting_after", "x"]), st.text(max_size=6), max_size=2
    ),
)
async def test_any_address(
    method: str, route: str, tail: str, query: dict[str, str], raw: httpx2.AsyncClient
) -> None:
    path = "/".join([route.rstrip("/"), *([quote(tail, safe="")] if tail else [])])
    response = await raw.request(method, str(raw.base_url).removesuffix("/v1/") + path, params=query)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error_of(response)


@settings(max_examples=scaled(50), deadline=None, suppress_health_check=list(HealthCheck))
@given(route=st.sampled_from(sorted(ROUTES)), body=st.binary(max_size=60))
async def test_any_bytes(route: str, body: bytes, raw: httpx2.AsyncClient) -> None:
    await check(raw, route, body)


async def check(raw: httpx2.AsyncClient, route: str, body: bytes, may_fail: Collection[str] = ()) -> None:
    """`may_fail` are codes of errors that are not the client's."""
    response = await raw.post(str(raw.base_url).removesuffix("/v1/") + route, content=body)
    sent_bodies[route] += 1
    if response.status_code != 200:
        error = error_of(response)
        assert 400 <= response.status_code < 500 or error["code"] in may_fail, (route, body, response.text)
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
