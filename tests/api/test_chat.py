"""Chat completions with the official client, plain and streamed, over a ring of two shards."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from dnet_core.api.app import Endpoint
from dnet_core.coordinator import Coordinator
from dnet_core.transport.control import ShardStatus
from dnet_core.types.generation import SamplingParams
from tests.api.conftest import CONTEXT_TOKENS, MODEL
from tests.ring_tools import ring_tokens, statuses, until_idle

pytestmark = pytest.mark.asyncio(loop_scope="session")

HELLO: list[Any] = [{"role": "user", "content": "the quick fox"}]


async def plain(client: openai.AsyncOpenAI, **fields: Any) -> ChatCompletion:
    answer = await client.chat.completions.create(
        **{"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 12, **fields}
    )
    assert isinstance(answer, ChatCompletion)
    return ChatCompletion.model_validate(answer.model_dump(), strict=True)


async def streamed(client: openai.AsyncOpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    return [
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
        async for chunk in await client.chat.completions.create(
            **{
                "model": MODEL,
                "messages": HELLO,
                "temperature": 0,
                "max_tokens": 12,
                "stream": True,
                **fields,
            }
        )
    ]


def texts(chunks: list[ChatCompletionChunk], index: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


async def test_the_answer_is_what_the_ring_says(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    answer = await plain(client)
    prompt = ring.tokenizer.encode_chat([{"role": "user", "content": "the quick fox"}])
    expected = await ring_tokens(ring, prompt, SamplingParams(max_tokens=12))
    (choice,) = answer.choices
    assert choice.message.content == "".join(token.text for token in expected)
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "length"
    assert answer.model == MODEL
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 12)
    assert answer.usage.total_tokens == len(prompt) + 12


async def test_a_stream_holds_the_same_text(client: openai.AsyncOpenAI) -> None:
    answer = await plain(client)
    chunks = await streamed(client)
    assert texts(chunks) == answer.choices[0].message.content
    assert [c.choices[0].delta.role for c in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


async def test_usage_is_streamed_when_asked_for(client: openai.AsyncOpenAI) -> None:
    *chunks, last = await streamed(client, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 12
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


async def test_several_choices_have_seeds_of_their_own(client: openai.AsyncOpenAI) -> None:
    several = await plain(client, n=3, seed=7, temperature=1.5)
    alone = [await plain(client, seed=7 + i, temperature=1.5) for i in range(3)]
    assert [c.index for c in several.choices] == [0, 1, 2]
    expected = [answer.choices[0].message.content for answer in alone]
    assert [c.message.content for c in several.choices] == expected
    assert len(set(expected)) == 3
    chunks = await streamed(client, n=3, seed=7, temperature=1.5)
    assert [texts(chunks, index) for index in range(3)] == expected
    assert several.usage is not None
    assert several.usage.completion_tokens == sum(
        answer.usage.completion_tokens for answer in alone if answer.usage
    )


async def test_a_stop_string_ends_the_answer_before_it(client: openai.AsyncOpenAI) -> None:
    whole = (await plain(client, max_tokens=40)).choices[0].message.content or ""
    stop = whole[9:12]
    cut = whole[: whole.index(stop)]
    for given in (stop, ["never there", stop]):
        answer = await plain(client, max_tokens=40, stop=given)
        assert answer.choices[0].message.content == cut
        assert answer.choices[0].finish_reason == "stop"
        assert texts(await streamed(client, max_tokens=40, stop=given)) == cut


async def test_logprobs(client: openai.AsyncOpenAI) -> None:
    answer = await plain(client, logprobs=True, top_logprobs=3)
    (choice,) = answer.choices
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert len(entries) == 12
    raw = b"".join(bytes(entry.bytes or []) for entry in entries)
    assert raw.decode(errors="replace") == choice.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        best = entry.top_logprobs[0]
        assert (best.token, best.logprob) == (entry.token, entry.logprob)  # greedy
        assert 0 >= best.logprob >= entry.top_logprobs[1].logprob >= entry.top_logprobs[2].logprob
    chunks = await streamed(client, logprobs=True, top_logprobs=3)
    told = [e for c in chunks if (found := c.choices[0].logprobs) for e in found.content or []]
    assert told == entries


async def test_logprobs_end_where_a_stop_string_begins(client: openai.AsyncOpenAI) -> None:
    whole = (await plain(client, max_tokens=40)).choices[0].message.content or ""
    stop = whole[9:12]
    answer = await plain(client, max_tokens=40, stop=stop, logprobs=True)
    (choice,) = answer.choices
    assert choice.logprobs is not None
    told = "".join(entry.token for entry in choice.logprobs.content or [])
    assert choice.message.content == whole[: whole.index(stop)]
    assert told.startswith(choice.message.content)
    assert stop not in told


async def test_logit_bias_reaches_the_tail(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    (token,) = ring.tokenizer.encode("z", add_special_tokens=False)
    answer = await plain(client, logit_bias={str(token): 100}, max_tokens=4)
    assert answer.choices[0].message.content == "zzzz"


@pytest.mark.parametrize("field", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
async def test_penalties_reach_the_tail(field: str, client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    """Two letters far above all others, one a little ahead: penalties let the other one come up too."""
    z, y = ring.tokenizer.encode("zy", add_special_tokens=False)
    fields = {"extra_body": {"repetition_penalty": 9.0}} if field == "repetition_penalty" else {field: 2.0}
    bias = {str(z): 40, str(y): 39}
    repeated = (await plain(client, logit_bias=bias)).choices[0].message.content or ""
    penalised = (await plain(client, logit_bias=bias, **fields)).choices[0].message.content or ""
    assert set(repeated + penalised) <= {"z", "y"}
    assert penalised.count("z") < repeated.count("z")


@pytest.mark.parametrize("field", ["presence", "frequency"])
async def test_penalties_are_for_tokens_of_the_answer(
    field: str, client: openai.AsyncOpenAI, ring: Coordinator
) -> None:
    """A letter of the prompt is as good as new, unless mlx-lm's way is asked for: then it counts, too."""
    z, y = ring.tokenizer.encode("zy", add_special_tokens=False)
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "z" * 5}],
        "logit_bias": {str(z): 40, str(y): 39},
        f"{field}_penalty": 2.0,
        "max_tokens": 2,
    }
    documented = await plain(client, **asked)
    assert documented.choices[0].message.content == "zy"
    mlx_lm = await plain(client, **asked, extra_body={f"{field}_context_size": 200})
    assert (mlx_lm.choices[0].message.content or "")[0] == "y"


