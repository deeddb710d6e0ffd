"""Correct tokens first: a ring of real processes answers exactly what mlx-lm answers in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnet_core.store.catalog import SAMPLE_ID, resolve
from dnet_core.types.generation import GenerationRequest, Message, Role, SamplingParams, TokenText
from tests.conftest import Rings
from tests.ring_tools import reference_tokens, ring_plan, ring_tokens, sample_tokens
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100, 33, 7, 11, 60, 8, 23, 90, 77, 3, 14, 15, 92, 65, 35, 89, 79, 32, 38)
ANSWER_TOKENS = 12
UNCHUNKED = 512

ARCHITECTURES = (
    "llama",  # dense
    "gpt2",  # learned positions
    "qwen3",
    "gemma2",  # scaled embedding, soft caps, tied
    "gemma3_text",  # sliding windows
    "cohere2",
    "phi3",
    "mixtral",  # MoE
    "qwen3_moe",
    "deepseek_v2",  # MLA + MoE
    "deepseek_v3",
    "gpt_oss",  # attention sinks, sliding windows, MoE
    "mamba2",  # SSM
    "jamba",  # SSM + attention + MoE
    "qwen3_next",  # gated delta net + attention
    "falcon_h1",  # SSM and attention in one layer
    "rwkv7",  # a tuple travels between layers
    "lfm2",  # convolutions + attention
)

# shards, rounds, sizes of the windows as shares of the layers, prompt chunk
SPLITS = (
    (1, 1, (1,), UNCHUNKED),
    (1, 2, (1, 1), 5),
    (2, 1, (1, 3), UNCHUNKED),
    (2, 2, (1, 1, 1, 1), 5),
    (3, 1, (3, 1, 1), 5),
)


def boundaries(shares: tuple[int, ...], num_layers: int) -> list[int]:
    """Ends of windows with these shares of the layers, none of them empty."""
    ends = [round(num_layers * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
    for i, end in enumerate(ends):
        ends[i] = max(end, (ends[i - 1] if i else 0) + 1)
    return [end for end in ends if end < num_layers] + [num_layers]


def num_layers(model: Path) -> int:
    from dnet_core.slices.weights import open_model

    return open_model(model, model.name).num_layers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_every_split_gives_the_tokens_of_one_process(
    architecture: str, rings: Rings, models: Path
) -> None:
    model = write_tiny_model(architecture, models / architecture)
    layers = num_layers(model)
    for shards, rounds, shares, chunk in SPLITS:
        expected = reference_tokens(model, PROMPT, ANSWER_TOKENS, chunk)
        ring = await rings(shards)
        plan = ring_plan(model, ring.peers, boundaries(shares, layers), rounds)
        await ring.load(str(model), plan, chunk)
        answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
        assert [t.token for t in answer] == expected, f"{shards} shards, {rounds} rounds, chunks of {chunk}"
        assert [t.position for t in answer] == list(range(len(PROMPT), len(PROMPT) + len(expected)))


@pytest.mark.parametrize("quantize", ["q4", "q8", "mixed"])
async def test_quantised_checkpoints(quantize: str, rings: Rings, models: Path) -> None:
    model = write_tiny_model("llama", models / f"llama-{quantize}", quantize=quantize)
    expected = reference_tokens(model, PROMPT, ANSWER_TOKENS, 5)
    ring = await rings(2)
    await ring.load(str(model), ring_plan(model, ring.peers, [1, 5]), 5)
    answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
    assert [t.token for t in answer] == expected


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
async def test_half_precision_crosses_the_hops_bit_for_bit(dtype: str, rings: Rings, models: Path) -> None:
    """Log-probabilities of every token equal those of a ring of one, where nothing crosses a hop."""
    model = write_tiny_model("llama", models / f"llama-{dtype}", dtype=dtype)
    sampling = SamplingParams(max_tokens=6, logprobs=5)
    alone = await rings(1)
    await alone.load(str(model), ring_plan(model, alone.peers, [5]), 5)
    expected = await ring_tokens(alone, PROMPT, sampling)
    ring = await rings(2)
    await ring.load(str(model), ring_plan(model, ring.peers, [1, 3, 4, 5], rounds=2), 5)
    answer = await ring_tokens(ring, PROMPT, sampling)
    assert [(t.token, t.logprob, t.top_logprobs) for t in answer] == [
        (t.token, t.logprob, t.top_logprobs) for t in expected
    ]
    assert [t.token for t in answer] == reference_tokens(model, PROMPT, 6, 5)


@pytest.mark.parametrize(
    ("shards", "rounds", "ends"), [(1, 1, [30]), (2, 2, [7, 15, 23, 30]), (3, 1, [4, 17, 30])]
)
async def test_the_sample_model(shards: int, rounds: int, ends: list[int], rings: Rings) -> None:
    """The real model in one process and in a ring; and it knows the capital of France."""
    directory = await resolve(SAMPLE_ID, lambda _done, _total: None)
    ring = await rings(shards)
    await ring.load(SAMPLE_ID, ring_plan(SAMPLE_ID, ring.peers, ends, rounds), 16)
    question = GenerationRequest(
        (Message(Role.USER, "What is the capital of France?"),), SamplingParams(max_tokens=8)
    )
    answer = [event async for event in ring.generate(question) if isinstance(event, TokenText)]
    assert "Paris" in "".join(token.text for token in answer)
    prompt = ring.tokenizer.encode_chat(question.messages)
    assert [token.token for token in answer] == sample_tokens(directory, tuple(prompt), 8, 16)
