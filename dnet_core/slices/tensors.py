"""MLX arrays to bytes and back, byte for byte: 16-bit floats are seen as integers, never converted."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from dnet_core.errors import ProtocolError
from dnet_core.transport.frames import Tensor

_DTYPES: dict[str, tuple[mx.Dtype, type[np.generic]]] = {
    "bfloat16": (mx.bfloat16, np.uint16),
    "float16": (mx.float16, np.uint16),
    "float32": (mx.float32, np.float32),
    "int32": (mx.int32, np.int32),
    "uint32": (mx.uint32, np.uint32),
    "bool": (mx.bool_, np.bool_),
}
_NAMES = {dtype: name for name, (dtype, _) in _DTYPES.items()}


def to_tensor(array: mx.array) -> Tensor:
    """Copy out the bytes of `array` (evaluating it if it is not)."""
    name = _NAMES.get(array.dtype)
    if name is None:
        raise ProtocolError(f"activations of type {array.dtype} cannot travel in a ring")
    raw = array.view(mx.uint16) if array.dtype.size == 2 else array
    return Tensor(name, array.shape, np.array(raw, copy=False).tobytes())


def to_array(tensor: Tensor) -> mx.array:
    """The array whose bytes `tensor` carries."""
    if tensor.dtype not in _DTYPES:
        raise ProtocolError(f"an activation of unknown type {tensor.dtype!r} arrived")
    dtype, carrier = _DTYPES[tensor.dtype]
    try:
        raw = np.frombuffer(tensor.data, carrier).reshape(tensor.shape)
    except ValueError as error:
        raise ProtocolError(f"an activation is {len(tensor.data)} bytes, not {tensor.shape}") from error
    array = mx.array(raw)
    return array if array.dtype == dtype else array.view(dtype)
