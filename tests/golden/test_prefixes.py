"""Answers that begin with kept KV are the answers that a ring gives which reads everything.

What is computed in other chunks differs in the last bits. So the tokens of a conversation are compared with
mlx-lm's own reuse of its prompt cache, fed in the same chunks, and on the sample model with mlx-lm
reading everything; an answer with a seed has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache
from mlx_lm.utils import load_model

from dnet_core.coordinator import Coordinator
from dnet_core.store.catalog import SAMPLE_ID, resolve
from dnet_core.types.generation import (
    GenerationDone,
    Message,
    Role,
    SamplingParams,
    TokenText,
)
from tests.conftest import Rings
from tests.ring_tools import ring_plan, sample_tokens
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHUNK = 16
TURNS: tuple[tuple[int, ...], ...] = tuple(
    tuple((7 * turn + 3 * i + i * i) % 250 + 5 for i in range(length))
    for turn, length in enumerate((41, 9, 30, 2))
)
NEVER_END = ((1, -100.0),)


async def answer(
    ring: Coordinator, tokens: Sequence[int], sampling: SamplingParams
) -> tuple[list[TokenText], GenerationDone]:
    """The answer, with its KV kept when this returns."""
    texts: list[TokenText] = []
    async for event in ring.generate_from(tuple(tokens), sampling):
        match event:
            case TokenText():
                texts.append(event)
            case GenerationDone():
                done = event
    return texts, done


class MlxLm:
    """mlx-lm's model with one prompt cache over a whole conversation, greedy."""

    def __init__(self, directory: Path) -> None:
        self.model, _ = load_model(directory)
        self.cache: list[Any] = make_prompt_cache(self.model)
        self.held: list[int] = []

    def turn(self, tokens: Sequence[int], count: int, bias: tuple[tuple[int, float], ...] = ()) -> list[int]:
        """Continue `tokens`, of which the cache's part is not read again."""
        shared = next(
            (i for i, (a, b) in enumerate(zip(self.held, tokens, strict=False)) if a != b),
            min(len(self.held), len(tokens)),
        )
        begin = min(shared, len(tokens) - 1)
        trim_prompt_cache(self.cache, len(self.held) - begin)
        body = list(tokens[:-1])
        for start in range(begin, len(body), CHUNK):
            self.model(mx.array([body[start : start + CHUNK]]), cache=self.cache)
            mx.eval([c.state for c in self.cache])
        answered: list[int] = []
        last = tokens[-1]
        while len(answered) < count:
            logits = self.model(mx.array([[last]]), cache=self.cache)[0, -1]
            for token, value in bias:
                logits[token] += value
            last = int(mx.argmax(logits).item())
            answered.append(last)
        self.held = [*tokens, *answered[:-1]]
        return answered


@pytest.mark.parametrize(
    ("shards", "ends", "rounds"), [(1, [5], 1), (1, [2, 5], 2), (2, [2, 5], 1), (2, [1, 2, 4, 5], 2)]
)
@pytest.mark.parametrize("kv_bits", [16, 8])
async def test_a_conversation_of_four_turns(
    shards: int, ends: list[int], rounds: int, kv_bits: int, rings: Rings, models: Path
) -> None:
    """Each turn reads what is new, and gives what mlx-lm gives with its cache."""
    overrides = {"head_dim": 32} if kv_bits == 8 else {}
    model = write_tiny_model("llama", models / f"prefix-{kv_bits}", overrides=overrides)
    ring = await rings(shards)
    plan = ring_plan(model, ring.peers, ends, rounds)
    await ring.load(str(model), replace(plan, kv_bits=kv_bits), CHUNK)
    mlx_lm = MlxLm(model)
    tokens: list[int] = []
    for turn, new in enumerate(TURNS):
        held = len(tokens)
        tokens += new
        got, done = await answer(ring, tokens, SamplingParams(max_tokens=12, logit_bias=NEVER_END))
        if kv_bits == 16:
            assert [t.token for t in got] == mlx_lm.turn(tokens, 12, NEVER_END), f"turn {turn}"
        # The last token of an answer has not been read: a ring of one is a step ahead but for the last one.
        assert done.cached_tokens == max(0, held - 1), f"turn {turn}"
        assert done.prompt_tokens == len(tokens)
        tokens += [t.token for t in got]
    assert len((await ring.statuses())[0].prefixes) == 1, "each turn takes the place of the one before"


