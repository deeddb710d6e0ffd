"""The model profile against mlx-lm's own models: bytes, caches and shapes of every architecture, exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)
from mlx_lm.utils import load_model

from dnet_core.errors import DnetError, LoadError, UnsupportedModel
from dnet_core.profile.device import request_for
from dnet_core.profile.model import profile_model
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.types.profiles import KVKind, ModelProfile
from tests.tiny_configs import CONFIGS
from tests.tiny_models import MODEL_TYPES, random_model, write_tiny_model

# What the profile refuses, with the reason it gives.
REFUSED = {"iquestloopcoder": "loops", "nanbeige": "loops"}
PROFILED = [name for name in MODEL_TYPES if name not in REFUSED]
SESSION_TOKENS = 256  # a cache's allocation step, so that nothing is held in reserve
PROMPT_TOKENS = 20  # more than the tiny models' windows, fewer than a cache's first allocation


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write each tiny model once."""
    written: dict[str, Path] = {}

    def write(model_type: str, **options: Any) -> Path:
        key = json.dumps([model_type, options])
        if key not in written:
            written[key] = write_tiny_model(model_type, tmp_path_factory.mktemp("tiny"), **options)
        return written[key]

    return write


def table_bytes_if_tied(model: nn.Module) -> int:
    """Bytes of the embedding, where the head uses it too."""
    parameters = dict(tree_flatten(model.parameters()))
    if any(part in name for name in parameters for part in ("lm_head", "output.weight", "embed_out")):
        return 0
    ends = ("embed_tokens", "wte", "embeddings", "tok_embeddings", "token_embeddings", "model.embedding")
    paths = {name.rpartition(".")[0] for name in parameters}
    (table,) = [path for path in paths if path.endswith(ends)]
    return sum(value.nbytes for name, value in parameters.items() if name.rpartition(".")[0] == table)


@pytest.mark.parametrize("model_type", PROFILED)
def test_bytes_add_up_to_the_models(model_type: str, tiny: Callable[..., Path]) -> None:
    directory = tiny(model_type, dtype="bfloat16")
    model, _ = load_model(directory, lazy=True)
    profile = profile_model(read_checkpoint(directory))
    parameters = tree_flatten(model.parameters())
    assert profile.weight_bytes == sum(v.nbytes for _, v in parameters) + table_bytes_if_tied(model)
    assert profile.num_layers == len(model.layers)
    for layer, made in zip(profile.layers, model.layers, strict=True):
        assert layer.weight_bytes == sum(v.nbytes for _, v in tree_flatten(made.parameters()))
        assert 0 < layer.active_weight_bytes <= layer.weight_bytes


@pytest.mark.parametrize("quantize", ["q4", "q8", "mxfp4", "mixed"])
def test_quantised_bytes_add_up_and_arithmetic_stays(quantize: str, tiny: Callable[..., Path]) -> None:
    plain = profile_model(read_checkpoint(tiny("llama")))
    directory = tiny("llama", quantize=quantize)
    model, _ = load_model(directory, lazy=True)
    profile = profile_model(read_checkpoint(directory))
    parameters = tree_flatten(model.parameters())
    assert profile.weight_bytes == sum(v.nbytes for _, v in parameters) + table_bytes_if_tied(model)
    assert profile.weight_format == ("q8" if quantize == "q8" else "q4")
    assert (profile.hidden_size, profile.vocab_size) == (plain.hidden_size, plain.vocab_size)
    for layer, before in zip(profile.layers, plain.layers, strict=True):
        assert layer.flops_per_token == before.flops_per_token
        assert layer.attention_flops_per_token_pair == before.attention_flops_per_token_pair
        assert layer.kv == before.kv
        assert layer.weight_bytes < before.weight_bytes


def measure(cache: Any) -> tuple[int, int, int | None]:
    """(bytes per position, state bytes, window) of one of mlx-lm's caches."""
    match cache:
        case CacheList():
            parts = [measure(part) for part in cache.caches]
            windows = [window for _, _, window in parts if window is not None]
            return sum(p[0] for p in parts), sum(p[1] for p in parts), windows[0] if windows else None
        case ArraysCache():
            return 0, sum(a.nbytes for a in cache.cache if a is not None), None
        case KVCache() | RotatingKVCache() | ChunkedKVCache():
            if cache.keys is None:
                return 0, 0, None
            window = getattr(cache, "max_size", None) or getattr(cache, "chunk_size", None)
            return (cache.keys.nbytes + cache.values.nbytes) // cache.keys.shape[2], 0, window
        case _:
            raise AssertionError(f"unknown cache {type(cache).__name__}")


