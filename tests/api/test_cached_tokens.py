"""What clients are told of a prompt that had been read before, and `n` answers to one prompt."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from dnet_core.coordinator import Coordinator
from tests.api.conftest import MODEL
from tests.ring_tools import statuses, until_idle

pytestmark = pytest.mark.asyncio(loop_scope="session")

ODD = "A prompt that no other test has: "


def chat(*texts: str) -> list[Any]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def cached(usage: openai.types.CompletionUsage | None) -> int:
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    return usage.prompt_tokens_details.cached_tokens or 0


async def test_the_next_turn_has_cached_tokens(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    first = await client.chat.completions.create(
        model=MODEL, messages=chat(ODD + "one"), max_tokens=8, temperature=0, logit_bias={"1": -100}
    )
    assert cached(first.usage) < 40, "no more than the template and ODD, if at all"
    await until_idle(ring)
    following = chat(ODD + "one", "an answer of somebody else", "go on")
    second = await client.chat.completions.create(
        model=MODEL, messages=following, max_tokens=3, temperature=0, logit_bias={"1": -100}
    )
    assert first.usage is not None
    # All of the first prompt is the beginning of the second, up to where the answers differ.
    assert cached(second.usage) >= first.usage.prompt_tokens
    await until_idle(ring)
    stream = await client.chat.completions.create(
        model=MODEL,
        messages=following,
        max_tokens=3,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    usages = [chunk.usage async for chunk in stream if chunk.usage]
    assert second.usage is not None
    assert cached(usages[-1]) == second.usage.prompt_tokens - 1


async def test_responses_tell_it_too(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    first = await client.responses.create(model=MODEL, input=ODD + "two", max_output_tokens=16)
    await until_idle(ring)
    second = await client.responses.create(
        model=MODEL, input="go on", previous_response_id=first.id, max_output_tokens=16
    )
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens - 1


@pytest.mark.parametrize("seed", [None, 3])
async def test_many_answers_read_their_prompt_once(
    seed: int | None, client: openai.AsyncOpenAI, ring: Coordinator
) -> None:
    """Measured in steps: windows that the shards have run."""
    question = {"model": MODEL, "messages": chat(f"{ODD}three {seed} " + "word " * 300), "temperature": 1.0}
    asked: dict[str, Any] = {**question, "max_tokens": 2, "logit_bias": {"1": -100}}
    if seed is not None:
        asked["seed"] = seed
    await until_idle(ring)
    before = sum(status.steps for status in await statuses(ring))
    many = await client.chat.completions.create(**asked, n=5)
    steps = sum(status.steps for status in await until_idle(ring)) - before
    assert many.usage is not None
    assert cached(many.usage) < 60, "that they share it is nobody's business"
    assert many.usage.completion_tokens == 10
    before += steps
    await client.chat.completions.create(**{**asked, "messages": chat(f"{ODD}four {seed} " + "word " * 300)})
    alone = sum(status.steps for status in await until_idle(ring)) - before
    shards = len(ring.peers)
    # The answers' tokens are steps of their own, two laps each; the prompt's chunks are those of one answer.
    assert steps <= alone + 4 * 2 * shards


async def test_several_prompts_count_once_each(client: openai.AsyncOpenAI, ring: Coordinator) -> None:
    prompts = [ODD + "five, and some more words", ODD + "six, and some other ones"]
    first = await client.completions.create(model=MODEL, prompt=prompts, n=2, max_tokens=2, temperature=0)
    await until_idle(ring)
    again = await client.completions.create(model=MODEL, prompt=prompts, n=2, max_tokens=2, temperature=0)
    assert first.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens == first.usage.prompt_tokens
    assert cached(again.usage) == again.usage.prompt_tokens - 2, "all but the last token of each"
