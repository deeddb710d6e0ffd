"""KV caches of 8 and 4 bits: the tokens that mlx-lm gives with `kv_bits`, on any split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from dnet_core.errors import RequestError
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.types.generation import SamplingParams
from tests.conftest import Rings
from tests.ring_tools import ring_plan, ring_tokens
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100, 33, 7, 11, 60, 8, 23, 90, 77, 3, 14, 15, 92, 65, 35, 89, 79, 32, 38)
CHUNK = 7
HEADS = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def reference(model: Path, bits: int, count: int) -> list[int]:
    loaded, _ = load_model(model)
    eos = Tokenizer.load(model).eos_token_ids
    tokens: list[int] = []
    for token, _ in generate_step(
        mx.array(list(PROMPT)),
        loaded,
        max_tokens=count,
        prefill_step_size=CHUNK,
        kv_bits=bits,
        kv_group_size=64,
        quantized_kv_start=0,
    ):
        tokens.append(int(token))
        if token in eos:
            break
    return tokens


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("shards", "rounds", "ends"), [(1, 1, [5]), (2, 1, [2, 5]), (2, 2, [1, 2, 4, 5])])
async def test_quantised_kv_gives_the_tokens_of_one_process(
    bits: int, shards: int, rounds: int, ends: list[int], rings: Rings, models: Path
) -> None:
    model = write_tiny_model("llama", models / "llama-wide-heads", overrides=HEADS)
    expected = reference(model, bits, 16)
    ring = await rings(shards)
    await ring.load(str(model), replace(ring_plan(model, ring.peers, ends, rounds), kv_bits=bits), CHUNK)
    answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=16))
    assert [token.token for token in answer] == expected


async def test_a_model_that_cannot_have_it_says_so_at_load(rings: Rings, models: Path) -> None:
    model = write_tiny_model("llama", models / "llama")
    ring = await rings(1)
    plan = replace(ring_plan(model, ring.peers, [5]), kv_bits=8)
    with pytest.raises(RequestError, match="cannot be quantised"):
        await ring.load(str(model), plan, CHUNK)
    assert ring.loaded is None
