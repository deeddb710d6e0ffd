"""Weights that are handed from one load to the next: exactly what both need, and not read again."""

from __future__ import annotations

import itertools
import shutil
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from dnet_core.shard.kept import keep
from dnet_core.slices.weights import open_model, read_parameters
from dnet_core.slices.window import WindowedModel
from dnet_core.transport.control import Limits, LoadOrder
from dnet_core.types.ring import LayerWindow
from tests.tiny_models import write_tiny_model

LAYERS = 5
TOKENS = mx.array([[5, 17, 42]])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("kept"))


def order(start: int, stop: int, streamed: tuple[int, ...] = ()) -> LoadOrder:
    window = LayerWindow(start, stop)
    return LoadOrder("tiny", LAYERS, (window,), streamed, len(streamed), 64, 16, None, Limits(None, 0, 32))


def logits(model: WindowedModel) -> np.ndarray:
    (found,) = model.embed_and_run(LayerWindow(0, LAYERS), TOKENS, model.make_cache(), 0)
    return np.array(found)


def weight(model: WindowedModel, layer: int) -> mx.array:
    found: mx.array = model.layers[layer].mlp.up_proj.weight
    return found


def blank_weights(directory: Path) -> None:
    """Write zeros over all tensors in the files; headers stay."""
    for path in directory.glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        start = 8 + struct.unpack("<Q", data[:8])[0]
        data[start:] = bytes(len(data) - start)
        path.unlink()  # who has the old file open keeps it
        path.write_bytes(data)


def test_what_is_kept_is_not_read_again(directory: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    old = open_model(copy, "tiny")
    expected = logits(old)
    kept = keep(old, "files", order(0, LAYERS), order(0, LAYERS))
    blank_weights(copy)
    assert not np.array_equal(logits(open_model(copy, "tiny")), expected)
    new = open_model(copy, "tiny")
    kept.put_into(new, "files")
    assert np.array_equal(logits(new), expected)


@pytest.mark.parametrize(
    ("before", "after", "both"),
    [
        (order(0, 2), order(0, 3), {0, 1}),
        (order(2, 4), order(1, 3), {2}),
        (order(2, 4), order(4, 5), set()),
        (order(0, 3), order(0, 3, (1, 2)), {0}),
        (order(0, 3, (1, 2)), order(0, 3), {0}),
        (order(0, 3, (1,)), order(0, 3, (1,)), {0, 2}),
    ],
)
def test_layers_that_stay_in_memory_both_times(
    before: LoadOrder, after: LoadOrder, both: set[int], directory: Path
) -> None:
    old, new = open_model(directory, "tiny"), open_model(directory, "tiny")
    for layer in before.resident:
        read_parameters(old.layers[layer], "tiny")
    keep(old, "files", before, after).put_into(new, "files")
    assert {layer for layer in range(LAYERS) if weight(new, layer) is weight(old, layer)} == both


ENDS = (order(0, 2), order(2, 4), order(3, LAYERS), order(0, LAYERS))


@pytest.mark.parametrize(("before", "after"), list(itertools.product(ENDS, ENDS)))
def test_embedding_and_head_are_not_kept_where_they_would_be_in_excess(
    before: LoadOrder, after: LoadOrder, directory: Path
) -> None:
    model = open_model(directory, "tiny")
    kept = keep(model, "files", before, after)
    excess = (before.is_first and not after.is_first) or (before.is_last and not after.is_last)
    assert (kept.others is None) == excess
    if kept.others is not None:
        names = {name for name, _ in kept.others}
        assert "model.embed_tokens.weight" in names
        assert not any("layers" in name for name in names)


def test_other_files_under_the_same_name_are_read(directory: Path) -> None:
    old, new = open_model(directory, "tiny"), open_model(directory, "tiny")
    keep(old, "files", order(0, LAYERS), order(0, LAYERS)).put_into(new, "other files")
    assert not any(weight(new, layer) is weight(old, layer) for layer in range(LAYERS))
