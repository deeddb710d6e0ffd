"""A model as the solver sees it, from `config.json` and safetensors headers alone; no weight is read.

Bytes are exact: they are the tensors' own. Arithmetic is 2 FLOPs per weight and token, and of a layer with
experts only those that a token is sent to. Attention over the context is counted apart, per cached position.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from dnet_core.errors import UnsupportedModel
from dnet_core.profile.caches import CacheRules
from dnet_core.profile.tensors import Module, Parts, number, split_parts, text_config, weight_format
from dnet_core.types.checkpoints import Checkpoint
from dnet_core.types.profiles import LayerProfile, ModelProfile

UNSTATED_CONTEXT_TOKENS = 32_768
"""The context length of a model whose config states none (recurrent models have no limit of their own)."""

_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "block_size",
    "seq_length",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "max_context_length",
    "model_max_length",
)
_VOCABULARY = ("vocab_size", "num_vocab", "padded_vocab_size")
_EXPERTS_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
    "num_selected_experts",
)
_EXPERT = re.compile(r"(^|\.)(experts|switch_[a-z_]*|experts_[a-z_]*)\.|\.experts\.\d+\.")
_NUMBERED_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_AT_HEAD = re.compile(r"unembed|embed_out|norm")
_AT_EMBEDDING = re.compile(r"embed|wte|wpe|embd|per_layer|altup_projections")
_NO_TABLE = re.compile(r"wpe|per_layer|position|embedders")


def profile_model(checkpoint: Checkpoint) -> ModelProfile:
    """Profile `checkpoint`.

    Raises UnsupportedModel where its layers or their caches have a form that is not known, LoadError where
    tensors or config values are missing.
    """
    config = text_config(checkpoint.config)
    parts = split_parts(checkpoint)
    context = int(number(config, _CONTEXT) or UNSTATED_CONTEXT_TOKENS)
    rules = CacheRules(checkpoint.model, checkpoint.model_type, config, len(parts.layers), context)
    try:
        layers = tuple(_layer(i, modules, rules, config) for i, modules in enumerate(parts.layers))
    except ArithmeticError as error:  # heads or patterns of 0, counts of hundreds of digits
        raise UnsupportedModel(
            checkpoint.model, f"its config.json has numbers that no model can have ({error})"
        ) from error
    if not any(layer.kv.bytes_per_token or layer.kv.state_bytes for layer in layers):
        raise UnsupportedModel(checkpoint.model, f"the attention of '{checkpoint.model_type}' is not known")
    table = _table(checkpoint, parts, config)
    at_embedding = [m for m in parts.rest if _is_at_embedding(m)]
    at_head = [m for m in parts.rest if not _is_at_embedding(m)]
    own_head = [m for m in at_head if m.shape == table.shape]
    if own_head and config.get("tie_word_embeddings") is True:  # mlx-lm drops a head that is tied
        at_head = [m for m in at_head if m not in own_head]
        own_head = []
    tied_bytes = 0 if own_head else table.num_bytes
    return ModelProfile(
        model=checkpoint.model,
        model_type=checkpoint.model_type,
        layers=layers,
        embedding_bytes=sum(m.num_bytes for m in at_embedding),
        head_bytes=sum(m.num_bytes for m in at_head) + tied_bytes,
        head_flops_per_token=2 * table.num_elements,
        hidden_size=table.columns,
        vocab_size=table.rows,
        activation_bytes_per_token=table.columns * _activation_element_bytes(table, parts),
        context_tokens=context,
        weight_format=weight_format(chain.from_iterable(parts.layers)),
        head_weight_format=weight_format(own_head or (table,)),
    )


def _layer(
    index: int, modules: tuple[Module, ...], rules: CacheRules, config: Mapping[str, Any]
) -> LayerProfile:
    weight_bytes = sum(m.num_bytes for m in modules)
    elements = sum(m.num_elements for m in modules if len(m.shape) > 1)
    experts = [m for m in modules if _EXPERT.search(m.path) and len(m.shape) > 1]
    idle = 1 - _active_share(index, experts, config)
    idle_bytes = sum(m.num_bytes for m in experts)
    idle_elements = sum(m.num_elements for m in experts)
    kv = rules.cache(index, modules)
    return LayerProfile(
        weight_bytes=weight_bytes,
        active_weight_bytes=weight_bytes - round(idle * idle_bytes),
        flops_per_token=2 * (elements - round(idle * idle_elements)),
        attention_flops_per_token_pair=rules.attention_flops(modules, kv),
        weight_format=weight_format(modules),
        kv=kv,
    )


def _active_share(layer: int, experts: list[Module], config: Mapping[str, Any]) -> float:
    """The share of the experts' weights that one token uses; all, where the config does not tell."""
    nested = config.get("ffn_config")
    keys = {**config, **nested} if isinstance(nested, dict) else config
    used = number(keys, _EXPERTS_PER_TOKEN, layer)
    stacked = [m.rows for m in experts if len(m.shape) == 3]
    numbered = {match[1] for m in experts if (match := _NUMBERED_EXPERT.search(m.path))}
    total = max(stacked, default=len(numbered))
    return min(1.0, used / total) if used is not None and used > 0 and total else 1.0


def _is_at_embedding(module: Module) -> bool:
    return bool(_AT_EMBEDDING.search(module.path)) and not _AT_HEAD.search(module.path)


def _table(checkpoint: Checkpoint, parts: Parts, config: Mapping[str, Any]) -> Module:
    """The matrix `[vocabulary, hidden]` that embeds tokens."""
    vocabulary = number(config, _VOCABULARY)
    tables = [
        m for m in parts.rest if _is_at_embedding(m) and len(m.shape) == 2 and not _NO_TABLE.search(m.path)
    ]
    if not tables:
        raise UnsupportedModel(checkpoint.model, "it has no embedding table")
    return max(tables, key=lambda m: (m.rows == vocabulary, m.rows))


def _activation_element_bytes(table: Module, parts: Parts) -> int:
    """Bytes of one number between layers: the dtype of what multiplies the embedding."""
    dtype = table.scale_dtype
    if dtype == "U8":  # powers of two for scales: the norms have the model's dtype
        dtype = next((m.scale_dtype for m in parts.layers[0] if "norm" in m.path), "BF16")
    return 4 if dtype == "F32" else 2
