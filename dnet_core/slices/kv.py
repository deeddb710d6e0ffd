"""KV caches of one sequence: what they take, how they grow, and fewer bits for them.

mlx-lm's caches grow by 256 positions at a time, each time into a new array, so that a long answer leaves a
trail of freed ones behind. Here they get their room at once, and seldom more:

    position     0        prompt      prompt + 2,048               prompt + max_tokens
    caches       |------- the first array -----|- 2,048 more -| ... |  never beyond this

What is in them, and what is computed from it, is mlx-lm's to the bit: only how much of the array is unused
differs. Caches of sliding windows and states are bounded anyway, and mlx-lm has no quantised form of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from dnet_core.errors import RequestError

GROWTH_TOKENS = 2048
"""Room for this much of an answer is made at once: a few hundred MB for the largest models."""

GROUP_SIZES = (64, 32)


# ---- how much ----


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What one cache takes: `fixed_bytes`, and `token_bytes` for each of the last `most_tokens` positions."""

    fixed_bytes: int
    token_bytes: float
    most_tokens: int | None  # None: all of them

    def of(self, tokens: int) -> int:
        kept = tokens if self.most_tokens is None else min(tokens, self.most_tokens)
        return self.fixed_bytes + round(kept * self.token_bytes)


def cache_size(cache: Any, kv_bits: int, chunk_tokens: int) -> CacheSize:
    """What `cache`, which holds something (evaluated or not), takes when prompts come in such chunks.

    A list of caches is told as one; none of them is ever quantised.
    """
    match cache:
        case CacheList():
            parts = [cache_size(part, 16, chunk_tokens) for part in cache.caches]
            bounds = {part.most_tokens for part in parts if part.token_bytes}
            return CacheSize(
                sum(part.fixed_bytes for part in parts),
                sum(part.token_bytes for part in parts),
                bounds.pop() if len(bounds) == 1 else None,
            )
        case KVCache(keys=mx.array()):
            return CacheSize(0, _token_bytes(cache, kv_bits if type(cache) is KVCache else 16), None)
        case RotatingKVCache(keys=mx.array()):
            # While a prompt is read it holds a chunk more than its window.
            return CacheSize(0, _token_bytes(cache, 16), cache.max_size + chunk_tokens)
        case ChunkedKVCache(keys=mx.array()):
            size = _token_bytes(cache, 16)  # it grows by its step once more when it is full
            return CacheSize(round(cache.step * size), size, cache.chunk_size + chunk_tokens)
        case ArraysCache():
            return CacheSize(cache.nbytes, 0.0, None)
        case _:
            return CacheSize(0, 0.0, None)


def _token_bytes(cache: Any, bits: int) -> float:
    """Bytes of one position of keys and values `[batch, heads, positions, size]`."""
    keys, values = cache.keys, cache.values
    num_values: int = sum(math.prod(a.shape[:2]) * a.shape[-1] for a in (keys, values))
    if bits == 16:
        return float(num_values * int(keys.dtype.size))
    return num_values * (bits / 8 + 2 * int(keys.dtype.size) / _group_size(cache))  # a scale and a bias each


# ---- growth ----


def capacity_for(stop: int, prompt_tokens: int, most_tokens: int) -> int:
    """Positions to have room for when a sequence that may have `most_tokens` goes on to `[0, stop)`."""
    return min(most_tokens, max(stop, prompt_tokens) + GROWTH_TOKENS)


def make_room(
    cache: list[Any], slots: Iterable[int], capacity: int, prompt_tokens: int, kv_bits: int
) -> None:
    """Let the caches at `slots` have `capacity` positions in all once they must grow.

    Plain caches that are about to be quantised get no more than they need for now. Those of sliding windows
    grow so when single tokens come, which is when the prompt, but for its last token, is in them.
    """
    for slot in slots:
        for part in _parts(cache[slot]):
            if type(part) is KVCache and part is cache[slot] and kv_bits < 16:
                part.step = 1
            elif isinstance(part, KVCache | QuantizedKVCache):
                part.step = max(1, capacity - part.offset)
            elif isinstance(part, RotatingKVCache):
                part.step = max(1, capacity - max(part.offset, prompt_tokens - 1))


def _parts(cache: Any) -> tuple[Any, ...]:
    return cache.caches if isinstance(cache, CacheList) else (cache,)


# ---- bits ----


def quantize_caches(cache: list[Any], slots: Iterable[int], bits: int, capacity: int) -> None:
    """Replace the plain caches at `slots` that hold something by quantised ones, in place.

    As mlx-lm does it: after every step what has been added is quantised. They grow to `capacity` positions
    with the next one. Raises RequestError when their heads have no size that mlx can group.
    """
    for slot in slots:
        plain = cache[slot]
        if type(plain) is KVCache and plain.keys is not None:
            cache[slot] = plain.to_quantized(group_size=_group_size(plain), bits=bits)
            cache[slot].step = max(1, capacity - plain.offset)


def _group_size(cache: KVCache) -> int:
    sizes = (cache.keys.shape[-1], cache.values.shape[-1])
    for group_size in GROUP_SIZES:
        if all(size % group_size == 0 for size in sizes):
            return group_size
    raise RequestError(
        f"a KV cache of {sizes[0]} values per head cannot be quantised (it takes multiples of 32):"
        " load the model with a 16-bit KV cache"
    )
