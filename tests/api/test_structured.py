"""Structured output through the whole way: the official client, the endpoint, a ring of two shards.

The model is tiny and random: that its answers fit is the grammar's doing alone.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import httpx2
import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletion
from pydantic import BaseModel, Field

from dnet_core.coordinator import Coordinator
from tests.api.conftest import MODEL
from tests.api.test_chat import streamed, texts
from tests.api.test_errors import error_of
from tests.ring_tools import until_idle

pytestmark = pytest.mark.asyncio(loop_scope="session")

HI: list[Any] = [{"role": "user", "content": "the quick fox, as JSON"}]
CHAT = "/chat/completions"


class Owner(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=120)


class Animal(BaseModel):
    kind: Literal["fox", "dog"]
    is_quick: bool
    weight: float | None
    owners: list[Owner] = Field(max_length=2)


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["fox", "dog"]},
        "name": {"type": "string", "maxLength": 10},
        "legs": {"type": "integer", "minimum": 2, "maximum": 4},
    },
    "required": ["kind", "name", "legs"],
    "additionalProperties": False,
}
JSON_SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True},
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "how it is outside",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 8},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
NEWS: Any = {"type": "function", "function": {"name": "news"}}


async def ask(client: openai.AsyncOpenAI, **fields: Any) -> ChatCompletion:
    answer = await client.chat.completions.create(
        **{"model": MODEL, "messages": HI, "max_tokens": 400, "seed": 5, **fields}
    )
    return ChatCompletion.model_validate(answer.model_dump(), strict=True)


def content(answer: ChatCompletion) -> str:
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.content is not None
    return choice.message.content


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_schema(temperature: float, client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, response_format=JSON_SCHEMA, temperature=temperature)
    jsonschema.validate(json.loads(content(answer)), SCHEMA)
    chunks = await streamed(
        client, response_format=JSON_SCHEMA, temperature=temperature, seed=5, max_tokens=400, messages=HI
    )
    assert texts(chunks) == content(answer)
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_the_clients_own_helper(client: openai.AsyncOpenAI) -> None:
    for seed in range(5):
        answer = await client.chat.completions.parse(
            model=MODEL, messages=HI, response_format=Animal, max_tokens=1000, seed=seed
        )
        animal = answer.choices[0].message.parsed
        assert isinstance(animal, Animal)


async def test_the_helper_of_responses(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.parse(
        model=MODEL, input="the quick fox", text_format=Animal, max_output_tokens=1000
    )
    assert isinstance(answer.output_parsed, Animal)
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"
    assert answer.text.format.name == "Animal"
    async with client.responses.stream(
        model=MODEL, input="the quick fox", text_format=Animal, max_output_tokens=1000
    ) as stream:
        final = await stream.get_final_response()
    assert isinstance(final.output_parsed, Animal)


async def test_any_object(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    # A random model has no reason to end an object: the bias on its brace is one.
    bias = {str(ring.tokenizer.encode("}", add_special_tokens=False)[0]): 30}
    answer = await ask(client, response_format={"type": "json_object"}, logit_bias=bias)
    assert isinstance(json.loads(content(answer)), dict)


async def test_an_answer_that_is_cut_off_says_so(client: openai.AsyncOpenAI) -> None:
    whole = content(await ask(client, response_format=JSON_SCHEMA))
    for limit in (1, 3, 9):
        answer = await ask(client, response_format=JSON_SCHEMA, max_tokens=limit)
        assert answer.choices[0].finish_reason == "length"
        assert whole.startswith(answer.choices[0].message.content or "")
        assert answer.usage is not None
        assert answer.usage.completion_tokens == limit


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_regex": "(yes|no), [a-f]{3}"},
        {"structured_outputs": {"regex": "(yes|no), [a-f]{3}"}},
        {"guided_choice": ["yes, abc", "no, def"]},
        {"structured_outputs": {"choice": ["yes, abc", "no, def"]}},
        {"guided_grammar": 'start: ("yes" | "no") ", " /[a-f]{3}/'},
        {"grammar": 'root ::= ("yes" | "no") ", " [a-f] [a-f] [a-f]'},
    ],
)
async def test_fields_of_other_servers(fields: dict[str, Any], client: openai.AsyncOpenAI) -> None:
    answer = content(await ask(client, extra_body=fields))
    assert answer[:5] in ("yes, ", "no, a", "no, b", "no, c", "no, d", "no, e", "no, f")
    assert len(answer) in (7, 8)
    plain = await client.completions.create(
        model=MODEL, prompt="the", max_tokens=50, extra_body=fields, seed=3
    )
    assert plain.choices[0].finish_reason == "stop"
    assert len(plain.choices[0].text) in (7, 8)


async def test_a_pattern_that_spells_a_control_token_by_escapes(client: openai.AsyncOpenAI) -> None:
    pattern = r"the \x3c\|user\x7c> s[a]ys: [a-f]{2}"
    answer = await ask(client, extra_body={"guided_regex": pattern})
    assert re.fullmatch(pattern, content(answer))


@pytest.mark.parametrize("name", ["guided_json", "json_schema"])
async def test_schemas_of_other_servers(name: str, client: openai.AsyncOpenAI) -> None:
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        jsonschema.validate(json.loads(content(await ask(client, extra_body={name: schema}))), SCHEMA)


async def test_log_probabilities_of_what_is_forced(client: openai.AsyncOpenAI) -> None:
    answer = await ask(client, response_format=JSON_SCHEMA, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    entries = logprobs.content or []
    assert bytes(byte for entry in entries for byte in entry.bytes or []).decode() == content(answer)
    forced = [entry for entry in entries if len(entry.top_logprobs) == 1]
    assert forced
    assert all(entry.logprob == pytest.approx(0, abs=1e-4) for entry in forced)
    assert all(top.logprob > -1000 for entry in entries for top in entry.top_logprobs)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["required", "named"]
)
async def test_a_call_that_must_be_made(choice: Any, client: openai.AsyncOpenAI) -> None:
    for tools in ([WEATHER], [WEATHER, NEWS]):
        answer = await ask(client, tools=tools, tool_choice=choice, parallel_tool_calls=False)
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        if call.function.name == "weather":
            jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
        else:
            assert (choice, json.loads(call.function.arguments)) == ("required", {})
        chunks = await streamed(
            client,
            messages=HI,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=False,
            max_tokens=400,
            seed=5,
            temperature=1,
        )
        told = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
        assert "".join(c.function.arguments or "" for c in told if c.function) == call.function.arguments
        assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_a_call_that_responses_must_make(client: openai.AsyncOpenAI) -> None:
    tool: Any = {"type": "function", **WEATHER["function"]}
    answer = await client.responses.create(
        model=MODEL,
        input="the quick fox",
        tools=[tool],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        max_output_tokens=400,
    )
    (call,) = answer.output
    assert call.type == "function_call"
    jsonschema.validate(json.loads(call.arguments), WEATHER["function"]["parameters"])
    assert answer.tool_choice.model_dump() == {"type": "function", "name": "weather"}  # type: ignore[union-attr]


class GetWeather(BaseModel):
    """how it is outside"""

    city: str = Field(max_length=8)
    unit: Literal["celsius", "fahrenheit"]


async def test_the_clients_own_tools(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.parse(
        model=MODEL,
        messages=HI,
        tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=400,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)


BAD: list[tuple[dict[str, Any], str, str]] = [
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "objekt"}},
            }
        },
        "response_format",
        "objekt",
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "x",
                    "strict": True,
                    "schema": {"type": "array", "uniqueItems": True},
                },
            }
        },
        "response_format",
        "uniqueItems",
    ),
    ({"guided_regex": "["}, "guided_regex", "unclosed"),
    ({"guided_regex": "a{100000000}"}, "guided_regex", "repeats"),
    ({"guided_json": {"$ref": "#/nowhere"}}, "guided_json", "nowhere"),
    ({"guided_json": {"type": "string", "maxLength": 10**9}}, "guided_json", "maxLength"),
    ({"guided_json": "{"}, "guided_json", "JSON"),
    ({"guided_grammar": "start: nobody"}, "guided_grammar", "nobody"),
    ({"guided_grammar": "start: <|nobody|>"}, "guided_grammar", "nobody"),
    (
        {"guided_grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(2000))},
        "guided_grammar",
        "rules",
    ),
    ({"guided_json": {"anyOf": [{"const": i} for i in range(9999)]}}, "guided_json", "objects"),
    ({"guided_choice": ["x" * 300_000]}, "guided_choice", "bytes"),
    ({"guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "support"),
    (
        {
            "tools": [
                {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"not": {}}}}
            ]
        },
        "tools[0].function.parameters",
        "not",
    ),
]


@pytest.mark.parametrize(("change", "param", "words"), BAD)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_grammar_is_refused_with_the_librarys_words(
    change: dict[str, Any], param: str, words: str, stream: bool, raw: httpx2.AsyncClient, ring: Coordinator
) -> None:
    steps = [status.steps for status in await until_idle(ring)]
    response = await raw.post(CHAT, json={"messages": HI, "max_tokens": 4, "stream": stream, **change})
    error = error_of(response)
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert words in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert [status.steps for status in await ring.statuses()] == steps, "nothing was computed"


async def test_two_bounds_contradict(raw: httpx2.AsyncClient) -> None:
    fields = {"guided_regex": "a", "response_format": {"type": "json_object"}}
    response = await raw.post(CHAT, json={"messages": HI, "max_tokens": 4, **fields})
    assert response.status_code == 400
    assert "guided_regex" in error_of(response)["message"]
