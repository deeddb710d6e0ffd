"""The tiny models are worth testing with: they load strictly, stay finite and do not repeat one token."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model, load_tokenizer

from tests.tiny_configs import CONFIGS, VOCAB_SIZE
from tests.tiny_models import EOS, MODEL_TYPES, write_large_random_model, write_tiny_model

PROMPT = [5, 17, 42, 9, 100, 33, 7]


def greedy_tokens(model: nn.Module, num_tokens: int) -> list[int]:
    """Continue `PROMPT` by `num_tokens` likeliest tokens, checking that every logit is finite."""
    tokens: list[int] = []
    for token, logprobs in generate_step(mx.array(PROMPT), model, max_tokens=num_tokens):
        assert mx.isfinite(logprobs).all().item(), f"logits after {tokens} are not finite"
        tokens.append(int(token))
    return tokens


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_loads_and_generates(model_type: str, tmp_path: Path) -> None:
    model, config = load_model(write_tiny_model(model_type, tmp_path))
    assert config["model_type"] == CONFIGS[model_type].get("model_type", model_type)
    assert len(model.layers) in (5, 6)
    tokens = greedy_tokens(model, 8)
    assert all(0 <= token < VOCAB_SIZE for token in tokens)
    assert len(set(tokens)) >= 3, tokens


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        write_tiny_model("qwen3_moe", tmp_path / name, seed=seed) / "model.safetensors"
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("quantize", ["q4", "q8", "mxfp4", "mixed"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_quantized(model_type: str, quantize: str, tmp_path: Path) -> None:
    model, config = load_model(write_tiny_model(model_type, tmp_path, quantize=quantize))
    assert any(name.endswith(".scales") for name, _ in tree_flatten(model.parameters()))
    assert len(set(greedy_tokens(model, 8))) >= 2
    per_layer = [value for value in config["quantization"].values() if isinstance(value, dict)]
    assert bool(per_layer) == (quantize == "mixed" or model_type in ("qwen3_moe", "gpt_oss")), per_layer


def test_bfloat16(tmp_path: Path) -> None:
    model, config = load_model(write_tiny_model("llama", tmp_path, dtype="bfloat16"))
    assert config["torch_dtype"] == "bfloat16"
    assert {value.dtype for _, value in tree_flatten(model.parameters())} == {mx.bfloat16}
    assert len(set(greedy_tokens(model, 4))) >= 2


def test_several_files_hold_the_same_model(tmp_path: Path) -> None:
    one, _ = load_model(write_tiny_model("mixtral", tmp_path / "one"))
    split_dir = write_tiny_model("mixtral", tmp_path / "split", num_files=3)
    split, _ = load_model(split_dir)
    weight_map = json.loads((split_dir / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) == 3
    assert set(weight_map) == {name for name, _ in tree_flatten(split.parameters())}
    assert greedy_tokens(one, 8) == greedy_tokens(split, 8)


def test_tokenizer_round_trips_any_text(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_model("llama", tmp_path))
    text = "the fox: naïve café, 漢字, 👩‍👩‍👧, \t and\n\x00"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert tokenizer.decode(prompt) == "<|user|>hi<|end|><|assistant|>"
    assert tokenizer.eos_token_ids == {tokenizer.convert_tokens_to_ids(EOS)}


@pytest.mark.parametrize("quantize", [None, "q4"])
def test_large_random_model(quantize: str | None, tmp_path: Path) -> None:
    directory = write_large_random_model(tmp_path, layers=3, hidden=256, quantize=quantize, num_files=2)
    model, _ = load_model(directory)
    assert len(model.layers) == 3
    assert len(set(greedy_tokens(model, 8))) >= 3
