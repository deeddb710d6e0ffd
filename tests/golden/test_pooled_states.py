"""A ring embeds what mlx-lm's own model body gives for the text: the mean of its states after the norm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from dnet_core.coordinator import Coordinator
from dnet_core.errors import ContextTooLong, RequestError, UnsupportedModel
from dnet_core.store.catalog import SAMPLE_ID, resolve
from dnet_core.types.generation import SamplingParams
from tests.conftest import Rings
from tests.ring_tools import reference_tokens, ring_plan, ring_tokens, until_idle
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

TEXT = (5, 17, 42, 9, 100, 33, 7, 11, 60, 8, 23, 90, 77, 3, 14, 15, 92, 65, 35, 89, 79, 32, 38)
UNCHUNKED = 512

# shards, rounds, ends of windows of a model of 5 layers
SPLITS = ((1, 1, (5,)), (1, 2, (2, 5)), (2, 1, (1, 5)), (2, 2, (1, 2, 4, 5)), (3, 1, (3, 4, 5)))


def mean_of_body(model: Path, tokens: Sequence[int], chunk_tokens: int) -> list[float]:
    """`model.model(tokens)` of mlx-lm in this process, fed in chunks, and its mean over the tokens."""
    loaded, _ = load_model(model)
    cache = make_prompt_cache(loaded)
    total = None
    for start in range(0, len(tokens), chunk_tokens):
        hidden = loaded.model(mx.array([tokens[start : start + chunk_tokens]]), cache)
        part = hidden[0].astype(mx.float32).sum(axis=0)
        total = part if total is None else total + part
        mx.eval(total, [c.state for c in cache])
    assert total is not None
    values: list[float] = (total / len(tokens)).tolist()  # type: ignore[assignment]
    return values


async def loaded(
    rings: Rings, model: Path, shards: int, rounds: int, ends: tuple[int, ...], chunk: int
) -> Coordinator:
    ring = await rings(shards)
    await ring.load(str(model), ring_plan(model, ring.peers, ends, rounds), chunk)
    return ring


@pytest.mark.parametrize("chunk", [UNCHUNKED, 5, 1])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3_text", "gpt_oss"])
async def test_every_split_gives_the_mean_of_the_body(
    architecture: str, chunk: int, rings: Rings, models: Path
) -> None:
    model = write_tiny_model(architecture, models / f"embed-{architecture}")
    expected = mean_of_body(model, TEXT, chunk)
    unchunked = mean_of_body(model, TEXT, UNCHUNKED)
    assert np.std(expected) > 0.01, "a mean of nothing would not show a difference"
    for shards, rounds, ends in SPLITS:
        ring = await loaded(rings, model, shards, rounds, ends, chunk)
        values = await ring.embed(TEXT)
        assert list(values) == expected, f"{shards} shards, {rounds} rounds, chunks of {chunk}"
        np.testing.assert_allclose(values, unchunked, atol=1e-4)
    await until_idle(ring)


async def test_bfloat16_is_summed_in_float32(rings: Rings, models: Path) -> None:
    model = write_tiny_model("llama", models / "embed-bf16", dtype="bfloat16")
    ring = await loaded(rings, model, 2, 1, (2, 5), 5)
    assert list(await ring.embed(TEXT)) == mean_of_body(model, TEXT, 5)


async def test_the_answer_after_an_embedding_is_as_ever(rings: Rings, models: Path) -> None:
    """Nothing of the head's detour stays: the same ring samples as before."""
    model = write_tiny_model("llama", models / "embed-llama")
    ring = await loaded(rings, model, 2, 1, (2, 5), 5)
    await ring.embed(TEXT)
    answer = await ring_tokens(ring, TEXT, SamplingParams(max_tokens=8))
    assert [token.token for token in answer] == reference_tokens(model, TEXT, 8, 5)


async def test_a_text_may_fill_the_context_and_not_more(rings: Rings, models: Path) -> None:
    model = write_tiny_model("llama", models / "embed-llama")
    ring = await loaded(rings, model, 2, 1, (2, 5), 100)
    assert ring.loaded is not None
    context = ring.loaded.context_tokens
    full = tuple(7 + i % 200 for i in range(context))
    assert list(await ring.embed(full)) == mean_of_body(model, full, 100)
    with pytest.raises(ContextTooLong):
        await ring.embed((*full, 7))
    with pytest.raises(RequestError, match="empty"):
        await ring.embed(())
    with pytest.raises(RequestError, match="288"):
        await ring.embed((5, 288))


async def test_a_model_that_shows_no_hidden_states_is_refused(rings: Rings, models: Path) -> None:
    """Its body hands over more than one array; and the refusal leaves nothing behind."""
    model = write_tiny_model("plamo", models / "embed-plamo")
    layers = len(load_model(model, lazy=True)[0].layers)
    ring = await loaded(rings, model, 1, 1, (layers,), 16)
    with pytest.raises(UnsupportedModel, match="cannot embed"):
        await ring.embed(TEXT)
    await until_idle(ring)


async def test_the_sample_model_finds_what_is_alike(rings: Rings) -> None:
    directory = await resolve(SAMPLE_ID, lambda _done, _total: None)
    ring = await rings(2)
    await ring.load(SAMPLE_ID, ring_plan(SAMPLE_ID, ring.peers, [12, 30]), 16)
    texts = ("The cat sleeps on the sofa.", "A kitten is napping on the couch.", "def f(x): return x ** 2")
    vectors = []
    for text in texts:
        tokens = ring.tokenizer.encode(text, add_special_tokens=True)
        values = await ring.embed(tokens)
        np.testing.assert_allclose(values, mean_of_body(directory, tokens, 16), rtol=1e-5, atol=1e-5)
        vectors.append(np.array(values) / np.linalg.norm(values))
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