@pytest.mark.parametrize("shards", [1, 2])
async def test_the_sample_model_answers_the_same_with_and_without(shards: int, rings: Rings) -> None:
    directory = await resolve(SAMPLE_ID, lambda _done, _total: None)
    ring = await rings(shards)
    await ring.load(SAMPLE_ID, ring_plan(SAMPLE_ID, ring.peers, [30] if shards == 1 else [12, 30]), CHUNK)
    messages: list[Message] = []
    cached = []
    for question in ("Name a colour.", "Another one."):
        messages.append(Message(Role.USER, question))
        prompt = ring.tokenizer.encode_chat(messages)
        got, done = await answer(ring, prompt, SamplingParams(max_tokens=6))
        assert [t.token for t in got] == sample_tokens(directory, tuple(prompt), 6, CHUNK), question
        messages.append(Message(Role.ASSISTANT, "".join(t.text for t in got)))
        cached.append(done.cached_tokens / done.prompt_tokens)
    assert cached[0] == 0.0
    assert cached[1] > 0.6


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("architecture", ["mamba2", "gemma3_text", "qwen3_next", "gpt_oss", "deepseek_v3"])
async def test_caches_that_cannot_go_back_are_used_whole_or_not_at_all(
    architecture: str, shards: int, rings: Rings, models: Path
) -> None:
    model = write_tiny_model(architecture, models / f"prefix-{architecture}")
    layers = len(load_model(model, lazy=True)[0].layers)
    ring = await rings(shards)
    ends = [layers] if shards == 1 else [layers // 2, layers]
    await ring.load(str(model), ring_plan(model, ring.peers, ends), CHUNK)
    greedy = SamplingParams(max_tokens=7, logit_bias=NEVER_END)
    tokens = list(TURNS[0])
    first, _ = await answer(ring, tokens, greedy)
    # Another question with the same beginning: what cannot go back reads all of it.
    fork = [*tokens[:30], 9, 8, 7]
    got, done = await answer(ring, fork, greedy)
    assert done.cached_tokens in (0, 30)
    fresh = MlxLm(model)
    if done.cached_tokens:
        fresh.turn(tokens, 7, NEVER_END)
    assert [t.token for t in got] == fresh.turn(fork, 7, NEVER_END)
    # The next turn begins with all of the first.
    following = [*tokens, *(t.token for t in first), *TURNS[1]]
    got, done = await answer(ring, following, greedy)
    assert done.cached_tokens == len(tokens) + len(first) - 1
    mlx_lm = MlxLm(model)
    mlx_lm.turn(tokens, 7, NEVER_END)
    assert [t.token for t in got] == mlx_lm.turn(following, 7, NEVER_END)


async def test_an_answer_with_a_seed_has_the_same_bits_whatever_is_kept(rings: Rings, models: Path) -> None:
    model = write_tiny_model("llama", models / "prefix-16")
    ring = await rings(2)
    seeded = SamplingParams(temperature=0.9, seed=5, max_tokens=10, logprobs=5, logit_bias=NEVER_END)
    tokens = [token for turn in TURNS for token in turn]  # 82: five chunks and two tokens

    async def loaded() -> None:
        await ring.load(str(model), ring_plan(model, ring.peers, [2, 5]), CHUNK)

    def bits(got: list[TokenText]) -> list[tuple[Any, ...]]:
        return [(t.token, t.logprob, t.top_logprobs) for t in got]

    await loaded()
    alone, done = await answer(ring, tokens, seeded)
    assert done.cached_tokens == 0
    again, done = await answer(ring, tokens, seeded)
    assert (bits(again), done.cached_tokens) == (bits(alone), len(tokens) - 1)
    await loaded()
    await answer(ring, tokens[:70], SamplingParams(max_tokens=3, logit_bias=NEVER_END))
    after, done = await answer(ring, tokens, seeded)
    assert (bits(after), done.cached_tokens) == (bits(alone), 64), "whole chunks only"
    await loaded()
    await answer(ring, tokens[:5], SamplingParams(max_tokens=60, logit_bias=NEVER_END))
    unlike, done = await answer(ring, tokens, seeded)
    assert (bits(unlike), done.cached_tokens) == (bits(alone), 0)
