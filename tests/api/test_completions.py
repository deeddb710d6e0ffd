"""Plain completions, tokens and texts, with the official client over a ring of two shards."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest
from openai.types import Completion

from dnet_core.coordinator import Coordinator
from dnet_core.types.generation import SamplingParams
from tests.api.conftest import CONTEXT_TOKENS, MODEL
from tests.api.test_errors import error_of
from tests.ring_tools import ring_tokens

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def plain(client: openai.AsyncOpenAI, prompt: Any, **fields: Any) -> Completion:
    answer = await client.completions.create(
        **{"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields}
    )
    assert isinstance(answer, Completion)
    return Completion.model_validate(answer.model_dump(), strict=True)


async def streamed(client: openai.AsyncOpenAI, prompt: Any, **fields: Any) -> list[Completion]:
    stream = await client.completions.create(
        **{"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 8, "stream": True, **fields}
    )
    return [chunk async for chunk in stream]


def texts(chunks: list[Completion], index: int = 0) -> str:
    return "".join(choice.text for chunk in chunks for choice in chunk.choices if choice.index == index)


async def test_a_text_is_continued(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    tokens = ring.tokenizer.encode("the quick", add_special_tokens=True)
    expected = "".join(t.text for t in await ring_tokens(ring, tokens, SamplingParams(max_tokens=8)))
    answer = await plain(client, "the quick")
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, answer.object) == (expected, "length", "text_completion")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(tokens), 8)
    assert texts(await streamed(client, "the quick")) == expected
    assert (await plain(client, list(tokens))).choices[0].text == expected


async def test_sixteen_tokens_unless_told(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(
        model=MODEL, prompt="the", extra_body={"logit_bias": {"1": -100}}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


async def test_several_prompts_with_several_choices(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    ids = [list(ring.tokenizer.encode(text, add_special_tokens=True)) for text in ("the", "fox")]
    alone = [await plain(client, text, n=2, seed=3, temperature=1.5) for text in ("the", "fox")]
    expected = [choice.text for answer in alone for choice in answer.choices]
    for prompt in (["the", "fox"], ids):
        together = await plain(client, prompt, n=2, seed=3, temperature=1.5)
        assert [choice.index for choice in together.choices] == [0, 1, 2, 3]
        assert [choice.text for choice in together.choices] == expected
        assert together.usage is not None
        assert together.usage.prompt_tokens == sum(map(len, ids))
    chunks = await streamed(client, ["the", "fox"], n=2, seed=3, temperature=1.5)
    assert [texts(chunks, index) for index in range(4)] == expected


async def test_echo(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    said = (await plain(client, "the quick")).choices[0].text
    assert (await plain(client, "the quick", echo=True)).choices[0].text == "the quick" + said
    assert texts(await streamed(client, "the quick", echo=True)) == "the quick" + said
    ids = list(ring.tokenizer.encode("the quick", add_special_tokens=False))
    only = await plain(client, ids, echo=True, max_tokens=0)
    assert (only.choices[0].text, only.choices[0].finish_reason) == ("the quick", "length")
    assert only.usage is not None
    assert only.usage.completion_tokens == 0


async def test_logprobs(client: openai.AsyncOpenAI) -> None:
    (choice,) = (await plain(client, "the", logprobs=2)).choices
    told = choice.logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    assert told.text_offset is not None
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == 8
    for token, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[token] == logprob
        assert len(top) <= 2  # two tokens of the same text share an entry
    assert told.text_offset[0] == 0
    assert told.text_offset[1] == len(told.tokens[0])
    chunks = await streamed(client, "the", logprobs=2)
    parts = [found for chunk in chunks if (found := chunk.choices[0].logprobs)]
    assert [offset for part in parts for offset in part.text_offset or []] == told.text_offset
    assert [token for part in parts for token in part.tokens or []] == told.tokens


async def test_usage_is_streamed_when_asked_for(client: openai.AsyncOpenAI) -> None:
    *_, last = await streamed(client, ["the", "fox"], stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 16


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_required_parameter"),
        ({"prompt": 5}, "prompt", "invalid_value"),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt", "invalid_value"),
        ({"prompt": ["a", 5]}, "prompt", "invalid_value"),
        ({"prompt": [True]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [100_000]}, "prompt", "invalid_value"),
        ({"prompt": "x" * 10_000}, "prompt", "context_length_exceeded"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"best_of": 2}, None, "unsupported_parameter"),
        ({"echo": True, "logprobs": 1}, None, "unsupported_parameter"),
        ({"logprobs": 6}, "logprobs", "invalid_value"),
        ({"logit_bias": {"100000": 1}}, "logit_bias", "invalid_value"),
    ],
)
async def test_a_wrong_field_is_named(
    change: dict[str, Any], param: str | None, code: str, raw: httpx2.AsyncClient
) -> None:
    response = await raw.post(
        "/completions", json={"model": MODEL, "prompt": "the", "max_tokens": 1, **change}
    )
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error


async def post(raw: httpx2.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    response = await raw.post(str(raw.base_url).removesuffix("/v1/") + path, json=body)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


async def test_tokens_and_back(raw: httpx2.AsyncClient, ring: Coordinator) -> None:
    text = "<|user|>the quick fox, 漢字"
    told = await post(raw, "/tokenize", prompt=text)
    assert told["tokens"] == list(ring.tokenizer.encode(text, add_special_tokens=True))
    assert (told["count"], told["max_model_len"]) == (len(told["tokens"]), CONTEXT_TOKENS)
    assert await post(raw, "/tokenize", content=text) == told
    back = await post(raw, "/detokenize", tokens=told["tokens"])
    assert back["prompt"] == back["content"] == text


async def test_a_chat_as_text_and_tokens(raw: httpx2.AsyncClient, ring: Coordinator) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert await post(raw, "/apply-template", messages=messages) == {
        "prompt": "<|user|>hi<|end|><|assistant|>"
    }
    told = await post(raw, "/tokenize", messages=messages)
    assert told["tokens"] == list(ring.tokenizer.encode_chat(messages))


async def test_a_text_that_is_missing(raw: httpx2.AsyncClient) -> None:
    response = await raw.post(str(raw.base_url).removesuffix("/v1/") + "/tokenize", json={})
    assert response.status_code == 400
    error_of(response)


async def test_names_without_the_version(raw: httpx2.AsyncClient) -> None:
    root = str(raw.base_url).removesuffix("/v1/")
    assert (await raw.get(root + "/models")).json() == (await raw.get("/models")).json()
    assert (await raw.get(root + f"/models/{MODEL}")).status_code == 200
    told = await post(raw, "/chat/completions", messages=[{"role": "user", "content": "hi"}], max_tokens=1)
    assert told["object"] == "chat.completion"
    assert (await post(raw, "/completions", prompt="hi", max_tokens=1))["object"] == "text_completion"
