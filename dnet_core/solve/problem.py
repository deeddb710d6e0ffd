"""The placement problem in numbers: seconds and bytes per device and layer, nothing else.

Rows are devices in the order of the request (those excluded are gone), columns are layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dnet_core.errors import RequestError
from dnet_core.types.plan import Objective, SolveRequest
from dnet_core.types.profiles import (
    DeviceProfile,
    FormatSpeed,
    KVKind,
    KVProfile,
    LayerProfile,
    LinkProfile,
    ModelProfile,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

KV_STEP_TOKENS = 256
"""mlx-lm's KV cache grows in steps of this many tokens."""

QUANTISED_KV_OVERHEAD_BITS = 0.5
"""A 16-bit scale and a 16-bit bias for every 64 values."""

WORKSPACE_ACTIVATIONS = 32
"""Activations of a prefill chunk alive at once in a layer (norms, q, k, v, the wide MLP), in hidden sizes."""

WORKSPACE_SCORES = 3
"""Attention scores alive at once, of all heads, where they are not computed in one kernel: 1 to 1.5,
3 with attention sinks."""

WORKSPACE_BYTES = 4 << 20
"""For all that is small: a token's activations and logits, masks, memory that comes in whole pages."""

MOST_BYTES = 1 << 57
"""What sums of bytes may reach: beyond, 64 bits would not hold them."""

TOKEN_BYTES = 64
"""A sampled token on the wire, with its frame."""


@dataclass(frozen=True)
class Problem:
    """All the numbers of one request. Times in seconds, sizes in bytes.

    Arrays: `weight_bytes`, `kv_bytes` [layers] for the whole batch at the planned context; `compute_s`,
    `read_s`, `chunk_s` (a full prefill chunk), `last_chunk_s` [devices, layers]; `head_s` (norm and LM head
    for one token), `budget_bytes` [devices]; `hop_s` (one token's activation), `token_hop_s` (a sampled
    token), `last_chunk_hop_s` [devices, devices], infinite where there is no link.
    """

    request: SolveRequest
    peers: tuple[str, ...]
    weight_bytes: Ints
    kv_bytes: Ints
    compute_s: Floats
    read_s: Floats
    chunk_s: Floats
    last_chunk_s: Floats
    head_s: Floats
    budget_bytes: Ints
    workspace_bytes: int
    embedding_bytes: int
    head_bytes: int
    hop_s: Floats
    token_hop_s: Floats
    last_chunk_hop_s: Floats
    num_chunks: int
    prompt_tokens: int

    @property
    def num_devices(self) -> int:
        return len(self.peers)

    @property
    def num_layers(self) -> int:
        return len(self.weight_bytes)

    @property
    def answer_tokens(self) -> int:
        return self.request.answer_tokens

    @property
    def throughput(self) -> bool:
        return self.request.objective is Objective.THROUGHPUT

    @cached_property
    def uniform(self) -> bool:
        """Whether all layers are alike: then the mean layer of the MILP is exact."""
        rows = (self.weight_bytes[None], self.kv_bytes[None], self.compute_s, self.chunk_s, self.last_chunk_s)
        return all(bool(np.all(row == row[:, :1])) for row in rows)


