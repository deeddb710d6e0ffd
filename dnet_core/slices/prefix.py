"""KV caches that outlive their sequence, and sequences that begin with what is in one.

    kept      [0, 900)      a conversation that has ended: its arrays hold these positions and no more
    begun     [0, 850) ...  another one whose first 850 tokens are the same: the array is shared until it is
                            written to, and its own from then on

mlx-lm's caches say whether they can go back; those of sliding windows that have turned and those of states
cannot, and are of use only to a sequence that begins with all of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.models.cache import CacheList, ChunkedKVCache, KVCache, QuantizedKVCache


def can_trim(cache: Any) -> bool:
    """Whether `cache` can go back to a position before its end."""
    if isinstance(cache, CacheList):
        return all(can_trim(part) for part in cache.caches)
    if isinstance(cache, ChunkedKVCache):
        return bool(cache.start_position == 0)  # else the beginning of the chunk it would go back to is gone
    return bool(cache.is_trimmable())


def compact(cache: Any) -> None:
    """Compute what `cache` holds, and give back the room behind it."""
    _cut(cache, mx.contiguous)  # a slice would hold all of what it is cut from
    mx.eval(cache.state)


def fork(cache: Any, drop_tokens: int) -> Any:
    """A cache like `cache`, which stays as it is, without its last `drop_tokens` positions.

    Nothing is copied before one of the two is written to.
    """
    forked = copy.deepcopy(cache)  # of arrays only the handle is copied
    if drop_tokens:
        assert can_trim(cache), "who cannot go back is not asked to"
        forked.trim(drop_tokens)
        _cut(forked, lambda array: array)
    return forked


def _cut(cache: Any, finish: Callable[[mx.array], mx.array]) -> None:
    """Let plain caches have arrays that end with their last position."""
    match cache:
        case CacheList():
            for part in cache.caches:
                _cut(part, finish)
        case KVCache(keys=mx.array()) | QuantizedKVCache(keys=tuple() | list()):
            cache.keys, cache.values = tree_map(
                lambda array: finish(array[..., : cache.offset, :]), (cache.keys, cache.values)
            )
        case _:
            pass  # bounded by their windows or sizes
