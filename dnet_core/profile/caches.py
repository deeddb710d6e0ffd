"""How each layer's cache grows, exactly as mlx-lm keeps it, from tensor shapes and `config.json`.

    k_proj, v_proj         rows of both, for every position                   FULL
    ... in a window        the same, for the last positions only              SLIDING
    kv_a_proj_with_mqa     its rows: the latent and the rotary part           LATENT
    conv1d, A_log, ...     a state that does not grow                         STATE

Tests compare every architecture's numbers with the caches of mlx-lm's own models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dnet_core.errors import UnsupportedModel
from dnet_core.profile.tensors import Module, number
from dnet_core.types.profiles import KVKind, KVProfile

_ELEMENT_BYTES = 2  # caches are planned at 16 bits; fewer bits are the plan's choice
_STATE_BYTES = 4  # recurrent states that mlx-lm keeps in float32

_KEYS = ("k_proj", "c_k", "attn_key")
_VALUES = ("v_proj", "c_v", "attn_value")
_FUSED = ("qkv_proj", "wqkv", "Wqkv", "c_attn", "query_key_value", "W_pack", "q_k_v_proj")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads", "num_query_heads")
_KV_HEADS = ("num_key_value_heads", "n_kv_heads", "num_kv_heads")
_OUTPUTS = ("o_proj", "out_proj", "dense", "wo", "c_proj", "attn_resid")
_WINDOWS = ("sliding_window", "sliding_window_size", "window_size", "attention_window_size")
# Parts of a layer that hold a state instead of keys and values are known by one of these.
_STATE_MARKS = ("A_log", "rg_lru", "r_k", "key_conv", "conv.conv")

# Of these, mlx-lm expands the latent before it caches keys and values.
_EXPANDED_LATENT = {"deepseek_v2", "minicpm3", "youtu_llm"}
# Of these, every layer keeps its own window as `layer_types` say; the number is the distance of full layers
# where the config has no list (0: all are full).
_LAYER_TYPES = {
    "llama": 0,
    "mistral": 0,
    "ministral3": 0,
    "afmoe": 0,
    "exaone_moe": 0,
    "laguna": 0,
    "mellum": 0,
    "gear": 0,
    "gemma3n": 0,
    "gpt_oss": 2,
    "step3p5": 2,
    "olmo3": 4,
    "muse_glimmer": 4,
    "spark2_5": 4,
    "gemma4": 5,
}
# Of these, every n-th layer is full, whatever `layer_types` say.
_PATTERNS = {"cohere2": 4, "gemma3": 6, "plamo3": 8}
# Linear attention that keeps a matrix per head, with the bytes of its elements.
_LIGHTNING = {"bailing_hybrid": 4, "bailing_moe_linear": 2}
# Their caches are no list of one per layer.
_UNKNOWN = {
    "iquestloopcoder": "it runs its layers in loops",
    "nanbeige": "it runs its layers in loops",
    "deepseek_v41": "its cache has a form of its own",
    "muse_spark": "its cache has a form of its own",
}


class CacheRules:
    """The caches of one model's layers; `config` is the text model's, `types` all names of its type."""

    def __init__(
        self, model: str, model_type: str, config: Mapping[str, Any], num_layers: int, context: int
    ) -> None:
        inner = str(config.get("model_type", model_type))
        self._types = {model_type, inner, model_type.removesuffix("_text"), inner.removesuffix("_text")}
        self._config = config
        self._num_layers = num_layers
        self._context = context
        for name in self._types & set(_UNKNOWN):
            raise UnsupportedModel(model, _UNKNOWN[name])

    def cache(self, layer: int, modules: tuple[Module, ...]) -> KVProfile:
        """The cache of `layer`; a layer without attention or state has one of zero bytes."""
        stateful = {m.path.split(".")[0] for m in modules if any(mark in m.path for mark in _STATE_MARKS)}
        attention = [m for m in modules if m.path.split(".")[0] not in stateful]
        if self._types & set(_LIGHTNING) and {"g_proj", "query_key_value"} <= set(map(_last, attention)):
            stateful, attention = {"attention"}, []
        kind, elements = self._token_elements(layer, attention)
        state_bytes = self._state_bytes([m for m in modules if m.path.split(".")[0] in stateful])
        if "baichuan_m1" in self._types:  # a short convolution over keys and values: the last position's
            state_bytes += elements * _ELEMENT_BYTES
        if self._shares_cache(layer):
            elements = 0
        window = self._window(layer)
        if elements and window is not None:
            kind = KVKind.SLIDING
        if state_bytes and not elements:
            kind = KVKind.STATE
        tokens = window if kind is KVKind.SLIDING and window is not None else self._context
        return KVProfile(kind, elements * _ELEMENT_BYTES, state_bytes, tokens)

    def attention_flops(self, modules: tuple[Module, ...], kv: KVProfile) -> int:
        """FLOPs per query token and cached position: scores and weighted sum, over all heads."""
        if kv.bytes_per_token == 0:
            return 0
        if kv.kind is KVKind.LATENT:
            heads = int(number(self._config, _HEADS) or 1)
            latents = [m.rows for m in modules if m.path.endswith("kv_a_layernorm")]
            rotary = int(number(self._config, ("qk_rope_head_dim",)) or 0)
            return sum(2 * heads * (2 * latent + rotary) for latent in latents)
        outputs = [m.columns for m in modules if _last(m) in _OUTPUTS and "mlp" not in m.path]
        return 4 * max(outputs, default=0)

    def _token_elements(self, layer: int, modules: list[Module]) -> tuple[KVKind, int]:
        """Elements that one position adds to the cache."""
        latent = [m.rows for m in modules if _last(m) == "kv_a_proj_with_mqa"]
        if latent and not self._types & _EXPANDED_LATENT:
            # The sparse attention's indexer keeps its keys, and mlx-lm keeps them twice.
            index = [2 * m.rows for m in modules if m.path.endswith("indexer.wk")]
            return KVKind.LATENT, sum(latent) + sum(index)
        if latent:
            dims = [number(self._config, (f"{d}_head_dim",)) or 0 for d in ("qk_nope", "qk_rope", "v")]
            return KVKind.FULL, int(sum(dims) * (number(self._config, _HEADS) or 1))
        keys = [m.rows for m in modules if _last(m) in _KEYS]
        values = [m.rows for m in modules if _last(m) in _VALUES] or keys  # some take the keys as values
        index = [m.rows for m in modules if _last(m) == "index_k_proj"]
        fused = [self._fused_elements(layer, m) for m in modules if _last(m) in _FUSED]
        return KVKind.FULL, sum(keys) + sum(values) + sum(index) + sum(fused)

    def _fused_elements(self, layer: int, module: Module) -> int:
        """Keys' and values' share of the rows of a projection of queries, keys and values together."""
        rows = max(module.shape) if _last(module) == "c_attn" else module.rows  # GPT-2's is transposed
        heads = int(number(self._config, _HEADS, layer) or 1)
        kv_heads = number(self._config, _KV_HEADS, layer)
        attention = self._config.get("attn_config")
        if kv_heads is None and isinstance(attention, dict):
            kv_heads = number(attention, ("kv_n_heads",))
        if kv_heads is None:
            multi_query = "gpt_bigcode" in self._types and self._config.get("multi_query", True)
            kv_heads = 1 if multi_query else heads
        if self._types & {"gpt2", "gpt_neox", "qwen", "phixtral"}:  # mlx-lm knows no groups here
            kv_heads = heads
        return int(rows * 2 * kv_heads // (heads + 2 * kv_heads))

    def _state_bytes(self, modules: list[Module]) -> int:
        """Bytes of the layer's state: the last inputs of its convolutions, and its recurrence."""
        convolutions = [m for m in modules if "conv" in _last(m) and len(m.shape) == 3]
        # `[channels, width, 1]`, or `[channels, 1, width]` as torch has it
        conv_bytes = sum(m.rows * (max(m.shape[1:]) - 1) for m in convolutions) * _ELEMENT_BYTES
        return conv_bytes + self._recurrence_bytes({_last(m): m for m in modules}, convolutions)

    def _recurrence_bytes(self, named: Mapping[str, Module], convolutions: list[Module]) -> int:
        config = self._config
        decay = named.get("A_log")
        if decay is None:
            return self._other_recurrence_bytes(named, convolutions)
        if len(decay.shape) == 2 and min(decay.shape) > 1:  # Mamba: `[channels, state]`
            return decay.num_elements * _ELEMENT_BYTES
        if (values := number(config, ("linear_num_value_heads",))) is not None:  # gated delta net
            sizes = [number(config, (f"linear_{part}_head_dim",)) or 0 for part in ("key", "value")]
            return int(values * math.prod(sizes)) * _STATE_BYTES
        heads = decay.num_elements
        linear = config.get("linear_attn_config")
        if isinstance(linear, dict) or {"k_proj", "v_proj"} <= set(named):  # Kimi's delta attention
            size = number(linear, ("head_dim",)) if isinstance(linear, dict) else None
            size = size if size is not None else named["k_proj"].rows / heads
            return int(heads * size * size) * _STATE_BYTES
        state = number(config, ("state_size", "ssm_state_size", "mamba_d_state")) or 0  # Mamba 2
        channels = named["out_proj"].columns if "out_proj" in named else 0
        return int(channels * state) * _STATE_BYTES

    def _other_recurrence_bytes(self, named: Mapping[str, Module], convolutions: list[Module]) -> int:
        config = self._config
        if "r_k" in named:  # RWKV 7: a matrix per head, and the last input of both halves of the layer
            heads, size = named["r_k"].shape
            return (heads * size * size + 2 * named["k_proj"].columns) * _ELEMENT_BYTES
        if any(name.startswith(("input_gate", "recurrent_gate")) for name in named):  # RG-LRU
            return sum(m.rows for m in convolutions) * _ELEMENT_BYTES
        for name, element_bytes in _LIGHTNING.items():
            if name in self._types and "query_key_value" in named:
                heads = int(number(config, _HEADS) or 1)
                size = named["query_key_value"].rows // (3 * heads)
                return heads * size * size * element_bytes
        return 0

    def _shares_cache(self, layer: int) -> bool:
        """Whether `layer` reads the keys and values of an earlier one."""
        shared = number(self._config, ("num_kv_shared_layers", "num_kv_reuse_layers"))
        if shared is None:
            shared = 20 if "gemma4" in self._types else 0
        return layer >= self._num_layers - int(shared) and bool(self._types & {"gemma3n", "gemma4", "afm7"})

    def _window(self, layer: int) -> int | None:
        """The window of `layer` in tokens, or None where it keeps all positions."""
        if "llama4" in self._types and isinstance(self._config.get("attention_chunk_size"), int):
            chunk: int = self._config["attention_chunk_size"]
            # Only the multimodal wrapper keeps chunks; mlx-lm's text model alone keeps all.
            return chunk if (layer + 1) % 4 and "text_config" in self._config else None
        window = number(self._config, _WINDOWS)
        return int(window) if window and self._slides(layer) else None

    def _slides(self, layer: int) -> bool:
        config, types = self._config, self._types
        layer_types = config.get("layer_types")
        for name in types & set(_LAYER_TYPES):
            if isinstance(layer_types, list) and layer < len(layer_types):
                return bool(layer_types[layer] == "sliding_attention")
            distance = int(number(config, ("sliding_window_pattern",)) or _LAYER_TYPES[name])
            return distance > 0 and (layer + 1) % distance != 0
        for name in types & set(_PATTERNS):
            return (layer + 1) % int(number(config, ("sliding_window_pattern",)) or _PATTERNS[name]) != 0
        pattern = config.get("sliding_window_pattern")
        if "exaone4" in types and isinstance(pattern, str) and pattern:
            return pattern[layer % len(pattern)] == "L"
        if "mimo_v2_flash" in types:
            return number(config, ("hybrid_layer_pattern",), layer) == 1
        if "baichuan_m1" in types:
            return layer in (config.get("sliding_window_layers") or [])
        return "recurrent_gemma" in types


def _last(module: Module) -> str:
    return module.path.rsplit(".", 1)[-1]
