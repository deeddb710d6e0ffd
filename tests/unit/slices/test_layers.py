"""Parameters in a file and in a buffer: bit for bit, wherever they lie, and without a second copy."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from dnet_core.slices.layers import LayerBuffer, LayerSlots, MissingFile, make_streamed
from dnet_core.store.repack import LayerReader, layer_path

DTYPES = (
    mx.float32, mx.bfloat16, mx.float16, mx.uint32, mx.int32, mx.uint8, mx.int8, mx.bool_, mx.uint64
)  # fmt: skip


class Part(nn.Module):
    def __init__(self, **arrays: mx.array) -> None:
        super().__init__()
        for name, array in arrays.items():
            self[name] = array


def odd_layer(seed: int) -> nn.Module:
    """Every dtype in shapes that break any alignment but that of its items, a list of parts, a scalar."""
    mx.random.seed(seed)
    arrays = {}
    for number, dtype in enumerate(DTYPES):
        bits = mx.random.randint(0, 2 if dtype == mx.bool_ else 100, (3, 2 * number + 1))
        arrays[f"array{number}"] = bits.astype(dtype)
    layer = Part(**arrays, scalar=mx.array(1.5 + seed))
    layer["parts"] = [Part(weight=mx.random.normal((4, 64))), Part(weight=mx.random.normal((64, 4)).T)]
    return layer


def bits(array: mx.array) -> bytes:
    return bytes(np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array).tobytes())


def test_what_is_put_back_is_what_was_taken_out(tmp_path: Path) -> None:
    buffer, reader = None, LayerReader()
    for seed in (1, 2, 3):
        layer = odd_layer(seed)
        expected = {name: (a.dtype, a.shape, bits(a)) for name, a in tree_flatten(layer.parameters())}
        streamed = make_streamed(layer, MissingFile(layer_path(tmp_path, seed), "source", "m"))
        buffer = buffer or LayerBuffer(streamed.file.num_bytes)
        streamed.slots.put(buffer.fill(streamed.file, reader))
        found = {name: (a.dtype, a.shape, bits(a)) for name, a in tree_flatten(layer.parameters())}
        assert found == expected
        streamed.slots.clear()
        assert mx.isnan(layer["scalar"]).item()


def test_a_buffer_is_all_the_memory_there_is(tmp_path: Path) -> None:
    layer = Part(a=mx.zeros((1000, 250)), b=mx.zeros((2000, 250), mx.bfloat16), c=mx.zeros((999,), mx.uint8))
    streamed = make_streamed(layer, MissingFile(layer_path(tmp_path, 0), "source", "m"))
    mx.clear_cache()
    before = mx.get_active_memory()
    buffer = LayerBuffer(streamed.file.num_bytes)
    for _ in range(3):
        streamed.slots.put(buffer.fill(streamed.file, LayerReader()))
    assert streamed.file.num_bytes <= mx.get_active_memory() - before <= streamed.file.num_bytes + 32768


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_weights_used_out_of_turn_are_not_numbers(dtype: mx.Dtype) -> None:
    layer = nn.Linear(4, 4)
    layer.set_dtype(dtype)
    slots = LayerSlots(layer)
    assert mx.isnan(layer(mx.ones((1, 4), dtype))).all().item()
    slots.put({"weight": mx.ones((4, 4)), "bias": mx.ones((4,))})
    assert layer(mx.ones((1, 4))).tolist() == [[5.0] * 4]