@pytest.mark.parametrize("model_type", PROFILED)
def test_caches_grow_as_mlx_lms_do(model_type: str, tiny: Callable[..., Path]) -> None:
    model = random_model({"model_type": model_type, **CONFIGS[model_type]}, dtype="bfloat16", seed=0)
    caches = make_prompt_cache(model)
    model(mx.zeros((1, PROMPT_TOKENS), mx.int32), cache=caches)  # lazy: shapes are enough
    if model_type == "longcat_flash_ngram":
        caches = caches[1:]  # the first holds the last token ids, of no layer
    profile = profile_model(read_checkpoint(tiny(model_type, dtype="bfloat16")))
    with_cache = [p.kv for p in profile.layers if p.kv.bytes_per_token or p.kv.state_bytes]
    measured = [m for m in map(measure, caches) if m[0] or m[1]]
    assert [(kv.bytes_per_token, kv.state_bytes) for kv in with_cache] == [m[:2] for m in measured]
    for kv, (_, _, window) in zip(with_cache, measured, strict=True):
        assert (kv.kind is KVKind.SLIDING) == (window is not None)
        assert kv.window_tokens == (window or profile.context_tokens)
        assert (kv.kind is KVKind.STATE) == (kv.bytes_per_token == 0)


@pytest.mark.parametrize(
    "model_type", ["llama", "gemma3_text", "youtu_llm", "qwen3_5", "mamba2", "falcon_h1"]
)
def test_the_formula_gives_what_a_real_session_holds(model_type: str, tiny: Callable[..., Path]) -> None:
    directory = tiny(model_type, dtype="bfloat16")
    assert held_bytes(directory) == planned_bytes(directory)


def test_a_latent_in_32_bits_is_twice_the_plans(tiny: Callable[..., Path]) -> None:
    directory = tiny("deepseek_v3")  # MLX on a CPU runs experts in float32 only
    assert held_bytes(directory) == [2 * planned for planned in planned_bytes(directory)]


def held_bytes(directory: Path) -> list[int]:
    """What each layer's cache holds after `SESSION_TOKENS`, the last of them decoded."""
    model, _ = load_model(directory)
    caches = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, SESSION_TOKENS - 1), mx.int32), cache=caches))
    mx.eval(model(mx.zeros((1, 1), mx.int32), cache=caches))
    return [cache.nbytes for cache in caches]


def planned_bytes(directory: Path) -> list[int]:
    caches = [layer.kv for layer in profile_model(read_checkpoint(directory)).layers]
    return [min(SESSION_TOKENS, kv.window_tokens) * kv.bytes_per_token + kv.state_bytes for kv in caches]


def test_kinds_are_told_apart(tiny: Callable[..., Path]) -> None:
    def kinds(model_type: str) -> list[str]:
        profile = profile_model(read_checkpoint(tiny(model_type, dtype="bfloat16")))
        return [layer.kv.kind.value for layer in profile.layers]

    assert kinds("llama") == ["full"] * 5
    assert kinds("deepseek_v3") == ["latent"] * 5
    assert kinds("olmo3") == ["sliding", "full", "sliding", "sliding", "full"]
    assert kinds("qwen3_next") == ["state", "full", "state", "full", "state"]


def test_experts_count_as_far_as_they_are_used(tiny: Callable[..., Path]) -> None:
    directory = tiny("mixtral")  # 2 of 4 experts
    model, _ = load_model(directory, lazy=True)
    layer = profile_model(read_checkpoint(directory)).layers[0]
    made = dict(tree_flatten(model.layers[0].parameters()))
    experts = sum(v.nbytes for name, v in made.items() if "switch_mlp" in name)
    assert layer.active_weight_bytes == layer.weight_bytes - experts // 2
    dense = sum(v.size for name, v in made.items() if "switch_mlp" not in name and v.ndim == 2)
    active = sum(v.size for name, v in made.items() if "switch_mlp" in name) // 2
    assert layer.flops_per_token == 2 * (dense + active)


