"""How fast MLX runs a model's layers on this device, measured in about a second on layers made up for it.

    tiny layers              time per layer = `layer_overhead_s`: dispatch, norms, rotary, cache
    layers of the model's    (time - overhead) per layer, their weights never in the last-level cache
      shape, one token         -> decode: bytes and FLOPs per second
      shape, a chunk           -> prefill: FLOPs per second
    one large sum            memory bandwidth

The layers are mlx-lm's own; only their weights are invented. Where a format is slow (16-bit floats on an x86
CPU), a small layer tells how slow, and layer and chunk shrink until they fit the time.

All of this runs on the shard's one compute thread, while no model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import KVCache
from mlx_lm.models.llama import ModelArgs, TransformerBlock

from dnet_core.errors import ProfileError
from dnet_core.types.profiles import FormatSpeed, LayerShape, ProfileRequest, WeightFormat

BUDGET_S = 1.5
"""Time for all measurements of one device by default."""

_POOL_BYTES = 192 << 20
"""Weights that are read in turn: more than the last-level cache of any Mac (96 MB) can keep."""

_MAX_LAYER_BYTES = 256 << 20
"""Wider layers are measured narrower: rates do not change any more, memory for them may be short."""

_CHAIN_LAYERS = 16
"""Layers in one evaluation: its fixed cost is then small, as it is for a window of a real model."""

_MIN_SAMPLES, _MAX_SAMPLES = 3, 15
_STABLE = 0.03
"""Measuring stops early when the middle half of the samples lies within this share of the median."""

_DTYPES = {"f32": mx.float32, "bf16": mx.bfloat16, "f16": mx.float16}
_TINY_WIDTH = 64

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What was measured; `speeds` in the order of the request's formats."""

    memory_bytes_per_s: float
    layer_overhead_s: float
    speeds: tuple[FormatSpeed, ...]


def measure_arithmetic(
    device: str, request: ProfileRequest, *, budget_s: float = BUDGET_S, clock: Clock = time.perf_counter
) -> Arithmetic:
    """Measure `request`'s formats in about `budget_s` seconds of `clock`, evenly shared.

    Blocks; call it on the compute thread. Raises ProfileError naming `device` when MLX fails or runs out of
    memory, or when a time that was measured makes no sense.
    """
    share_s = budget_s / (len(request.formats) + 1)
    try:
        memory = _memory_bytes_per_s(share_s / 2, clock)
        overhead_s = _layer_overhead_s(request.formats[0], share_s / 2, clock)
        speeds = tuple(
            _format_speed(request, weight_format, overhead_s, share_s, clock)
            for weight_format in request.formats
        )
    except (RuntimeError, ValueError, MemoryError) as error:  # how MLX tells of memory, kernels and shapes
        raise ProfileError(device, "speed of its matrices", str(error)) from error
    finally:
        mx.clear_cache()
    return Arithmetic(memory, overhead_s, speeds)