@pytest.mark.parametrize(
    "fields", [{"top_p": 1e-9}, {"extra_body": {"top_k": 1}}, {"extra_body": {"min_p": 1.0}}]
)
async def test_truncation_of_the_distribution_reaches_the_tail(
    fields: dict[str, Any], client: openai.AsyncOpenAI
) -> None:
    greedy = await plain(client)
    narrowed = await plain(client, temperature=2, seed=1, **fields)
    assert narrowed.choices[0].message.content == greedy.choices[0].message.content


async def test_null_means_absent(client: openai.AsyncOpenAI) -> None:
    absent = ("n", "stop", "stream", "stream_options", "seed", "top_p", "logprobs", "top_logprobs", "user")
    answer = await plain(client, extra_body={"tools": None, "stop": None}, **dict.fromkeys(absent))
    assert answer.choices[0].message.content == (await plain(client)).choices[0].message.content


async def test_unknown_fields_are_let_through(client: openai.AsyncOpenAI) -> None:
    assert (await plain(client, extra_body={"no_such_field": {"deep": [1]}})).choices


async def test_fields_that_change_nothing(client: openai.AsyncOpenAI) -> None:
    told = await plain(
        client,
        user="ann",
        safety_identifier="ann",
        metadata={"project": "x"},
        response_format={"type": "text"},
        modalities=["text"],
        service_tier="auto",
        store=False,
        verbosity="medium",
        parallel_tool_calls=True,
        prompt_cache_key="x",
    )
    assert told.choices[0].message.content == (await plain(client)).choices[0].message.content


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}],
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
        [
            {"role": "user", "content": "what time is it?", "name": "ann"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        ],
    ],
)
async def test_kinds_of_messages(messages: list[Any], client: openai.AsyncOpenAI) -> None:
    assert (await plain(client, messages=messages, max_tokens=2)).choices[0].finish_reason == "length"


async def test_a_client_that_goes_stops_every_shard(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    """Streamed or not: soon no shard has a session, long before the answer would have been complete."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=1.5, stream=True, extra_body={"logit_bias": {"1": -100}}
    )
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    before = sum(status.steps for status in await until_busy(ring))
    await stream.close()
    after = sum(status.steps for status in await until_idle(ring))
    assert after - before < CONTEXT_TOKENS

    request = asyncio.ensure_future(plain(client, max_tokens=None, extra_body={"logit_bias": {"1": -100}}))
    await until_busy(ring)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await until_idle(ring)


async def until_busy(ring: Coordinator) -> tuple[ShardStatus, ...]:
    while True:
        found = await statuses(ring)
        if all(status.sessions for status in found):
            return found


async def test_nothing_is_left_in_flight(client: openai.AsyncOpenAI, served: Endpoint) -> None:
    await plain(client)
    before = served.activity.requests_total
    await plain(client)
    assert served.activity.requests_total == before + 1
    assert served.activity.requests == ()
