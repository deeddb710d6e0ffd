"""Arrays travel byte for byte, whatever bits they hold."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnet_core.errors import ProtocolError
from dnet_core.slices.tensors import to_array, to_tensor
from dnet_core.transport.frames import Tensor

SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "int32": 4, "uint32": 4, "bool": 1}


@given(data=st.data(), dtype=st.sampled_from(sorted(SIZES)), shape=st.lists(st.integers(0, 4), max_size=4))
def test_bytes_stay_as_they_are(data: st.DataObject, dtype: str, shape: list[int]) -> None:
    size = SIZES[dtype] * int(np.prod(shape))
    raw = data.draw(st.binary(min_size=size, max_size=size))
    if dtype == "bool":
        raw = bytes(byte & 1 for byte in raw)
    tensor = Tensor(dtype, tuple(shape), raw)
    array = to_array(tensor)
    assert (str(array.dtype), array.shape) == (f"mlx.core.{dtype.rstrip('_')}", tuple(shape))
    assert to_tensor(array) == tensor


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_16_bit_pattern(dtype: str) -> None:
    """NaNs with their payloads, both zeros, infinities and subnormals among them."""
    raw = np.arange(2**16, dtype=np.uint16).tobytes()
    assert to_tensor(to_array(Tensor(dtype, (256, 256), raw))).data == raw


def test_float32_nan_payloads() -> None:
    raw = np.array([0x7FC00000, 0x7F800001, 0xFFC12345, 0x7FFFFFFF, 0x80000000, 1], np.uint32).tobytes()
    assert to_tensor(to_array(Tensor("float32", (6,), raw))).data == raw


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32, mx.int32])
def test_what_is_not_contiguous_is_sent_row_by_row(dtype: mx.Dtype) -> None:
    array = mx.arange(24).astype(dtype).reshape(4, 6)
    for view in (array.T, array[::2, 1:5], mx.broadcast_to(array[:1], (3, 6)), array[:, ::-1]):
        tensor = to_tensor(view)
        assert tensor.shape == view.shape
        assert mx.array_equal(to_array(tensor), view)


@pytest.mark.parametrize("dtype", [mx.float64, mx.int64, mx.complex64, mx.uint8])
def test_types_that_do_not_travel(dtype: mx.Dtype) -> None:
    with pytest.raises(ProtocolError, match="cannot travel"):
        to_tensor(mx.zeros((2,), dtype, stream=mx.cpu))


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("float8", (1,), b"\0"),
        Tensor("", (1,), b"\0"),
        Tensor("float32", (2,), b"\0" * 7),
        Tensor("float32", (2,), b"\0" * 4),
        Tensor("bfloat16", (2, 2), b"\0" * 10),
        Tensor("float32", (2**31, 2**31, 2**31), b"\0" * 8),
        Tensor("float32", (), b""),
    ],
)
def test_garbage_is_refused(tensor: Tensor) -> None:
    with pytest.raises(ProtocolError):
        to_array(tensor)
