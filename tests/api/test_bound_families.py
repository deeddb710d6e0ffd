"""Bound answers in the formats of families, the whole way: template, special tokens, ring, parser, client.

The model knows nothing: whatever it is asked, all tokens are equally likely. What it says is the grammar's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import pytest_asyncio

from dnet_core.coordinator import Coordinator
from tests.api.scripted import write_scripted_model
from tests.api.test_chat import streamed, texts
from tests.api.test_structured import JSON_SCHEMA, NEWS, SCHEMA, WEATHER
from tests.api.test_tools import scripted_client
from tests.conftest import Rings

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARAMETERS = WEATHER["function"]["parameters"]
MESSAGES = "{% for message in messages %}{{ message.content }}{% endfor %}"
# A template that tells the family, and its special tokens.
FAMILIES = {
    "hermes": ("{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}", ("<tool_call>", "</tool_call>")),
    "hermes in text": ("{% if tools %}{{ tools | tojson }}<tool_call>{% endif %}", ()),
    "llama3": ("{{ tools }}<|python_tag|>", ("<|python_tag|>",)),
    "mistral": ("{{ tools }}[TOOL_CALLS][ARGS]", ("[TOOL_CALLS]", "[ARGS]")),
    "granite3": ("{{ tools }}<|tool_call|>", ("<|tool_call|>",)),
    "deepseek": (
        "{{ tools }}<｜tool▁calls▁begin｜>```json",
        (
            *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
            "<｜tool▁call▁end｜>",
        ),
    ),
    "command-r": ("{{ tools }}Action: ```json", ()),
    "harmony": (
        "{{ tools }}<|channel|><|message|>",
        ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>"),
    ),
    "qwen3_coder": ("{{ tools }}<tool_call>\n<function=", ("<tool_call>", "</tool_call>")),
    "a model that was never told of tools": ("", ()),
}


@dataclass(frozen=True, slots=True)
class Family:
    client: openai.AsyncOpenAI
    fields: dict[str, Any]  # of every request


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=FAMILIES)
async def family(request: pytest.FixtureRequest, rings: Rings, models: Path) -> AsyncIterator[Family]:
    template, special = FAMILIES[request.param]
    name = "family-" + request.param.replace(" ", "-")
    pieces = [*special, "<never-said>"]
    model = write_scripted_model(models / name, template + MESSAGES, {"<never-asked>": pieces}, special)
    with_room(model)
    async with scripted_client(rings, model) as made:
        fields: dict[str, Any] = {"model": name}
        if request.param == "harmony":
            # The end of this model's answers is gpt-oss's end of a message: it must not begin an analysis.
            fields["logit_bias"] = never(await rings(2), "a")
        yield Family(made, fields)


def with_room(model: Path) -> None:
    """Let the context hold what a model says that knows no end."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))


def never(ring: Coordinator, start: str) -> dict[str, int]:
    """A bias against every token that begins with `start`, unless nothing else is allowed."""
    texts = {token: ring.tokenizer.token_text(token) or "" for token in range(ring.tokenizer.vocab_size)}
    return {str(token): -100 for token, text in texts.items() if text.startswith(start)}


async def ask(client: openai.AsyncOpenAI, **fields: Any) -> Any:
    messages: Any = [{"role": "user", "content": "the fox"}]
    return await client.chat.completions.create(
        **{"messages": messages, "max_tokens": 3000, "seed": 3, "temperature": 1, **fields}
    )


async def test_calls(family: Family) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        fields = {**family.fields, "tools": [WEATHER, NEWS], "tool_choice": choice}
        for seed in range(2):
            answer = await ask(family.client, seed=seed, **fields)
            (told,) = answer.choices
            assert told.finish_reason == "tool_calls", told
            assert not told.message.content
            for call in told.message.tool_calls:
                arguments = json.loads(call.function.arguments)
                if call.function.name == "weather":
                    jsonschema.validate(arguments, PARAMETERS)
                else:
                    assert (choice, arguments) == ("required", {})
        one = await ask(family.client, parallel_tool_calls=False, **fields)
        (call,) = one.choices[0].message.tool_calls
        chunks = await streamed(
            family.client,
            **fields,
            parallel_tool_calls=False,
            messages=[{"role": "user", "content": "the fox"}],
            max_tokens=3000,
            seed=3,
            temperature=1,
        )
        pieces = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or []]
        assert "".join(c.function.arguments or "" for c in pieces if c.function) == call.function.arguments
        assert texts(chunks) == ""


async def test_an_answer_or_a_call(family: Family) -> None:
    for seed in range(2):
        answer = await ask(
            family.client, seed=seed, tools=[WEATHER], response_format=JSON_SCHEMA, **family.fields
        )
        message = answer.choices[0].message
        if message.tool_calls:
            for call in message.tool_calls:
                jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)
        else:
            jsonschema.validate(json.loads(message.content), SCHEMA)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("opened", [True, False])
async def test_reasoning_comes_first(special: bool, opened: bool, rings: Rings, models: Path) -> None:
    template = MESSAGES + ("<think>" if opened else "{% if think %}</think>{% endif %}")
    markers = ["<think>", "</think>"]
    name = f"thinks-{special}-{opened}"
    model = write_scripted_model(
        models / name, template, {"<never-asked>": markers}, markers if special else ()
    )
    with_room(model)
    async with scripted_client(rings, model) as client:
        ring: Coordinator = await rings(2)
        bias = {str(ring.tokenizer.token_id(text)): 5 for text in markers}
        num_thoughts = 0
        for seed in range(4):
            answer = await ask(client, model=name, seed=seed, response_format=JSON_SCHEMA, logit_bias=bias)
            message = answer.choices[0].message
            jsonschema.validate(json.loads(message.content), SCHEMA)
            details = answer.usage.completion_tokens_details
            num_thoughts += bool(details.reasoning_tokens)
            assert details.reasoning_tokens < answer.usage.completion_tokens
        assert num_thoughts
