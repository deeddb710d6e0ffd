"""Well-known models by the shapes in their configs: what to choose from before anything is fetched.

Bytes and arithmetic are computed, so they are close, not exact; a model's own headers go before them.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnet_core.types.profiles import KVKind, KVProfile, LayerProfile, ModelProfile

_BITS = {"q4": 4.5, "q8": 8.5, "bf16": 16.0}  # with the scales and biases of groups of 64


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder as its `config.json` tells it; `intermediate` is that of one expert where there are some."""

    id: str
    model_type: str
    weight_format: str
    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_experts: int = 1
    experts_per_token: int = 1
    context_tokens: int = 32_768

    @property
    def quantization(self) -> str:
        """As people write it."""
        return f"{self.weight_format[1:]}bit" if self.weight_format.startswith("q") else self.weight_format


def _community(name: str) -> str:
    return f"mlx-community/{name}"


WELL_KNOWN = (
    Shape(_community("Qwen3-0.6B-4bit"), "qwen3", "q4", 28, 1024, 3072, 16, 8, 128, 151_936),
    Shape(_community("Qwen3-4B-4bit"), "qwen3", "q4", 36, 2560, 9728, 32, 8, 128, 151_936),
    Shape(_community("Qwen3-8B-4bit"), "qwen3", "q4", 36, 4096, 12_288, 32, 8, 128, 151_936),
    Shape(_community("gpt-oss-20b-MXFP4-Q4"), "gpt_oss", "q4", 24, 2880, 2880, 64, 8, 64, 201_088, 32, 4),
    Shape(_community("Qwen3-30B-A3B-4bit"), "qwen3_moe", "q4", 48, 2048, 768, 32, 4, 128, 151_936, 128, 8),
    Shape(_community("Llama-3.3-70B-Instruct-4bit"), "llama", "q4", 80, 8192, 28_672, 64, 8, 128, 128_256),
    Shape(_community("gpt-oss-120b-MXFP4-Q4"), "gpt_oss", "q4", 36, 2880, 2880, 64, 8, 64, 201_088, 128, 4),
    Shape(_community("Qwen3-235B-A22B-4bit"), "qwen3_moe", "q4", 94, 4096, 1536, 64, 4, 128, 151_936, 128, 8),
    Shape(_community("GLM-4.6-4bit"), "glm4_moe", "q4", 92, 5120, 1536, 96, 8, 128, 151_552, 160, 8),
    Shape(
        _community("Qwen3-Coder-480B-A35B-Instruct-4bit"),
        "qwen3_moe", "q4", 62, 6144, 2560, 96, 8, 128, 151_936, 160, 8,
    ),
)  # fmt: skip
"""A good one of every size, small to large."""


def published_profile(shape: Shape) -> ModelProfile:
    """The model as the solver sees it."""
    element_bytes = _BITS[shape.weight_format] / 8
    attention = shape.hidden * shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
    expert = 3 * shape.hidden * shape.intermediate
    weights = attention + expert * shape.num_experts
    active = attention + expert * shape.experts_per_token
    layer = LayerProfile(
        weight_bytes=int(weights * element_bytes),
        active_weight_bytes=int(active * element_bytes),
        flops_per_token=2 * active,
        attention_flops_per_token_pair=4 * shape.num_heads * shape.head_dim,
        weight_format=shape.weight_format,
        kv=KVProfile(KVKind.FULL, 4 * shape.num_kv_heads * shape.head_dim, 0, shape.context_tokens),
    )
    table = shape.hidden * shape.vocab_size
    return ModelProfile(
        model=shape.id,
        model_type=shape.model_type,
        layers=(layer,) * shape.num_layers,
        embedding_bytes=int(table * element_bytes),
        head_bytes=int(table * element_bytes),
        head_flops_per_token=2 * table,
        hidden_size=shape.hidden,
        vocab_size=shape.vocab_size,
        activation_bytes_per_token=2 * shape.hidden,
        context_tokens=shape.context_tokens,
        weight_format=shape.weight_format,
        head_weight_format=shape.weight_format,
    )


def find_well_known(model: str) -> Shape | None:
    return next((shape for shape in WELL_KNOWN if shape.id == model), None)
