"""What a layer hands to the next, as the arrays that travel and the shape that is known on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

Arrays = tuple[mx.array, ...]
"""What travels between windows: usually one array `[batch, tokens, hidden]`."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Where an array stands in what a layer returns."""

    shape: tuple[int, ...]
    dtype: mx.Dtype

    def fits(self, array: mx.array, num_tokens: int) -> bool:
        """Whether `array` is for `num_tokens` what the hole is for one."""
        return (
            array.dtype == self.dtype
            and len(array.shape) == len(self.shape)
            and all(
                have == want or (want == 1 and have == num_tokens)
                for have, want in zip(array.shape, self.shape, strict=True)
            )
        )


def arrays_of(output: Any, shape: Any) -> Arrays:
    """The arrays of `output` that stand in the holes of `shape`, in order."""
    if isinstance(shape, Hole):
        return (output,)
    if shape is None:
        return ()
    return tuple(array for part, hole in zip(output, shape, strict=True) for array in arrays_of(part, hole))


def fill(shape: Any, arrays: list[mx.array]) -> Any:
    """What a layer would have returned: `shape` with `arrays` in its holes, taken from the front."""
    if isinstance(shape, Hole):
        return arrays.pop(0)
    return None if shape is None else type(shape)(fill(part, arrays) for part in shape)
