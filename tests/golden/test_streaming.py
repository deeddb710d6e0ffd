"""Layers streamed from disk give the tokens of mlx-lm, whatever is streamed, into however many buffers."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnet_core.types.generation import SamplingParams
from tests.conftest import Rings
from tests.golden.test_ring import num_layers
from tests.ring_tools import reference_tokens, ring_plan, ring_tokens
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100, 33, 7, 11, 60, 8, 23, 90, 77)
ANSWER_TOKENS = 8
CHUNK_TOKENS = 5

# shards, rounds, ends of the windows
SPLITS = {
    "1 shard": (1, 1, [8]),
    "1 shard, 4 rounds": (1, 4, [2, 4, 6, 8]),
    "2 shards": (2, 1, [5, 8]),
    "2 shards, 2 rounds": (2, 2, [2, 4, 5, 8]),
    "2 shards, 4 rounds": (2, 4, [1, 2, 3, 4, 5, 6, 7, 8]),
}
STREAMED = {"all": range(8), "all but one": (0, 1, 2, 4, 5, 6, 7), "half": (1, 2, 5, 6), "one": (3,)}


@pytest.mark.parametrize("split", SPLITS)
async def test_every_split_and_residency(split: str, rings: Rings, models: Path) -> None:
    model = write_tiny_model("llama", models / "streamed-llama", overrides={"num_hidden_layers": 8})
    expected = reference_tokens(model, PROMPT, ANSWER_TOKENS, CHUNK_TOKENS)
    shards, rounds, ends = SPLITS[split]
    ring = await rings(shards)
    for what, streamed in STREAMED.items():
        for num_buffers in (1, 2, 8):
            plan = ring_plan(model, ring.peers, ends, rounds, streamed, num_buffers)
            await ring.load(str(model), plan, CHUNK_TOKENS)
            answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
            assert [t.token for t in answer] == expected, f"{what} streamed, {num_buffers} buffers"


ARCHITECTURES = (
    "gpt2",
    "gemma3_text",  # sliding windows
    "mixtral",  # MoE: experts are stacked on the way from the file
    "qwen3_moe",
    "deepseek_v3",  # MLA + MoE
    "gpt_oss",
    "mamba2",  # SSM
    "jamba",  # SSM + attention + MoE
    "qwen3_next",  # gated delta net + attention
    "falcon_h1",  # SSM and attention in one layer
    "rwkv7",  # a tuple travels between layers
    "lfm2",  # convolutions + attention
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
async def test_architectures(architecture: str, rings: Rings, models: Path) -> None:
    model = write_tiny_model(architecture, models / f"streamed-{architecture}")
    expected = reference_tokens(model, PROMPT, ANSWER_TOKENS, CHUNK_TOKENS)
    layers = num_layers(model)
    for shards, ends in ((1, [layers]), (2, sorted({1, layers // 2, layers - 1, layers}))):
        ring = await rings(shards)
        plan = ring_plan(model, ring.peers, ends, len(ends), range(layers), 1)
        await ring.load(str(model), plan, CHUNK_TOKENS)
        answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
        assert [t.token for t in answer] == expected, f"{shards} shards"


@pytest.mark.parametrize("kind", ["q4", "q8", "mxfp4", "mixed", "bfloat16", "scattered"])
async def test_kinds_of_checkpoint(kind: str, rings: Rings, models: Path) -> None:
    model = write_tiny_model(
        "llama",
        models / f"streamed-{kind}",
        dtype="bfloat16" if kind == "bfloat16" else "float32",
        quantize=kind if kind in ("q4", "q8", "mxfp4", "mixed") else None,
        num_files=3 if kind == "scattered" else 1,
    )
    expected = reference_tokens(model, PROMPT, ANSWER_TOKENS, CHUNK_TOKENS)
    ring = await rings(2)
    await ring.load(str(model), ring_plan(model, ring.peers, [1, 3, 4, 5], 2, range(5), 1), CHUNK_TOKENS)
    answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
    assert [t.token for t in answer] == expected
