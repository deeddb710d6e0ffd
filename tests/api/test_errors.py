"""What a client is told when something is wrong: the envelope, the status, the field at fault."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest

from dnet_core.api.app import Endpoint, endpoint
from dnet_core.api.reading import MAX_BODY_BYTES
from dnet_core.coordinator import Coordinator
from dnet_core.errors import StartError
from tests.api.conftest import CONTEXT_TOKENS, MODEL

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/chat/completions"
HI: list[Any] = [{"role": "user", "content": "hi"}]


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error of a reply, whose shape is checked."""
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(isinstance(error[key], str) and error[key] for key in ("message", "type", "code")), error
    assert error["param"] is None or isinstance(error["param"], str)
    return error


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "missing_required_parameter"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_value"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "unsupported_parameter",
        ),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"temperature": True}, "temperature", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"min_p": 2}, "min_p", "invalid_value"),
        ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop", "invalid_value"),
        ({"stop": ""}, "stop[0]", "invalid_value"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"top_logprobs": 3}, None, "invalid_value"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias[5]", "invalid_value"),
        ({"logit_bias": {"999999": 1}}, "logit_bias", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, None, "invalid_value"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"store": True}, "store", "invalid_value"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "invalid_value"),
        (
            {"tools": [{"type": "function", "function": {}}]},
            "tools[0].function.name",
            "missing_required_parameter",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "no spaces"}}]},
            "tools[0].function.name",
            "invalid_value",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]},
            "tools[0].function.strict",
            "invalid_value",
        ),
        ({"tool_choice": "maybe"}, "tool_choice", "invalid_value"),
        ({"tool_choice": "required"}, None, "invalid_value"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, None, "invalid_value"),
        ({"tool_choice": {"type": "custom", "custom": {}}}, "tool_choice", "unsupported_parameter"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format", "invalid_value"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
            "response_format.json_schema.name",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "missing_required_parameter",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "invalid_value"),
    ],
)
async def test_a_wrong_field_is_named(
    change: dict[str, Any], param: str | None, code: str, raw: httpx2.AsyncClient
) -> None:
    response = await raw.post(CHAT, json={"model": MODEL, "messages": HI, "max_tokens": 1, **change})
    error = error_of(response)
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert (error["param"], error["code"]) == (param, code), error
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"messages": ' + b"[" * 100_000,
        b'{"temperature": 1' + b"0" * 5000 + b"}",
    ],
)
async def test_a_body_that_is_no_json_object(body: bytes, raw: httpx2.AsyncClient) -> None:
    response = await raw.post(CHAT, content=body)
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_json"


async def test_half_a_surrogate_pair(raw: httpx2.AsyncClient) -> None:
    for body in (
        rb'{"messages": [{"role": "user", "content": "\ud800"}]}',
        rb'{"model": "\ud800", "messages": [{"role": "user", "content": "x"}]}',
    ):
        response = await raw.post(CHAT, content=body)
        assert response.status_code in (400, 404)
        error_of(response)


async def test_a_body_too_large(raw: httpx2.AsyncClient) -> None:
    response = await raw.post(CHAT, content=b" " * (MAX_BODY_BYTES + 1))
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


async def test_a_chunked_body(raw: httpx2.AsyncClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"messages": [{"role": "user", '
        yield b'"content": "hi"}], "max_tokens": 1}'

    response = await raw.post(CHAT, content=pieces())
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] == 1


async def test_an_unknown_model(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="gpt-5", messages=HI)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("gpt-5")


async def test_a_prompt_longer_than_the_context(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    long: list[Any] = [{"role": "user", "content": "x" * 10_000}]
    tokens = len(ring.tokenizer.encode_chat(long))
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x" * 10**6}])
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model=MODEL, messages=long, stream=stream)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
        assert f"{tokens:,}" in caught.value.message
        assert f"{CONTEXT_TOKENS:,}" in caught.value.message


async def test_unknown_urls_and_methods(raw: httpx2.AsyncClient) -> None:
    response = await raw.get("/no/such/thing")
    assert (response.status_code, error_of(response)["code"]) == (404, "unknown_url")
    response = await raw.get(CHAT)
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


async def test_failures_are_kept_for_the_screen(raw: httpx2.AsyncClient, served: Endpoint) -> None:
    await raw.post(CHAT, content=b"{")
    last = served.activity.last_errors[-1]
    assert (last.method, last.path, last.status) == ("POST", "/v1/chat/completions", 400)


async def test_a_loopback_endpoint_keeps_other_sites_out(raw: httpx2.AsyncClient, served: Endpoint) -> None:
    response = await raw.get("/models", headers={"origin": "https://evil.example"})
    assert (response.status_code, error_of(response)["code"]) == (403, "wrong_origin")
    assert (await raw.get("/models", headers={"host": "host.docker.internal:80"})).status_code == 200
    response = await raw.get("/models", headers={"host": "evil.example"})
    assert (response.status_code, error_of(response)["code"]) == (403, "wrong_host")
    asking = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for reply in (response, await raw.options(CHAT, headers=asking)):
        assert reply.status_code >= 400
        assert not [name for name in reply.headers if name.startswith("access-control")]
    own = served.url.removesuffix("/v1")
    assert (await raw.get("/models", headers={"origin": own})).status_code == 200


async def test_keys(ring: Coordinator) -> None:
    async with endpoint(ring, "127.0.0.1", 0, api_keys=("first", "sécond")) as guarded:
        async with httpx2.AsyncClient(base_url=guarded.url) as raw:
            response = await raw.get("/models")
            assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
            health = await raw.get(guarded.url.removesuffix("/v1") + "/health")
            assert health.status_code == 200
            assert (await raw.get("/models", headers={"x-api-key": "first"})).status_code == 200
        for key, accepted in (("first", True), ("second", False), ("firs", False)):
            async with openai.AsyncOpenAI(base_url=guarded.url, api_key=key, max_retries=0) as client:
                if accepted:
                    assert [model.id async for model in client.models.list()] == [MODEL]
                else:
                    with pytest.raises(openai.AuthenticationError):
                        await client.models.list()


async def test_other_addresses_need_a_key(ring: Coordinator) -> None:
    with pytest.raises(StartError, match="API key"):
        async with endpoint(ring, "0.0.0.0", 0):
            pass
    async with endpoint(ring, "0.0.0.0", 0, api_keys=("k",)) as served:
        assert served.port > 0


@pytest.mark.parametrize(
    ("host", "port"), [("192.0.2.1", 0), ("no.such.name.invalid", 0), ("a..b", 0), ("127.0.0.1", 70_000)]
)
async def test_an_address_that_cannot_be_had_is_told(host: str, port: int, ring: Coordinator) -> None:
    with pytest.raises(StartError, match=f"{host} port {port}"):
        async with endpoint(ring, host, port, api_keys=("k",)):
            pass


async def test_a_port_in_use_is_told(ring: Coordinator, served: Endpoint) -> None:
    with pytest.raises(StartError, match=f"port {served.port}"):
        async with endpoint(ring, "127.0.0.1", served.port):
            pass
