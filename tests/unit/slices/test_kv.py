"""Caches with room made ahead give mlx-lm's logits to the bit, and take what was set aside for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import CacheList, KVCache

from dnet_core.shard.sessions import Session
from dnet_core.slices import kv
from dnet_core.slices.kv import capacity_for
from dnet_core.slices.weights import open_model
from dnet_core.slices.window import WindowedModel
from dnet_core.transport.control import Purpose, SessionOrder
from dnet_core.types.generation import SamplingParams
from dnet_core.types.ring import LayerWindow
from tests.tiny_models import write_tiny_model

PROMPT = [5, 17, 42, 9, 100, 33, 7, 11, 60, 8, 23, 90, 77, 3, 14, 15, 92, 65, 35, 89, 79, 32, 38]
CHUNK = 5
ANSWER_TOKENS = 20
ARCHITECTURES = (
    "llama",
    "gemma3_text",  # sliding windows of 8
    "gpt_oss",
    "mixtral",
    "deepseek_v3",  # latent vectors
    "deepseek_v32",  # lists of caches
    "llama4",  # chunks
    "mamba2",  # states
    "qwen3_next",
    "falcon_h1",
)
WIDE_HEADS = {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 1}


def steps() -> list[list[int]]:
    """What goes into the model one after the other: chunks of the prompt, its last token, an answer."""
    body = PROMPT[:-1]
    chunks = [body[i : i + CHUNK] for i in range(0, len(body), CHUNK)]
    return [*chunks, PROMPT[-1:], *([token] for token in range(40, 40 + ANSWER_TOKENS - 1))]


def session(model: WindowedModel) -> Session:
    order = SessionOrder(
        "s", len(PROMPT), ANSWER_TOKENS, (), (), (), SamplingParams(), 1, (), Purpose.ANSWER, None
    )
    return Session("driver:d", order, model.make_cache())


def arrays(cache: Any) -> list[Any]:
    parts = cache.caches if isinstance(cache, CacheList) else (cache,)
    return [part.keys for part in parts if getattr(part, "keys", None) is not None]


@pytest.mark.parametrize("growth", [3, 2048])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bits_and_bytes(
    architecture: str, growth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv, "GROWTH_TOKENS", growth)
    model = open_model(write_tiny_model(architecture, tmp_path / "model"), "tiny")
    whole = LayerWindow(0, model.num_layers)
    plain, ours = model.make_cache(), session(model)
    aside = sum(size.of(len(PROMPT) + ANSWER_TOKENS) for size in model.cache_sizes(16, CHUNK))
    position, grown = 0, 0
    for tokens in steps():
        before = [id(array) for cache in ours.cache for array in arrays(cache)]
        (expected,) = model.embed_and_run(whole, mx.array([tokens]), plain, position)
        ours.advance(whole, position, len(tokens))
        ours.make_room(whole, model.slots(whole), 16)
        capacities = [array.shape[-2] for cache in ours.cache for array in arrays(cache)]
        (logits,) = model.embed_and_run(whole, mx.array([tokens]), ours.cache, position)
        mx.eval(logits, [cache.state for cache in ours.cache])
        assert np.array_equal(np.array(logits), np.array(expected))
        position += len(tokens)
        held = sum(cache.nbytes for cache in ours.cache if not cache.empty())
        assert held <= aside, f"at position {position}"
        after = [array.shape[-2] for cache in ours.cache for array in arrays(cache)]
        grown += bool(before) and after != capacities
    if architecture in ("llama", "deepseek_v3") and growth == 2048:
        assert grown == 0, "there was room for all from the first step on"
        assert held == aside


@pytest.mark.parametrize("bits", [8, 4])
def test_bits_and_bytes_of_quantised_caches(bits: int, tmp_path: Path) -> None:
    model = open_model(write_tiny_model("llama", tmp_path / "model", overrides=WIDE_HEADS), "tiny")
    whole = LayerWindow(0, model.num_layers)
    plain, ours = model.make_cache(), session(model)
    aside = sum(size.of(len(PROMPT) + ANSWER_TOKENS) for size in model.cache_sizes(bits, CHUNK))
    position, held = 0, 0
    for tokens in steps():
        (expected,) = model.embed_and_run(whole, mx.array([tokens]), plain, position)
        maybe_quantize_kv_cache(plain, 0, 64, bits)
        ours.advance(whole, position, len(tokens))
        ours.make_room(whole, model.slots(whole), bits)
        (logits,) = model.embed_and_run(whole, mx.array([tokens]), ours.cache, position)
        ours.quantize(whole, model.slots(whole), bits)
        assert np.array_equal(np.array(logits), np.array(expected))
        position += len(tokens)
        held = sum(cache.nbytes for cache in ours.cache)
        assert held <= aside
    assert held == aside


def test_a_short_answer_takes_little_of_a_long_context(tmp_path: Path) -> None:
    model = open_model(write_tiny_model("llama", tmp_path / "model"), "tiny")
    whole = LayerWindow(0, model.num_layers)
    order = SessionOrder("s", 4, 10, (), (), (), SamplingParams(), 1, (), Purpose.ANSWER, None)
    ours = Session("driver:d", order, model.make_cache())
    ours.advance(whole, 0, 3)
    ours.make_room(whole, model.slots(whole), 16)
    model.embed_and_run(whole, mx.array([[1, 2, 3]]), ours.cache, 0)
    assert {array.shape[-2] for cache in ours.cache for array in arrays(cache)} == {14}
    assert all(type(cache) is KVCache for cache in ours.cache)


@given(
    stops=st.lists(st.integers(1, 20_000), min_size=1),
    prompt_tokens=st.integers(1, 20_000),
    max_tokens=st.integers(1, 20_000),
)
def test_capacity(stops: list[int], prompt_tokens: int, max_tokens: int) -> None:
    """There is room for what comes and for no more than was ordered, and it is seldom made anew."""
    most = prompt_tokens + max_tokens
    capacity, grown = 0, 0
    for stop in sorted(min(stop, most) for stop in stops):
        if stop > capacity:
            capacity = capacity_for(stop, prompt_tokens, most)
            grown += 1
        assert stop <= capacity <= most
        assert capacity <= max(stop, prompt_tokens) + kv.GROWTH_TOKENS
    assert grown <= 1 + max_tokens / kv.GROWTH_TOKENS
