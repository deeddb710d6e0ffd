"""KV caches in fewer bits, as mlx-lm does it: after every step what has been added is quantised.

Only plain caches shrink. Those of sliding windows and states are bounded anyway, and mlx-lm has no quantised
form of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mlx_lm.models.cache import KVCache

from dnet_core.errors import RequestError

GROUP_SIZES = (64, 32)


def quantize_caches(cache: list[Any], slots: Iterable[int], bits: int) -> None:
    """Replace the plain caches at `slots` that hold something by quantised ones, in place.

    Raises RequestError when their heads have no size that mlx can group.
    """
    for slot in slots:
        plain = cache[slot]
        if type(plain) is KVCache and plain.keys is not None:
            cache[slot] = plain.to_quantized(group_size=_group_size(plain), bits=bits)


def _group_size(cache: KVCache) -> int:
    sizes = (cache.keys.shape[-1], cache.values.shape[-1])
    for group_size in GROUP_SIZES:
        if all(size % group_size == 0 for size in sizes):
            return group_size
    raise RequestError(
        f"a KV cache of {sizes[0]} values per head cannot be quantised (it takes multiples of 32):"
        " load the model with a 16-bit KV cache"
    )
