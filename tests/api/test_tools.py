"""Tool calls and reasoning through the whole way: template, ring, special tokens, client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.chat import ChatCompletion

from dnet_core.api.app import endpoint
from tests.api.scripted import write_scripted_model
from tests.api.test_chat import streamed, texts
from tests.conftest import Rings
from tests.tiny_models import EOS

pytestmark = pytest.mark.asyncio(loop_scope="session")

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "how it is outside",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
HERMES = (
    "{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if enable_thinking %}{% endif %}{{ messages[-1].content }}{{ '<think>' if force_thinking }}"
)
SCRIPTS = {
    "<go-call>": [
        *("Let me", " look. ", "\n<tool_", 'call>{"name": "weather", ', '"arguments": {"city": ', '"Paris"}'),
        *("}</tool_call>", "\n<tool_call>", '{"name": "weather", "arguments": {}}</tool_call>'),
    ],
    "<go-think>": ["<think>", "\nHm, ", "well.\n", "</think>", "\n\nIt is."],
    "<go-wrong>": ["<tool_call>{wrong", "}</tool_call> "],
}
HARMONY = (
    "<|start|><|channel|><|message|>"
    "{% for message in messages %}{{ message.content }}{% endfor %}{{ messages[-1].content }}"
)
HARMONY_SCRIPTS = {
    "<go-call>": [
        *("<|channel|>", "commentary to=functions.weather ", "<|constrain|>", "json", "<|message|>"),
        '{"city": "Oslo"}',
    ]
}


@asynccontextmanager
async def scripted_client(rings: Rings, model: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    ring = await rings(2)
    await ring.load(str(model))
    async with (
        endpoint(ring, "127.0.0.1", 0) as served,
        openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as made,
    ):
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hermes(rings: Rings, models: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    model = write_scripted_model(models / "hermes", HERMES, SCRIPTS)
    async with scripted_client(rings, model) as made:
        yield made


async def ask(client: openai.AsyncOpenAI, content: str, **fields: Any) -> ChatCompletion:
    messages: Any = [{"role": "user", "content": content}]
    answer = await client.chat.completions.create(
        **{"model": "hermes", "messages": messages, "temperature": 0, "max_tokens": 50, **fields}
    )
    return ChatCompletion.model_validate(answer.model_dump(), strict=True)


async def test_calls(hermes: openai.AsyncOpenAI) -> None:
    answer = await ask(hermes, "<go-call>", tools=[WEATHER])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    calls = choice.message.tool_calls or []
    assert [call.type for call in calls] == ["function", "function"]
    assert len({call.id for call in calls}) == 2
    told = [(c.function.name, json.loads(c.function.arguments)) for c in calls if c.type == "function"]
    assert told == [("weather", {"city": "Paris"}), ("weather", {})]


async def test_calls_are_streamed(hermes: openai.AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "<go-call>"}]
    chunks = await streamed(hermes, model="hermes", messages=messages, tools=[WEATHER], max_tokens=50)
    assert texts(chunks) == "Let me look."
    told = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    for place, expected in enumerate(({"city": "Paris"}, {})):
        first, *rest = [call for call in told if call.index == place]
        assert first.id
        assert first.type == "function"
        assert first.function is not None
        assert first.function.name == "weather"
        assert all(call.id is None and call.function and call.function.name is None for call in rest)
        arguments = "".join(call.function.arguments or "" for call in (first, *rest) if call.function)
        assert json.loads(arguments) == expected
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert sum(call.index == 0 for call in told) > 2, "the arguments come in pieces"


async def test_without_tools_a_call_is_text(hermes: openai.AsyncOpenAI) -> None:
    for fields in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
        (choice,) = (await ask(hermes, "<go-call>", **fields)).choices
        assert choice.finish_reason == "stop"
        assert choice.message.content == "".join(SCRIPTS["<go-call>"])
        assert choice.message.tool_calls is None


async def test_one_call_when_asked_for(hermes: openai.AsyncOpenAI) -> None:
    answer = await ask(hermes, "<go-call>", tools=[WEATHER], parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls or []) == 1


async def test_what_is_no_call_is_content(hermes: openai.AsyncOpenAI) -> None:
    (choice,) = (await ask(hermes, "<go-wrong>", tools=[WEATHER])).choices
    assert choice.message.content == "".join(SCRIPTS["<go-wrong>"])
    assert choice.finish_reason == "stop"


async def test_a_choice_of_allowed_tools(hermes: openai.AsyncOpenAI) -> None:
    news = {"type": "function", "function": {"name": "news"}}
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "news"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    answer = await ask(hermes, "<go-call>", tools=[WEATHER, news], tool_choice=choice)
    assert answer.choices[0].message.tool_calls is None
    with pytest.raises(openai.BadRequestError, match="no tool"):
        await ask(hermes, "<go-call>", tools=[WEATHER], tool_choice=choice)


async def test_reasoning(hermes: openai.AsyncOpenAI) -> None:
    for fields in ({}, {"stop": "well"}, {"stop": "is. No"}, {"reasoning_effort": "high"}):
        answer = await ask(hermes, "<go-think>", **fields)
        message = answer.choices[0].message
        assert message.content == "It is."
        assert message.model_extra == {"reasoning_content": "Hm, well.", "reasoning": "Hm, well."}
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens == 4
        assert answer.usage.completion_tokens == 6


async def test_a_stop_string_is_looked_for_in_the_answer(hermes: openai.AsyncOpenAI) -> None:
    (choice,) = (await ask(hermes, "<go-think>", stop=["is", "m"])).choices
    assert choice.message.content == "It "
    assert choice.finish_reason == "stop"
    assert (choice.message.model_extra or {})["reasoning"] == "Hm, well."
    messages = [{"role": "user", "content": "<go-think>"}]
    chunks = await streamed(hermes, model="hermes", messages=messages, max_tokens=50, stop="is")
    assert texts(chunks) == "It "
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_cached_tokens_of_an_answer_that_a_stop_string_ends(hermes: openai.AsyncOpenAI) -> None:
    """Of a model that reasons it is looked for here, not where the answer is generated."""
    told = [await ask(hermes, "a long question <go-think>", stop="is", seed=seed) for seed in (None, None, 3)]
    (first, *others) = [answer.usage for answer in told]
    assert first is not None
    for usage in others:
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert usage.prompt_tokens_details.cached_tokens == first.prompt_tokens - 1


async def test_reasoning_that_the_prompt_opens(hermes: openai.AsyncOpenAI) -> None:
    answer = await ask(hermes, "x", extra_body={"chat_template_kwargs": {"force_thinking": True}})
    message = answer.choices[0].message
    assert message.content == "It is."
    assert (message.model_extra or {})["reasoning_content"] == "Hm, well."


async def test_reasoning_is_streamed(hermes: openai.AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "<go-think>"}]
    chunks = await streamed(hermes, model="hermes", messages=messages, max_tokens=50)
    deltas = [chunk.choices[0].delta.model_extra or {} for chunk in chunks]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == "Hm, well."
    assert texts(chunks) == "It is."


async def test_harmony_is_written_with_special_tokens(rings: Rings, models: Path) -> None:
    special = {"<|channel|>", "<|constrain|>", "<|message|>"}
    model = write_scripted_model(models / "harmony", HARMONY, HARMONY_SCRIPTS, special)
    async with scripted_client(rings, model) as client:
        answer = await ask(client, "<go-call>", model="harmony", tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Oslo"}')
    assert answer.choices[0].message.content is None
    assert EOS not in answer.model_dump_json()