def _memory_bytes_per_s(share_s: float, clock: Clock) -> float:
    """The rate of the simplest pass over more memory than any cache holds: its sum."""
    data = mx.ones((_POOL_BYTES // 4,), mx.float32)
    mx.eval(data)
    seconds = _median_s(lambda: mx.eval(data.sum()), share_s, clock)
    return data.nbytes / seconds


def _layer_overhead_s(weight_format: WeightFormat, share_s: float, clock: Clock) -> float:
    """Seconds per layer and token when the matrices are almost nothing."""
    layers = _Layers(_tiny_shape(weight_format), weight_format, _CHAIN_LAYERS)
    return _median_s(lambda: layers.run(_CHAIN_LAYERS, 1), share_s, clock) / _CHAIN_LAYERS


def _format_speed(
    request: ProfileRequest, weight_format: WeightFormat, overhead_s: float, share_s: float, clock: Clock
) -> FormatSpeed:
    """Decode gets a third of the time, prefill another, the rest is for making weights."""
    part_s = share_s / 3
    flops_per_s = _probe_flops_per_s(weight_format, clock)
    # One layer may take as long as one of the fewest samples, of which the first is not counted.
    affordable_flops = flops_per_s * part_s / (_MIN_SAMPLES + 1)
    shape = _shrink(request.shape, weight_format, affordable_flops)
    layer_s = _matrix_flops(shape) / flops_per_s + overhead_s
    chain = max(1, min(_CHAIN_LAYERS, int(part_s / (_MIN_SAMPLES + 1) / layer_s)))
    layer_bytes = _matrix_bytes(shape, weight_format)
    samples_in_time = int(part_s / (chain * layer_s)) + 1
    visits = chain * (min(samples_in_time, _MAX_SAMPLES) + 1)
    num_layers = min(_POOL_BYTES // layer_bytes + 1, visits)
    layers = _Layers(shape, weight_format, num_layers)
    decode_s = _median_s(lambda: layers.run(chain, 1), part_s, clock) / chain
    matrices_s = _without(overhead_s, decode_s)
    tokens, prefill_s = _prefill_s(layers, request.chunk_tokens, part_s, clock)
    return FormatSpeed(
        weight_format=weight_format.name,
        decode_flops_per_s=_matrix_flops(shape) / matrices_s,
        decode_bytes_per_s=layers.layer_bytes / matrices_s,
        prefill_flops_per_s=_chunk_flops(shape, tokens) / _without(overhead_s, prefill_s),
        prefill_chunk_tokens=tokens,
    )


def _prefill_s(layers: _Layers, chunk_tokens: int, share_s: float, clock: Clock) -> tuple[int, float]:
    """The longest chunk that fits the time, at most `chunk_tokens`, and seconds per layer for it."""
    tokens = min(8, chunk_tokens)
    layers.run(1, tokens)
    began = clock()
    layers.run(1, tokens)
    seconds = clock() - began
    while 2 * tokens <= chunk_tokens and 2 * seconds * (_MIN_SAMPLES + 1) <= share_s:
        tokens, seconds = 2 * tokens, 2 * seconds
    if tokens > chunk_tokens // 2:
        tokens = chunk_tokens
    return tokens, _median_s(lambda: layers.run(1, tokens), share_s, clock)


def _probe_flops_per_s(weight_format: WeightFormat, clock: Clock) -> float:
    """A rough rate from one small layer, so that no format can take seconds unawares."""
    shape = LayerShape(4 * _TINY_WIDTH, 4 * _TINY_WIDTH, 4, 4, _TINY_WIDTH)
    shape = _aligned(shape, weight_format)
    layers = _Layers(shape, weight_format, 1)
    return _matrix_flops(shape) / _median_s(lambda: layers.run(1, 1), 0.0, clock)


def _without(overhead_s: float, seconds: float) -> float:
    """`seconds` less the overhead, but a tenth at least: of tiny layers the difference is mostly noise."""
    return max(seconds - overhead_s, seconds / 10)


def _median_s(work: Callable[[], None], share_s: float, clock: Clock) -> float:
    """The median time of `work`, run once to warm up, then until it is stable or `share_s` is over."""
    began = clock()
    work()
    samples: list[float] = []
    while len(samples) < _MAX_SAMPLES:
        start = clock()
        work()
        stop = clock()
        samples.append(stop - start)
        if len(samples) < _MIN_SAMPLES:
            continue
        ordered = sorted(samples)
        quarter = len(ordered) // 4
        spread = ordered[-1 - quarter] - ordered[quarter]
        is_stable = len(samples) >= 2 * _MIN_SAMPLES and spread <= _STABLE * median(ordered)
        if is_stable or stop - began >= share_s:
            break
    value = median(samples)
    if value <= 0:
        raise ValueError("the clock did not advance during a measurement")
    return value


class _Layers:
    """Layers of one shape with invented weights, run in turn: each evaluation goes on after the last."""

    def __init__(self, shape: LayerShape, weight_format: WeightFormat, count: int) -> None:
        self._dtype = _DTYPES[weight_format.dtype]
        self._hidden = shape.hidden
        self._layers = [_make_layer(shape, weight_format) for _ in range(count)]
        self._caches = [KVCache() for _ in range(count)]
        self._next = 0
        self.layer_bytes = sum(array.nbytes for _, array in tree_flatten(self._layers[0].parameters()))

    def run(self, num_layers: int, tokens: int) -> None:
        """Evaluate the next `num_layers` layers on `tokens` tokens, as at the start of a session."""
        x = mx.ones((1, tokens, self._hidden), self._dtype)
        for _ in range(num_layers):
            layer, cache = self._layers[self._next], self._caches[self._next]
            cache.offset = 0  # its memory stays, as a session's does from token to token
            self._next = (self._next + 1) % len(self._layers)
            x = layer(x, "causal" if tokens > 1 else None, cache)
        mx.eval(x)


def _make_layer(shape: LayerShape, weight_format: WeightFormat) -> nn.Module:
    arguments = ModelArgs(
        model_type="llama",
        hidden_size=shape.hidden,
        num_hidden_layers=1,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=1e-5,
        vocab_size=1,
    )
    layer: nn.Module = TransformerBlock(arguments)
    layer.set_dtype(_DTYPES[weight_format.dtype])
    if (packed := weight_format.quantization) is not None:
        nn.quantize(layer, packed.group_size, packed.bits, mode=packed.mode)
    # All of the above is lazy: neither random numbers nor their quantisation are ever computed.
    weights = [(name, _invent(array)) for name, array in tree_flatten(layer.parameters())]
    layer.update(tree_unflatten(weights))
    mx.eval(layer.parameters())
    return layer


def _invent(like: mx.array) -> mx.array:
    """An array like `like`: one random row repeated, which is much cheaper to make than all random."""
    columns = (like.shape[-1],)
    if like.dtype == mx.uint32:
        row = mx.random.randint(0, 2**32 - 1, columns, mx.uint32)
    elif like.dtype == mx.uint8:  # exponents of shared scales: about 1
        row = mx.random.randint(120, 124, columns).astype(mx.uint8)
    else:
        row = (0.02 * mx.random.normal(columns)).astype(like.dtype)
    return mx.contiguous(mx.broadcast_to(row, like.shape))


def _tiny_shape(weight_format: WeightFormat) -> LayerShape:
    return _aligned(LayerShape(_TINY_WIDTH, _TINY_WIDTH, 1, 1, _TINY_WIDTH), weight_format)


def _aligned(shape: LayerShape, weight_format: WeightFormat) -> LayerShape:
    """`shape` with its widths rounded up so that groups of quantised weights fill every row."""
    packed = weight_format.quantization
    step = max(32, packed.group_size) if packed is not None else 1
    heads_step = shape.num_heads
    while heads_step * shape.head_dim % step:  # o_proj has rows of all heads
        heads_step += shape.num_kv_heads
    return LayerShape(
        hidden=-(-shape.hidden // step) * step,
        intermediate=-(-shape.intermediate // step) * step,
        num_heads=heads_step,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
    )


def _shrink(shape: LayerShape, weight_format: WeightFormat, affordable_flops: float) -> LayerShape:
    """`shape`, halved in every width until a token costs at most `affordable_flops` and its bytes fit."""
    shape = _aligned(shape, weight_format)
    while shape.hidden > _TINY_WIDTH and (
        _matrix_flops(shape) > affordable_flops or _matrix_bytes(shape, weight_format) > _MAX_LAYER_BYTES
    ):
        kv_heads = max(1, shape.num_kv_heads // 2)
        heads = max(kv_heads, shape.num_heads // 2 // kv_heads * kv_heads)
        half = LayerShape(shape.hidden // 2, max(1, shape.intermediate // 2), heads, kv_heads, shape.head_dim)
        if _aligned(half, weight_format) == shape:
            break
        shape = _aligned(half, weight_format)
    return shape


def _matrix_elements(shape: LayerShape) -> int:
    attention = shape.hidden * shape.head_dim * 2 * (shape.num_heads + shape.num_kv_heads)
    return attention + 3 * shape.hidden * shape.intermediate


def _matrix_flops(shape: LayerShape) -> int:
    """One token through the matrices of one layer."""
    return 2 * _matrix_elements(shape)


def _chunk_flops(shape: LayerShape, tokens: int) -> int:
    """A chunk through one layer: its matrices, and attention of every token over the chunk."""
    attention = 4 * shape.num_heads * shape.head_dim * tokens * tokens
    return tokens * _matrix_flops(shape) + attention


def _matrix_bytes(shape: LayerShape, weight_format: WeightFormat) -> int:
    """About the bytes of one layer's matrices."""
    packed = weight_format.quantization
    if packed is None:
        return _matrix_elements(shape) * _DTYPES[weight_format.dtype].size
    return _matrix_elements(shape) * packed.bits // 8 + _matrix_elements(shape) * 4 // packed.group_size
