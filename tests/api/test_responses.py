"""/v1/responses with the official client: plain, streamed, continued, cancelled, in the background."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from dnet_core.coordinator import Coordinator
from tests.api.conftest import MODEL
from tests.api.scripted import write_scripted_model
from tests.api.test_errors import error_of
from tests.api.test_tools import HERMES, SCRIPTS, scripted_client
from tests.conftest import Rings
from tests.ring_tools import until_idle

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ENDLESS: dict[str, Any] = {"temperature": 1.5, "extra_body": {"logit_bias": {"1": -100}}}

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def create(client: openai.AsyncOpenAI, **fields: Any) -> Response:
    answer = await client.responses.create(
        **{"model": MODEL, "input": "the quick fox", "temperature": 0, "max_output_tokens": 8, **fields}
    )
    assert isinstance(answer, Response)
    return Response.model_validate(answer.model_dump(), strict=True)


async def streamed(client: openai.AsyncOpenAI, **fields: Any) -> list[Any]:
    fields = {
        "model": MODEL,
        "input": "the quick fox",
        "temperature": 0,
        "max_output_tokens": 8,
        "stream": True,
        **fields,
    }
    events: Any = await client.responses.create(**fields)
    told = [EVENT.validate_python(event.model_dump(), strict=True) async for event in events]
    assert [event.sequence_number for event in told] == list(range(len(told)))
    return told


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tiny(client: openai.AsyncOpenAI) -> openai.AsyncOpenAI:
    return client


async def test_an_answer(tiny: openai.AsyncOpenAI) -> None:
    chat = await tiny.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "the quick fox"}], temperature=0, max_tokens=8
    )
    answer = await create(tiny, metadata={"a": "b"}, user="me")
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.object, answer.model) == ("incomplete", "response", MODEL)
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == 8
    assert (answer.metadata, answer.user) == ({"a": "b"}, "me")


async def test_a_stream_holds_the_same(tiny: openai.AsyncOpenAI) -> None:
    answer = await create(tiny)
    events = await streamed(tiny)
    kinds = [event.type for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in deltas) == answer.output_text
    assert [kind for kind in kinds if not kind.endswith(".delta")] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    final = events[-1].response
    assert final.output_text == answer.output_text
    assert final.usage == answer.usage


async def test_instructions_and_messages_are_the_chat_they_mean(tiny: openai.AsyncOpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "the fox"},
    ]
    chat = await tiny.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=8)
    parts = [{"type": "input_text", "text": "the fox"}]
    given = [*messages[1:3], {"type": "message", "role": "user", "content": parts}]
    answer = await create(tiny, instructions="be brief", input=given)
    assert answer.output_text == chat.choices[0].message.content
    assert answer.instructions == "be brief"


async def test_logprobs(tiny: openai.AsyncOpenAI) -> None:
    fields: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = await create(tiny, **fields)
    (message,) = answer.output
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert len(part.logprobs) == 8
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)
    events = await streamed(tiny, **fields)
    told = [entry for e in events if e.type == "response.output_text.delta" for entry in e.logprobs]
    assert [entry.token for entry in told] == [entry.token for entry in part.logprobs]


async def test_a_conversation_goes_on(tiny: openai.AsyncOpenAI) -> None:
    first = await create(tiny, instructions="be brief")
    second = await create(tiny, previous_response_id=first.id, input="and the dog?", max_output_tokens=5)
    whole = await create(
        tiny,
        input=[
            {"role": "user", "content": "the quick fox"},
            {"role": "assistant", "content": first.output_text},
            {"role": "user", "content": "and the dog?"},
        ],
        max_output_tokens=5,
    )
    assert second.output_text == whole.output_text
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert whole.usage is not None
    assert second.usage.input_tokens == whole.usage.input_tokens, "instructions are not carried over"


async def test_what_is_kept_can_be_had_again(tiny: openai.AsyncOpenAI) -> None:
    answer = await create(tiny)
    assert await tiny.responses.retrieve(answer.id) == answer
    events: Any = await tiny.responses.retrieve(answer.id, stream=True, starting_after=3)
    told = [event async for event in events]
    assert told[0].sequence_number == 4
    assert told[-1].response == answer
    await tiny.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        await tiny.responses.retrieve(answer.id)
    forgotten = await create(tiny, store=False)
    with pytest.raises(openai.NotFoundError):
        await create(tiny, previous_response_id=forgotten.id)


async def test_in_the_background(tiny: openai.AsyncOpenAI) -> None:
    begun = await create(tiny, background=True)
    assert begun.status in ("queued", "in_progress")
    events: Any = await tiny.responses.retrieve(begun.id, stream=True)
    *_, last = [event async for event in events]
    assert last.response.output_text == (await create(tiny)).output_text


async def test_cancelled(tiny: openai.AsyncOpenAI, ring: Coordinator) -> None:
    """In the background or with a reader: it ends as it is, and no shard has the session."""
    begun = await create(tiny, background=True, max_output_tokens=None, **ENDLESS)
    cancelled = await tiny.responses.cancel(begun.id)
    assert cancelled.status == "cancelled"
    await until_idle(ring)
    assert await tiny.responses.cancel(begun.id) == cancelled

    stream: Any = await tiny.responses.create(model=MODEL, input="the", stream=True, **ENDLESS)
    text = response_id = ""
    async for event in stream:
        if event.type == "response.output_text.delta":
            text += event.delta
            if len(text) == len(event.delta):
                with pytest.raises(openai.BadRequestError, match="still running"):
                    await create(tiny, previous_response_id=response_id)
                await tiny.responses.cancel(response_id)
        elif event.type == "response.created":
            response_id = event.response.id
    assert event.type == "response.incomplete"
    assert event.response.status == "cancelled"
    assert event.response.output_text == text
    await until_idle(ring)


async def test_a_client_that_goes_stops_its_response(tiny: openai.AsyncOpenAI, ring: Coordinator) -> None:
    stream: Any = await tiny.responses.create(model=MODEL, input="the", stream=True, **ENDLESS)
    first = await anext(stream)
    await stream.close()
    await until_idle(ring)
    response = await tiny.responses.retrieve(first.response.id)
    while response.status == "in_progress":  # the shards are idle a moment before the answer is put down
        response = await tiny.responses.retrieve(first.response.id)
    assert response.status == "cancelled"


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": 5}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [5]}, "input", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "unsupported_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input",
            "unsupported_parameter",
        ),
        ({"input": [{"type": "function_call", "call_id": "x"}]}, "input", "invalid_value"),
        ({"input": "x" * 10_000}, "input", "context_length_exceeded"),
        ({"n": 2}, "n", "invalid_value"),
        ({"truncation": "auto"}, "truncation", "invalid_value"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {}}}},
            "text.format.name",
            "missing_required_parameter",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
        ({"conversation": "x"}, "conversation", "unsupported_parameter"),
        ({"background": True, "store": False}, None, "invalid_value"),
        ({"previous_response_id": "resp_x"}, "previous_response_id", "response_not_found"),
    ],
)
async def test_a_wrong_field_is_named(
    change: dict[str, Any], param: str | None, code: str, raw: httpx2.AsyncClient
) -> None:
    response = await raw.post("/responses", json={"input": "x", "max_output_tokens": 1, **change})
    error = error_of(response)
    assert response.status_code == (404 if code == "response_not_found" else 400)
    assert (error["param"], error["code"]) == (param, code), error


WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def scripted(rings: Rings, models: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    model = write_scripted_model(models / "hermes", HERMES, SCRIPTS)
    async with scripted_client(rings, model) as made:
        yield made


async def test_calls_and_their_results(scripted: openai.AsyncOpenAI) -> None:
    fields: dict[str, Any] = {
        "model": "hermes",
        "input": "<go-call>",
        "max_output_tokens": 50,
        "tools": [WEATHER],
    }
    answer = await create(scripted, **fields)
    message, call, again = answer.output
    assert answer.output_text == "Let me look."
    assert message.type == "message"
    assert call.type == again.type == "function_call"
    assert (call.name, json.loads(call.arguments), call.status) == ("weather", {"city": "Paris"}, "completed")
    assert answer.status == "completed"
    events = await streamed(scripted, **fields)
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert json.loads("".join(e.delta for e in deltas if e.output_index == 1)) == {"city": "Paris"}
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.name for event in done] == ["weather", "weather"]
    results: Any = [
        {"type": "function_call_output", "call_id": call.call_id, "output": "rain"},
        {"role": "user", "content": "<go-think>"},
    ]
    after = await create(
        scripted, **{**fields, "input": results, "previous_response_id": answer.id, "tools": []}
    )
    assert after.output_text == "It is."


async def test_reasoning(scripted: openai.AsyncOpenAI) -> None:
    fields: dict[str, Any] = {"model": "hermes", "input": "<go-think>", "max_output_tokens": 50}
    answer = await create(scripted, **fields, reasoning={"effort": "high"})
    reasoning, message = answer.output
    assert reasoning.type == "reasoning"
    assert reasoning.content is not None
    assert [part.text for part in reasoning.content] == ["Hm, well."]
    assert message.type == "message"
    assert answer.output_text == "It is."
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens == 4
    events = await streamed(scripted, **fields)
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == "Hm, well."
