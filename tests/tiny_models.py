"""Model directories of a few hundred kilobytes, as a hub would deliver them, for any mlx-lm architecture.

    tiny/config.json  model.safetensors  tokenizer.json  tokenizer_config.json

Weights are random but scaled so that the residual stream neither dies nor explodes and greedy output varies;
the same `seed` gives the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes, quantize_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.tiny_configs import CONFIGS, CONTEXT_TOKENS, VOCAB_SIZE, Config

MODEL_TYPES: tuple[str, ...] = tuple(sorted(CONFIGS))

BOS, EOS = "<|begin|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

QuantPredicate = Callable[[str, nn.Module], bool | dict[str, Any]]


def write_tiny_model(
    model_type: str,
    directory: Path,
    *,
    dtype: str = "float32",
    seed: int = 0,
    quantize: str | None = None,
    num_files: int = 1,
    overrides: Config | None = None,
) -> Path:
    """Write a tiny model of `model_type` into `directory` (made if missing) and return it.

    `quantize` is None, "q4", "q8", "mxfp4" or "mixed" (4 bits, but 8 in the odd layers' `down_proj` and in
    the head, named one by one in the config). `overrides` replace keys of the config. With `num_files` > 1
    the tensors are dealt round over that many files, with an index: a layer is then scattered.
    """
    config: Config = {"model_type": model_type, **CONFIGS[model_type], **(overrides or {})}
    return write_model(config, directory, dtype=dtype, seed=seed, quantize=quantize, num_files=num_files)


def write_large_random_model(
    directory: Path,
    *,
    layers: int,
    hidden: int,
    vocab: int = 4096,
    dtype: str = "float32",
    quantize: str | None = None,
    num_files: int = 1,
    seed: int = 0,
) -> Path:
    """Write a llama of a chosen size for benchmarks: `hidden` is a multiple of 64, heads are 64 wide.

    A layer has about 11 `hidden`² parameters (grouped-query attention by four, an MLP three times as wide).
    """
    num_heads = hidden // 64
    config: Config = {
        **CONFIGS["llama"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": hidden * 3,
        "num_attention_heads": num_heads,
        "num_key_value_heads": max(1, num_heads // 4),
        "head_dim": 64,
        "vocab_size": vocab,
        "max_position_embeddings": 8192,
    }
    return write_model(config, directory, dtype=dtype, seed=seed, quantize=quantize, num_files=num_files)


def write_model(
    config: Config, directory: Path, *, dtype: str, seed: int, quantize: str | None, num_files: int
) -> Path:
    """Write a model with random weights for `config`, whose vocabulary holds at least `VOCAB_SIZE` tokens."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    eos = tokenizer.token_to_id(EOS)
    config = {**config, "torch_dtype": dtype, "bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": eos}
    model = random_model(config, dtype=dtype, seed=seed)
    if quantize is not None:
        model, config = _quantize(model, config, quantize)
    _write_weights(directory, dict(tree_flatten(model.parameters())), num_files)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "tokenizer.json").write_text(tokenizer.to_str())
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": BOS,
                "eos_token": EOS,
                "model_max_length": CONTEXT_TOKENS,
                "chat_template": CHAT_TEMPLATE,
                "clean_up_tokenization_spaces": False,
            },
            indent=2,
        )
    )
    return directory


def random_model(config: Config, *, dtype: str, seed: int) -> nn.Module:
    """Build mlx-lm's model for `config` with well-scaled random weights (lazy)."""
    model_class, args_class = _get_classes(config)
    seed += 8  # with 8, no architecture of the table answers one token over and over at seed 0
    mx.random.seed(seed)  # some architectures draw their initial state, decay, ... themselves
    model: nn.Module = model_class(args_class.from_dict(config))
    keep_dtype = getattr(model, "cast_predicate", lambda _: True)
    parameters = tree_flatten(model.parameters())
    weights: list[tuple[str, mx.array]] = []
    for (name, value), key in zip(
        parameters, mx.random.split(mx.random.key(seed), len(parameters)), strict=True
    ):
        if not mx.issubdtype(value.dtype, mx.floating):
            weights.append((name, value))
            continue
        weight = _random_like(name, value, key)
        weights.append((name, weight.astype(getattr(mx, dtype)) if keep_dtype(name) else weight))
    model.update(tree_unflatten(weights))
    return model


def _random_like(name: str, value: mx.array, key: mx.array) -> mx.array:
    """Random values shaped like `value`: matrices about keep the variance they map, the rest is jittered."""
    noise = mx.random.normal(value.shape, key=key)
    if value.ndim < 2 or not name.endswith("weight"):
        return value.astype(mx.float32) + 0.1 * noise
    if "embed" in name or "wte" in name or "wpe" in name:
        return 0.05 * noise
    fan_in = math.prod(value.shape[1:]) if value.ndim < 3 or "conv" in name else value.shape[-1]
    return noise * (1.6 / math.sqrt(fan_in))


def _quantize(model: nn.Module, config: Config, how: str) -> tuple[nn.Module, Config]:
    """Quantise as `mlx_lm.convert` does; see `write_tiny_model` for `how`."""
    predicate: QuantPredicate | None = getattr(model, "quant_predicate", None)
    mode, group_size, bits = "affine", 32, 4
    if how == "q8":
        bits = 8
    elif how == "mxfp4":
        mode = "mxfp4"
    elif how == "mixed":
        predicate = _mixed_predicate
    elif how != "q4":
        raise ValueError(f"unknown quantisation '{how}'")
    quantized, config = quantize_model(model, config, group_size, bits, mode=mode, quant_predicate=predicate)
    return quantized, config


def _mixed_predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
    if not hasattr(module, "to_quantized"):
        return False
    parts = path.split(".")
    odd_layer = any(part.isdigit() and int(part) % 2 for part in parts)
    if "lm_head" in parts or (odd_layer and parts[-1] == "down_proj"):
        return {"group_size": 64, "bits": 8}
    return True


def _write_weights(directory: Path, weights: dict[str, mx.array], num_files: int) -> None:
    metadata = {"format": "mlx"}
    if num_files == 1:
        mx.save_safetensors(str(directory / "model.safetensors"), weights, metadata=metadata)
        return
    index: dict[str, str] = {}
    for number in range(num_files):
        file = f"model-{number + 1:05d}-of-{num_files:05d}.safetensors"
        part = {name: weights[name] for name in sorted(weights)[number::num_files]}
        index |= dict.fromkeys(part, file)
        mx.save_safetensors(str(directory / file), part, metadata=metadata)
    total = sum(value.nbytes for value in weights.values())
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    )


@cache
def make_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of exactly `VOCAB_SIZE` tokens: any text encodes and decodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(text, special=True) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog and runs there then"] * 8, trainer
    )
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    return tokenizer
