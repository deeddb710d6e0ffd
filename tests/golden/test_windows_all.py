"""Every architecture that may be split gives, window by window, the bits of the whole model.

Each window runs on its own caches while no other layer can be read: their weights are lazy arrays of a file
that was cut off. Activations are evaluated between windows, as they are when they travel.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from dnet_core.errors import UnsupportedModel
from dnet_core.slices.adapters import REFUSED, VERIFIED, architectures, check_splittable
from dnet_core.slices.hidden import Arrays
from dnet_core.slices.window import End, WindowedModel
from dnet_core.types.ring import LayerWindow
from tests.tiny_configs import GEMMA4_TEXT
from tests.tiny_models import MODEL_TYPES, write_tiny_model

STEPS: tuple[list[int], ...] = (
    [5, 17, 42, 9, 100, 33, 7],  # a prompt in chunks; the sliding windows of 8 tokens fill and turn
    [8, 1, 60, 61, 62],
    list(range(44, 57)),
    *([token * 7 % 250] for token in range(3, 10)),  # decoding
    [70, 71, 72],  # the next turn
)
PLAIN_GEMMA4: dict[str, Any] = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
GEMMA4_MOE: dict[str, Any] = {
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "enable_moe_block": True,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 64,
}
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((model_type, {}) for model_type in MODEL_TYPES),
    ("llama", {"sliding_window": 8, "layer_types": ["full_attention"] + ["sliding_attention"] * 4}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("mimo_v2_flash", {"hybrid_layer_pattern": [1, 1, 0, 0, 1]}),
    ("hunyuan", {"use_cla": True}),
    ("nanbeige", {"num_loops": 1}),
    ("gemma4_text", PLAIN_GEMMA4),
    ("gemma4_text", {**PLAIN_GEMMA4, **GEMMA4_MOE}),
    ("gemma4", {"text_config": {**GEMMA4_TEXT, **PLAIN_GEMMA4, "model_type": "gemma4_text"}}),
    ("gemma4_text", {"num_kv_shared_layers": 0}),
    ("granitemoehybrid", {"layer_types": ["attention", "mamba", "mamba", "mamba", "attention"]}),
)
REFUSED_VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("gemma4", {}),  # per-layer embeddings and shared keys and values
    ("gemma4_text", {}),
    ("gemma4_text", {"num_kv_shared_layers": 0}),
    ("nanbeige", {}),
)


def cuts(num_layers: int) -> list[tuple[int, ...]]:
    """Boundaries of two and three uneven windows, with windows of one layer at both ends."""
    return [(2,), (1, 3), (1, num_layers - 1)]


def outputs_of_whole(model: nn.Module) -> list[mx.array]:
    """Logits of every step, run as mlx-lm runs them."""
    cache = make_prompt_cache(model)
    outputs = []
    for tokens in STEPS:
        logits = model(mx.array([tokens]), cache=cache)
        mx.eval(logits)
        outputs.append(logits)
    return outputs


class _Shards:
    """The windows of one model, each run while the weights of all other layers cannot be read.

    A window in the middle cannot read embedding, norm and head either.
    """

    def __init__(self, model: nn.Module, broken: mx.array) -> None:
        def unreadable(array: mx.array) -> mx.array:
            return mx.broadcast_to(broken, array.shape).astype(array.dtype)

        self._whole = model
        self._model = WindowedModel(model, "tiny")
        self._layers = [layer.parameters() for layer in self._model.layers]
        self._no_layers = [tree_map(unreadable, parameters) for parameters in self._layers]
        in_layers = {id(array) for _, array in tree_flatten(self._layers)}
        ends = [(name, a) for name, a in tree_flatten(model.parameters()) if id(a) not in in_layers]
        self._ends = tree_unflatten(ends)
        self._no_ends = tree_map(unreadable, self._ends)

    def make_cache(self) -> list[Any]:
        return self._model.make_cache()

    def step(self, window: LayerWindow, value: Arrays, cache: list[Any], position: int) -> Arrays:
        for index, layer in enumerate(self._model.layers):
            layer.update(self._layers[index] if index in window else self._no_layers[index])
        in_the_middle = window.start > 0 and window.stop < self._model.num_layers
        self._whole.update(self._no_ends if in_the_middle else self._ends)
        if window.start == 0:
            output = self._model.embed_and_run(window, value[0], cache, position)
        else:
            output = self._model.run(window, value, cache, position)
        mx.eval(output)
        return output


def broken_array(directory: Path) -> mx.array:
    """A lazy array that raises RuntimeError when it is evaluated: its file ends too soon."""
    file = directory / "broken.safetensors"
    mx.save_safetensors(str(file), {"broken": mx.zeros(1024)})
    tensors = mx.load(str(file))
    assert isinstance(tensors, dict)
    file.write_bytes(file.read_bytes()[:-1024])
    return tensors["broken"][-1]


def assert_windows_equal_whole(directory: Path) -> None:
    model, _ = load_model(directory)
    expected = outputs_of_whole(model)
    shards = _Shards(model, broken_array(directory))
    for boundaries in cuts(len(model.layers)):
        edges = pairwise((0, *boundaries, len(model.layers)))
        windows = {LayerWindow(start, stop): shards.make_cache() for start, stop in edges}
        position = 0
        for number, (tokens, logits) in enumerate(zip(STEPS, expected, strict=True)):
            value: Arrays = (mx.array([tokens]),)
            for window, cache in windows.items():
                value = shards.step(window, value, cache, position)
            position += len(tokens)
            same = mx.array_equal(value[0], logits).item()
            assert same, f"cut at {boundaries}, step {number} of {len(tokens)} tokens differs"


@pytest.mark.parametrize(("model_type", "overrides"), VARIANTS)
def test_windows_equal_the_whole_model_or_are_refused(
    model_type: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    directory = write_tiny_model(model_type, tmp_path, overrides=overrides)
    model, _ = load_model(directory, lazy=True)
    if (model_type, overrides) in REFUSED_VARIANTS or not architectures(model) <= VERIFIED:
        with pytest.raises(UnsupportedModel, match="cannot be split"):
            check_splittable(model, model_type)
    else:
        check_splittable(model, model_type)
        assert_windows_equal_whole(directory)


WHOLE_HEADS = {"afm7", "plamo"}
"""Architectures whose head is not apart from their body: it runs on every token of a chunk."""


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_head_runs_on_the_last_token_only(model_type: str, tmp_path: Path) -> None:
    """Every table of logits that is asked for has one row, and it is the one of the whole chunk."""
    model, _ = load_model(write_tiny_model(model_type, tmp_path))
    windowed = WindowedModel(model, model_type)
    whole = LayerWindow(0, windowed.num_layers)
    caches, position = (windowed.make_cache(), windowed.make_cache()), 0
    for tokens in STEPS[:3]:
        ids = mx.array([tokens])
        (every,) = windowed.embed_and_run(whole, ids, caches[0], position)
        (last,) = windowed.embed_and_run(whole, ids, caches[1], position, End.LAST)
        mx.eval(every, last)
        rows = len(tokens) if model_type in WHOLE_HEADS else 1
        assert last.shape == (1, rows, every.shape[2])
        assert mx.allclose(last[:, -1], every[:, -1], rtol=1e-4, atol=1e-5).item()
        position += len(tokens)


@pytest.mark.parametrize("quantize", ["q4", "mixed"])
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_5"])
def test_quantized_windows(model_type: str, quantize: str, tmp_path: Path) -> None:
    assert_windows_equal_whole(write_tiny_model(model_type, tmp_path, quantize=quantize))


def test_bfloat16_windows(tmp_path: Path) -> None:
    assert_windows_equal_whole(write_tiny_model("gemma3_text", tmp_path, dtype="bfloat16"))


def test_every_verified_architecture_has_a_tiny_model(tmp_path: Path) -> None:
    covered: set[str] = set()
    for model_type in MODEL_TYPES:
        model, _ = load_model(write_tiny_model(model_type, tmp_path / model_type), lazy=True)
        covered |= architectures(model)
    assert covered >= VERIFIED, sorted(VERIFIED - covered)


def test_tables_name_modules_of_mlx_lm() -> None:
    modules = {file.stem for file in Path(next(iter(mlx_lm.models.__path__))).glob("*.py")}
    assert modules >= VERIFIED | REFUSED.keys()
    assert not VERIFIED & REFUSED.keys()


def test_unverified_architectures_are_refused() -> None:
    class Model:  # as from a file that came with a checkpoint
        layers: tuple[nn.Module, ...] = ()

    with pytest.raises(UnsupportedModel, match="no test has compared"):
        check_splittable(Model(), "mine")


def test_refused_architectures_say_why(tmp_path: Path) -> None:
    model, _ = load_model(write_tiny_model("talkie", tmp_path), lazy=True)
    with pytest.raises(UnsupportedModel, match="embedding of the token"):
        check_splittable(model, "talkie")


def test_the_comparison_sees_a_layer_that_reads_token_ids(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="differs"):
        assert_windows_equal_whole(write_tiny_model("talkie", tmp_path))


def test_the_comparison_sees_a_weight_that_is_read(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        mx.eval(broken_array(tmp_path))