def build(request: SolveRequest) -> Problem:
    """Turn profiles into numbers.

    Raises RequestError when no device is left, when a name in the request is unknown, when a device was not
    measured for a weight format of the model, or when caches would be beyond all measure.
    """
    model = request.model
    devices = tuple(d for d in request.devices if d.peer not in request.excluded)
    _check_names(request, {d.peer for d in devices})
    prompt_tokens = min(request.prompt_tokens, request.context_tokens)
    chunk = min(request.chunk_tokens, prompt_tokens)
    num_chunks = -(-prompt_tokens // chunk)
    last = prompt_tokens - (num_chunks - 1) * chunk
    weights = np.array([layer.weight_bytes for layer in model.layers], dtype=np.int64)
    position = prompt_tokens + request.answer_tokens // 2
    kv_bytes = [
        kv_layer_bytes(layer.kv, request.context_tokens, request.kv_bits, request.chunk_tokens)
        * model.activation_scale
        * request.batch
        for layer in model.layers
    ]
    if sum(kv_bytes) > MOST_BYTES:
        raise RequestError(
            f"a cache of {request.context_tokens:,} tokens for a batch of {request.batch:,} would take"
            f" {sum(kv_bytes) / 1e15:,.0f} petabytes: ask for less"
        )

    def decode(device: DeviceProfile) -> list[float]:
        return [_decode_layer_s(layer, device, request.batch, position) for layer in model.layers]

    def prefill(device: DeviceProfile, tokens: int) -> list[float]:
        return [_prefill_layer_s(layer, device, tokens, prompt_tokens) for layer in model.layers]

    return Problem(
        request=request,
        peers=tuple(d.peer for d in devices),
        weight_bytes=weights,
        kv_bytes=np.array(kv_bytes, dtype=np.int64),
        compute_s=np.array([decode(d) for d in devices]),
        read_s=weights[None, :] / np.array([[d.disk_read_bytes_per_s] for d in devices]),
        chunk_s=np.array([prefill(d, chunk) for d in devices]),
        last_chunk_s=np.array([prefill(d, last) for d in devices]),
        head_s=np.array([_head_s(model, d, request.batch) for d in devices]),
        budget_bytes=np.array([d.memory_budget_bytes for d in devices], dtype=np.int64),
        workspace_bytes=max(
            workspace_bytes(model, request.chunk_tokens, request.context_tokens, request.kv_bits, d.backend)
            for d in devices
        ),
        embedding_bytes=model.embedding_bytes,
        head_bytes=model.head_bytes + 4 * model.vocab_size * request.batch,  # float32 logits
        hop_s=_hops(devices, request.links, request.batch * model.activation_bytes_per_token),
        token_hop_s=_hops(devices, request.links, request.batch * TOKEN_BYTES),
        last_chunk_hop_s=_hops(devices, request.links, last * model.activation_bytes_per_token),
        num_chunks=num_chunks,
        prompt_tokens=prompt_tokens,
    )


def workspace_bytes(
    model: ModelProfile, chunk_tokens: int, context_tokens: int, kv_bits: int, backend: str
) -> int:
    """What computing a chunk takes beside weights and caches, at the end of a prompt that fills the context.

    Metal has attention over 16-bit caches in one kernel; elsewhere the scores of all heads are in memory.
    """
    activations = WORKSPACE_ACTIVATIONS * chunk_tokens * model.activation_bytes_per_token
    scores = 0
    if backend != "metal" or kv_bits < 16:
        head_size = 128 if model.hidden_size >= 4096 else 64
        scores = max(
            layer.attention_flops_per_token_pair
            // (4 * head_size)
            * min(context_tokens, layer.kv.window_tokens)
            for layer in model.layers
        )
    element_bytes = 2 * model.activation_scale
    return WORKSPACE_BYTES + activations + round(WORKSPACE_SCORES * scores * chunk_tokens * element_bytes)


def kv_layer_bytes(kv: KVProfile, context_tokens: int, kv_bits: int, chunk_tokens: int) -> int:
    """Bytes of one layer's cache for one sequence of `context_tokens`, for values of 16 bits.

    Only full caches can be quantised in mlx-lm; rotating ones, latent vectors and states stay as they are.
    While a prompt is read a rotating cache holds a chunk more than its window.
    """
    window = kv.window_tokens + (chunk_tokens if kv.kind is KVKind.SLIDING else 0)
    tokens = min(-(-context_tokens // KV_STEP_TOKENS) * KV_STEP_TOKENS, window)
    size = tokens * kv.bytes_per_token
    if kv.kind is KVKind.FULL and kv_bits < 16:
        size = round(size * (kv_bits + QUANTISED_KV_OVERHEAD_BITS) / 16)
    return size + kv.state_bytes


def _check_names(request: SolveRequest, usable: set[str]) -> None:
    if not usable:
        raise RequestError("no device is left to plan with: include at least one")
    named = {pin.peer for pin in request.pins}
    if request.head_device is not None:
        named.add(request.head_device)
    for peer in sorted(named - usable):
        raise RequestError(f"'{peer}' is pinned or required, but it is excluded or was not found")


def _speed(device: DeviceProfile, weight_format: str) -> FormatSpeed:
    for speed in device.speeds:
        if speed.weight_format == weight_format:
            return speed
    raise RequestError(f"{device.peer} was not measured with {weight_format} weights: profile it again")


def _decode_layer_s(layer: LayerProfile, device: DeviceProfile, batch: int, position: int) -> float:
    """Seconds of one layer for a token of each of `batch` sequences: the slower of memory and arithmetic."""
    speed = _speed(device, layer.weight_format)
    weight_bytes = min(layer.active_weight_bytes * batch, layer.weight_bytes)
    matrices_s = max(
        weight_bytes / speed.decode_bytes_per_s, _token_matrices_s(layer.flops_per_token, speed, batch)
    )
    cached = min(position, layer.kv.window_tokens)
    attention_s = batch * max(
        (cached * layer.kv.bytes_per_token + layer.kv.state_bytes) / device.memory_bytes_per_s,
        cached * layer.attention_flops_per_token_pair / speed.prefill_flops_per_s,
    )
    return matrices_s + attention_s + device.layer_overhead_s


def _prefill_layer_s(layer: LayerProfile, device: DeviceProfile, tokens: int, prompt_tokens: int) -> float:
    """Seconds of one layer for a chunk of `tokens`; attention over half the prompt, which is its mean."""
    speed = _speed(device, layer.weight_format)
    pairs = tokens * min(prompt_tokens / 2, layer.kv.window_tokens)
    flops = tokens * layer.flops_per_token + pairs * layer.attention_flops_per_token_pair
    weight_bytes = min(layer.active_weight_bytes * tokens, layer.weight_bytes)
    return (
        max(flops / speed.prefill_flops_per_s, weight_bytes / speed.decode_bytes_per_s)
        + device.layer_overhead_s
    )


def _head_s(model: ModelProfile, device: DeviceProfile, batch: int) -> float:
    speed = _speed(device, model.head_weight_format)
    return max(
        model.head_bytes / speed.decode_bytes_per_s,
        _token_matrices_s(model.head_flops_per_token, speed, batch),
    )


def _token_matrices_s(flops_per_token: int, speed: FormatSpeed, batch: int) -> float:
    """Arithmetic for one token of each of `batch` sequences: at least as long as for one.

    One sequence was measured as such; several together run at the rate of a chunk.
    """
    one_s = flops_per_token / speed.decode_flops_per_s
    return one_s if batch == 1 else max(one_s, batch * flops_per_token / speed.prefill_flops_per_s)


def _hops(devices: tuple[DeviceProfile, ...], links: tuple[LinkProfile, ...], size_bytes: int) -> Floats:
    """Seconds to hand `size_bytes` from row to column, by the fastest link; infinite without one."""
    index = {d.peer: i for i, d in enumerate(devices)}
    hops = np.full((len(devices), len(devices)), np.inf)
    np.fill_diagonal(hops, 0.0)
    for link in links:
        if link.source in index and link.target in index and link.source != link.target:
            row, column = index[link.source], index[link.target]
            hops[row, column] = min(hops[row, column], link.latency_s + size_bytes / link.bytes_per_s)
    return hops
