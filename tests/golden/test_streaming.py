"""Layers streamed from disk give the tokens of mlx-lm, whatever is streamed, into however many buffers."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from dnet_core.errors import LoadError
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.store.repack import layer_path, layers_folder
from dnet_core.types.generation import SamplingParams, TokenText
from tests.conftest import Rings
from tests.golden.test_ring import num_layers
from tests.ring_tools import reference_tokens, ring_plan, ring_tokens, until_idle
from tests.tiny_models import write_large_random_model, write_tiny_model

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
        plans = [ring_plan(model, ring.peers, ends, rounds, streamed, buffers) for buffers in (1, 2, 8)]
        for plan in dict.fromkeys(plans):  # no shard has more buffers than layers
            await ring.load(str(model), plan, CHUNK_TOKENS)
            answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
            assert [t.token for t in answer] == expected, f"{what} streamed: {plan}"


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


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"damaged")


@pytest.mark.parametrize(
    ("harm", "message"), [(truncate, "cut short"), (Path.unlink, "No such file"), (damage, "checksum")]
)
async def test_a_file_that_fails_in_the_middle(
    harm: Callable[[Path], None], message: str, rings: Rings, models: Path, tmp_path: Path
) -> None:
    """A typed error for who is reading, and everything works again when the file does."""
    model = write_tiny_model("llama", models / "streamed-harmed", num_files=3)
    ring = await rings(2)
    await ring.load(str(model), ring_plan(model, ring.peers, [2, 5], 1, range(5), 1), CHUNK_TOKENS)
    layer = layer_path(layers_folder(read_checkpoint(model)), 3)
    copy = shutil.copy(layer, tmp_path / "copy")
    long = SamplingParams(max_tokens=400, logit_bias=tuple((t, -1e9) for t in ring.tokenizer.eos_token_ids))
    answer = ring.generate_from(PROMPT, long)
    seen = 0
    with pytest.raises(LoadError, match=message):
        async for event in answer:
            seen += isinstance(event, TokenText)
            if seen == 3:
                harm(layer)
    with pytest.raises(LoadError, match=message):
        await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=2))
    assert all(status.sessions == () for status in await until_idle(ring))
    shutil.copy(copy, layer)
    answered = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
    assert [t.token for t in answered] == reference_tokens(model, PROMPT, ANSWER_TOKENS, CHUNK_TOKENS)
    assert sum(stage.disk_wait_s for token in answered for stage in token.stages) > 0
    assert all(stage.disk_wait_s >= 0 <= stage.compute_s for token in answered for stage in token.stages)


async def test_several_sessions_at_once(rings: Rings, models: Path) -> None:
    """Windows come in an order that nobody could foresee: reads ahead are wrong, answers are not."""
    model = write_tiny_model("llama", models / "streamed-llama", overrides={"num_hidden_layers": 8})
    ring = await rings(2)
    await ring.load(str(model), ring_plan(model, ring.peers, [2, 4, 5, 8], 2, range(8), 2), CHUNK_TOKENS)
    prompts = [PROMPT[start:] for start in range(4)]
    asked = (ring_tokens(ring, prompt, SamplingParams(max_tokens=ANSWER_TOKENS)) for prompt in prompts)
    for prompt, answer in zip(prompts, await asyncio.gather(*asked), strict=True):
        expected = reference_tokens(model, prompt, ANSWER_TOKENS, CHUNK_TOKENS)
        assert [t.token for t in answer] == expected


async def test_memory_stays_within_the_resident_layers_and_the_buffers(rings: Rings, models: Path) -> None:
    """By MLX's own count, at rest and at its peak, against the same windows with all layers in memory."""
    layers = 8
    model = write_large_random_model(models / "streamed-large", layers=layers, hidden=256, vocab=512)
    layer_bytes = (model / "model.safetensors").stat().st_size // (layers + 1)
    ring = await rings(1)

    async def active_and_peak(streamed: range, num_buffers: int) -> tuple[int, int]:
        plan = ring_plan(model, ring.peers, [layers], 1, streamed, num_buffers)
        await ring.load(str(model), plan, CHUNK_TOKENS)
        await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=4))
        (status,) = await until_idle(ring)
        return status.active_bytes, status.peak_bytes

    active, peak = await active_and_peak(range(0), 0)
    for streamed, num_buffers in ((range(8), 1), (range(8), 3), (range(1, 8), 2)):
        saved = (len(streamed) - num_buffers) * layer_bytes
        streamed_active, streamed_peak = await active_and_peak(streamed, num_buffers)
        assert streamed_active <= active - 0.98 * saved
        assert streamed_peak <= peak - 0.98 * saved


async def test_a_layer_that_lies_in_one_piece_is_read_where_it_is(rings: Rings, models: Path) -> None:
    model = write_tiny_model("llama", models / "streamed-in-order")
    weights = model / "model.safetensors"
    save_file(load_file(weights), weights)  # by dtype, then by name: layer by layer
    ring = await rings(1)
    await ring.load(str(model), ring_plan(model, ring.peers, [5], 1, range(5), 2), CHUNK_TOKENS)
    answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
    assert [t.token for t in answer] == reference_tokens(model, PROMPT, ANSWER_TOKENS, CHUNK_TOKENS)
    assert not layers_folder(read_checkpoint(model)).exists(), "nothing was written"


async def test_layer_files_are_written_once_and_a_failure_to_write_is_a_typed_error(
    rings: Rings, models: Path
) -> None:
    model = write_tiny_model("mixtral", models / "streamed-once")
    layers = num_layers(model)
    folder = layers_folder(read_checkpoint(model))
    ring = await rings(1)
    plan = ring_plan(model, ring.peers, [layers], 1, range(layers), 1)
    folder.write_text("in the way")
    with pytest.raises(LoadError, match="cannot be written"):
        await ring.load(str(model), plan, CHUNK_TOKENS)
    assert all(status.model is None for status in await ring.statuses())
    folder.unlink()
    await ring.load(str(model), plan, CHUNK_TOKENS)
    files = {path.name: path.stat().st_ino for path in folder.glob("layer-*")}
    assert sorted(files) == [layer_path(folder, layer).name for layer in range(layers)]
    await ring.load(str(model), plan, CHUNK_TOKENS)
    assert files == {path.name: path.stat().st_ino for path in folder.glob("layer-*")}
    answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
    assert [t.token for t in answer] == reference_tokens(model, PROMPT, ANSWER_TOKENS, CHUNK_TOKENS)
