"""What was measured or read from headers: the facts from which a plan is made.

Units are in the names; nothing is optional. A measurement that failed is an error for that device, never
a zero here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class KVKind(StrEnum):
    """How a layer's cache grows with the context."""

    FULL = "full"  # MHA, GQA: keys and values of every position
    LATENT = "latent"  # MLA: one compressed vector of every position
    SLIDING = "sliding"  # keys and values of the last `window_tokens` positions
    STATE = "state"  # SSM, linear attention: a state of constant size


@dataclass(frozen=True, slots=True)
class KVProfile:
    """The cache of one layer at 16 bits: `min(tokens, window_tokens) * bytes_per_token + state_bytes`."""

    kind: KVKind
    bytes_per_token: int
    state_bytes: int
    window_tokens: int  # the model's context length unless the kind is SLIDING


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """One layer: exact weight bytes, and arithmetic per token (MoE by active experts)."""

    weight_bytes: int
    active_weight_bytes: int  # read per decoded token: all, but for MoE only the active experts
    flops_per_token: int  # without attention over the context
    attention_flops_per_token_pair: int  # times the number of cached positions
    weight_format: str  # "bf16", "f16", "f32", "q8", "q4", ...: the one that most of its bytes are in
    kv: KVProfile


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A model as the solver sees it, from `config.json` and safetensors headers alone."""

    model: str
    model_type: str
    layers: tuple[LayerProfile, ...]
    embedding_bytes: int  # on the head device
    head_bytes: int  # norm + LM head, on the tail device (tied: the table again)
    head_flops_per_token: int
    hidden_size: int
    vocab_size: int
    activation_bytes_per_token: int  # what one hop carries
    context_tokens: int  # the model's own limit
    weight_format: str  # the one that most bytes of all layers are in
    head_weight_format: str  # of the LM head (tied: of the table)

    @property
    def weight_formats(self) -> tuple[str, ...]:
        """All that a device has to be measured with, the main one first."""
        others = (layer.weight_format for layer in self.layers)
        return tuple(dict.fromkeys((self.weight_format, *others, self.head_weight_format)))

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def activation_scale(self) -> int:
        """Values of activations and caches take so many times 16 bits: 2 in a model of 32-bit floats."""
        return max(1, self.activation_bytes_per_token // (2 * self.hidden_size))

    @property
    def weight_bytes(self) -> int:
        return sum(layer.weight_bytes for layer in self.layers) + self.embedding_bytes + self.head_bytes


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One layer's matrices: attention `hidden x heads * head_dim`, a gated MLP `hidden x intermediate`."""

    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name in ("hidden", "intermediate", "num_heads", "num_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} heads cannot share {self.num_kv_heads} keys and values")


@dataclass(frozen=True, slots=True)
class Quantization:
    """How mlx packs a matrix: `bits` per weight, scales for every `group_size` of a row."""

    bits: int
    group_size: int
    mode: str  # "affine", "mxfp4", "mxfp8", "nvfp4"


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """What a model's matrices are stored in. `dtype` ("f32", "bf16", "f16") is that of activations too."""

    dtype: str
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("f32", "bf16", "f16"):
            raise ValueError(f"'{self.dtype}' is not a dtype that layers compute in")

    @property
    def name(self) -> str:
        """As `ModelProfile.weight_format` and `FormatSpeed.weight_format` have it."""
        return self.dtype if self.quantization is None else f"q{self.quantization.bits}"


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """What to measure on a device: layers of `shape` in each of `formats` (first the model's main one).

    Prefill is measured on a chunk of `chunk_tokens`, the disk by ranges of `disk_read_size_bytes`, which
    is how large a layer is.
    """

    shape: LayerShape
    formats: tuple[WeightFormat, ...]
    chunk_tokens: int
    disk_read_size_bytes: int

    def __post_init__(self) -> None:
        names = [weight_format.name for weight_format in self.formats]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a profile needs different weight formats, not [{', '.join(names)}]")
        if self.chunk_tokens < 2:
            raise ValueError(f"a prefill chunk has at least 2 tokens, not {self.chunk_tokens}")
        if self.disk_read_size_bytes < 1 or self.disk_read_size_bytes % 4096:
            raise ValueError(f"disk reads are multiples of 4,096 bytes, not {self.disk_read_size_bytes:,}")


@dataclass(frozen=True, slots=True)
class FormatSpeed:
    """Measured arithmetic of one weight format on one device."""

    weight_format: str
    decode_flops_per_s: float  # one token at a time (batch 1)
    decode_bytes_per_s: float  # weight bytes actually streamed from memory while doing so
    prefill_flops_per_s: float  # a chunk of `prefill_chunk_tokens`
    prefill_chunk_tokens: int  # what was measured: shorter than the model's chunk where that takes seconds


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """One device, measured in a moment when it does not serve."""

    peer: str
    chip: str
    os: str
    mlx_version: str
    backend: str  # "metal", "cpu", "cuda"
    memory_total_bytes: int
    memory_available_bytes: int
    memory_budget_bytes: int  # what weights, KV, buffers and workspace together may take
    memory_bytes_per_s: float
    disk_read_bytes_per_s: float  # uncached, in ranges of `disk_read_size_bytes`, several slices at once
    disk_read_size_bytes: int
    layer_overhead_s: float  # fixed cost of dispatching one layer for one token
    speeds: tuple[FormatSpeed, ...]
    fingerprint: str  # of the hardware and software; a profile with another one is stale
    measured_at_unix_s: float


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """The directed hop `source -> target` over its best address."""

    source: str
    target: str
    address: str
    medium: str  # "thunderbolt", "ethernet", "wifi", "loopback"
    latency_s: float  # one way, median over small messages on a warm stream
    bytes_per_s: float