def test_arithmetic_of_a_llama_is_the_textbooks(tiny: Callable[..., Path]) -> None:
    profile = profile_model(read_checkpoint(tiny("llama")))
    attention, mlp = 64 * 64 * 2 + 64 * 32 * 2, 3 * 64 * 128
    assert [layer.flops_per_token for layer in profile.layers] == [2 * (attention + mlp)] * 5
    assert profile.layers[0].attention_flops_per_token_pair == 2 * 2 * 4 * 16  # twice, 4 heads of 16
    assert profile.head_flops_per_token == 2 * 288 * 64
    assert (profile.hidden_size, profile.vocab_size, profile.context_tokens) == (64, 288, 512)
    assert (profile.weight_format, profile.activation_bytes_per_token) == ("f32", 64 * 4)


@pytest.mark.parametrize(("dtype", "name", "element_bytes"), [("bfloat16", "bf16", 2), ("float16", "f16", 2)])
def test_dtypes_are_told(dtype: str, name: str, element_bytes: int, tiny: Callable[..., Path]) -> None:
    profile = profile_model(read_checkpoint(tiny("qwen3", dtype=dtype)))
    assert (profile.weight_format, profile.activation_bytes_per_token) == (name, 64 * element_bytes)


def test_a_tied_table_counts_at_both_ends(tiny: Callable[..., Path]) -> None:
    tied = profile_model(read_checkpoint(tiny("llama")))
    own = profile_model(read_checkpoint(tiny("llama", overrides={"tie_word_embeddings": False})))
    assert tied.embedding_bytes == own.embedding_bytes == 288 * 64 * 4
    assert tied.head_bytes == own.head_bytes == 288 * 64 * 4 + 64 * 4


def test_a_stored_head_that_is_tied_counts_once(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny("qwen2")
    directory = Path(shutil.copytree(source, tmp_path / "tied"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    assert unnamed(directory) == unnamed(source)


def unnamed(directory: Path) -> ModelProfile:
    return dataclasses.replace(profile_model(read_checkpoint(directory)), model="")


def test_what_mlx_lm_drops_is_not_counted(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny("qwen3")
    directory = Path(shutil.copytree(source, tmp_path / "more"))
    extra = {
        "vision_tower.layers.0.weight": mx.zeros((64, 64)),
        "mtp.layers.0.mlp.weight": mx.zeros((64, 64)),
        "model.layers.0.self_attn.rotary_emb.inv_freq": mx.zeros((8,)),
        "model.layers.5.mlp.up_proj.weight": mx.zeros((64, 64)),  # beyond num_hidden_layers
    }
    mx.save_safetensors(str(directory / "model-extra.safetensors"), extra)
    assert unnamed(directory) == unnamed(source)


@pytest.mark.parametrize("model_type", REFUSED)
def test_caches_of_unknown_form_are_refused(model_type: str, tiny: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedModel, match=REFUSED[model_type]):
        profile_model(read_checkpoint(tiny(model_type)))


def test_missing_layers_are_told(tiny: Callable[..., Path], tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny("llama"), tmp_path / "short"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 9}))
    with pytest.raises(LoadError, match="no tensors for layer 5"):
        profile_model(read_checkpoint(directory))


@pytest.mark.parametrize("model_type", ["llama", "gemma3", "deepseek_v3", "qwen3_next", "gpt2", "phi3"])
def test_no_config_value_of_a_wrong_kind_ends_in_a_traceback(
    model_type: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(tiny(model_type), tmp_path / "odd"))
    config = json.loads((directory / "config.json").read_text())
    text = config.get("text_config", config)
    for key in sorted(set(text) - {"model_type"}):
        for odd in (None, "many", [], {}, True, 0, -1, -0.5, math.inf, math.nan, 10**400):
            changed = {**text, key: odd}
            whole = {**config, "text_config": changed} if "text_config" in config else changed
            (directory / "config.json").write_text(json.dumps(whole))
            try:
                profile = profile_model(read_checkpoint(directory))
                request_for(profile, whole, chunk_tokens=32)
            except DnetError as error:
                assert str(error)
            else:
                assert profile.num_layers > 0
