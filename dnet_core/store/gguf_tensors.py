"""GGUF tensor types, bit by bit, as arrays that MLX understands; NumPy only, one tensor at a time.

    Q4_0 Q4_1 Q8_0 Q4_K   stay quantised: MLX's affine form  w = scale * code + bias  in groups of 32
    F32 F16 BF16 Q6_K     floats (six bits in groups of 16 is a form that MLX lacks)

Read here and not by `mx.load`, whose GGUF library (MLX 0.32) gives every second group of a Q4_K tensor its
neighbour's scale, and widens the whole file in memory first. Layouts: ggml's `ggml-common.h`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP_SIZE = 32
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TensorType:
    """`block_items` weights lie in `block_bytes` bytes. `bits` None: it becomes floats."""

    block_items: int
    block_bytes: int
    bits: int | None


TYPES = {
    "F32": TensorType(1, 4, None),
    "F16": TensorType(1, 2, None),
    "BF16": TensorType(1, 2, None),
    "Q4_0": TensorType(32, 18, 4),
    "Q4_1": TensorType(32, 20, 4),
    "Q8_0": TensorType(32, 34, 8),
    "Q4_K": TensorType(256, 144, 4),
    "Q6_K": TensorType(256, 210, None),
}


def tensor_floats(kind: str, data: Bytes, shape: tuple[int, ...]) -> Floats:
    """The floats of a tensor of a type without `bits`: `data` `[bytes]` -> `shape`, float32 (exact)."""
    match kind:
        case "F32":
            return data.view(np.float32).reshape(shape)
        case "F16":
            return data.view(np.float16).astype(np.float32).reshape(shape)
        case "BF16":
            return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        case _:
            assert kind == "Q6_K", f"{kind} does not become floats"
            return _q6_k(data.reshape(-1, 210)).reshape(shape)


def tensor_groups(
    kind: str, data: Bytes, shape: tuple[int, ...]
) -> tuple[NDArray[np.uint32], Floats, Floats]:
    """The groups of a quantised tensor: `data` `[bytes]` -> weight, scales, biases.

    `shape` is `[..., columns]`; weight is `[..., columns * bits / 32]` uint32, the first code in the lowest
    bits; scales and biases are `[..., columns / 32]` float32.
    """
    unpack: Callable[[Bytes], tuple[Bytes, Floats, Floats]] = _UNPACKERS[kind]
    codes, scales, biases = unpack(data.reshape(-1, TYPES[kind].block_bytes))
    if TYPES[kind].bits == 4:
        codes = codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)
    packed = np.ascontiguousarray(codes).view("<u4").astype(np.uint32, copy=False)
    return packed.reshape(*shape[:-1], -1), scales.reshape(*shape[:-1], -1), biases.reshape(*shape[:-1], -1)


def cast(array: NDArray[np.float32], dtype: str) -> NDArray[Any] | None:
    """`array` in `dtype`, bfloat16 as its bits in uint16; None where a number would become infinite."""
    if not np.isfinite(array).all():
        return None
    if dtype == "F32":
        return array
    if dtype == "BF16":  # round to nearest, ties to even
        bits = array.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return None if (rounded & 0x7F80 == 0x7F80).any() else rounded.astype(np.uint16)
    with np.errstate(over="ignore"):
        halves = array.astype(np.float16)
    return halves if np.isfinite(halves).all() else None


def put_rows_back(array: NDArray[Any], heads: int) -> NDArray[Any]:
    """Undo GGUF's order of Llama's rotary rows (pairs side by side) in `[heads * head_dim, ...]`."""
    if not heads:
        return array
    rows, *rest = array.shape
    return array.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def _half(column: Bytes) -> Floats:
    """Two bytes of every block as one number: `[blocks, 2]` -> `[blocks, 1]`."""
    return np.ascontiguousarray(column).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low nibbles, then high nibbles, of the last axis."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _q4_0(blocks: Bytes) -> tuple[Bytes, Floats, Floats]:
    """Scale, 16 bytes of nibbles: w = scale * (code - 8)."""
    scales = _half(blocks[:, :2])
    return _nibbles(blocks[:, 2:]), scales, -8 * scales


def _q4_1(blocks: Bytes) -> tuple[Bytes, Floats, Floats]:
    """Scale, minimum, 16 bytes of nibbles: w = scale * code + minimum."""
    return _nibbles(blocks[:, 4:]), _half(blocks[:, :2]), _half(blocks[:, 2:4])


def _q8_0(blocks: Bytes) -> tuple[Bytes, Floats, Floats]:
    """Scale, 32 signed bytes: w = scale * code; MLX's codes are unsigned, so 128 moves into the bias."""
    scales = _half(blocks[:, :2])
    return blocks[:, 2:] ^ np.uint8(128), scales, -128 * scales


def _q4_k(blocks: Bytes) -> tuple[Bytes, Floats, Floats]:
    """Two halves that scale eight six-bit scales and minima, then 128 bytes of nibbles, 64 weights in 32."""
    packed = blocks[:, 4:16]
    head, middle, tail = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([head & 63, (tail & 15) | head >> 6 << 4], axis=1).astype(np.float32)
    minima = np.concatenate([middle & 63, tail >> 4 | middle >> 6 << 4], axis=1).astype(np.float32)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return codes, _half(blocks[:, :2]) * scales, -_half(blocks[:, 2:4]) * minima


def _q6_k(blocks: Bytes) -> Floats:
    """128 bytes of low nibbles, 64 of high pairs, 16 signed scales, a half that scales them: two halves."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64))  # [blocks, half, 128]
    pairs = blocks[:, 128:192].reshape(-1, 2, 32)
    high = np.concatenate([pairs >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    codes = (low | high << 4).astype(np.int8) - np.int8(32)
    scales = _half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return codes.reshape(-1, 16, 16).astype(np.float32) * scales[:, :, None]


_UNPACKERS = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0, "Q4_K": _q4_k}
