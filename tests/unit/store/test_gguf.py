"""GGUF import: the imported directory is the same model to mlx-lm, and what cannot be imported is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.utils import load_model

from dnet_core.errors import LoadError, UnsupportedModel
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.store.gguf import convert
from dnet_core.store.gguf_header import read_gguf_header
from dnet_core.store.imports import ORIGIN_NAME, import_gguf, lock_path
from tests.tiny_models import make_tokenizer, write_tiny_model
from tests.unit.store.gguf_files import (
    F16,
    K_QUANTS,
    Q4_K,
    Q5_K,
    Tensor,
    as_bf16,
    as_floats,
    as_k_quant,
    as_q4_0,
    as_q4_1,
    as_q8_0,
    model_metadata,
    pair_rows,
    tokenizer_metadata,
    write_gguf,
)

GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def ignore(_done_bytes: int, _total_bytes: int) -> None:
    """A progress listener that does not listen."""


def gguf_name(name: str) -> str:
    module, part = name.rsplit(".", 1)
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if module in top:
        return f"{top[module]}.{part}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest]}.{part}"


class Made:
    """A tiny model and the same model as a GGUF file that llama.cpp's converter would have written."""

    def __init__(self, architecture: str, folder: Path, **overrides: Any) -> None:
        self.source = folder / "tiny.gguf"
        self.directory = write_tiny_model(architecture, folder / architecture, overrides=overrides)
        self.model, config = load_model(self.directory)
        self.metadata = model_metadata(architecture, config) | tokenizer_metadata()
        self.weights: dict[str, np.ndarray] = {}
        for name, value in tree_flatten(self.model.parameters()):
            array = np.array(value)
            if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
                heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
                array = pair_rows(array, heads)
            self.weights[gguf_name(name)] = array
        self.tensors = {name: as_floats(array) for name, array in self.weights.items()}

    def write(self) -> Path:
        return write_gguf(self.source, self.metadata, self.tensors)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_import_is_the_same_model(architecture: str, tied: bool, tmp_path: Path) -> None:
    made = Made(architecture, tmp_path, tie_word_embeddings=tied)
    directory = tmp_path / "imported"
    convert(made.write(), directory, "float32")
    model, tokenizer = load(str(directory))
    tokens = mx.array([tokenizer.encode("the quick brown fox")])
    assert mx.array_equal(model(tokens), made.model(tokens))
    assert read_checkpoint(directory).config["tie_word_embeddings"] is tied


def test_quantised_rows_keep_their_meaning(tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    meant: dict[str, np.ndarray] = {}
    for name, array in made.weights.items():
        if array.ndim == 2:
            quantise = as_q8_0 if "token_embd" in name else as_q4_0
            made.tensors[name], meant[name] = quantise(array)
    convert(made.write(), tmp_path / "imported", "float32")
    model, config = load_model(tmp_path / "imported")
    assert config["quantization"]["bits"] == 4
    assert config["quantization"]["model.embed_tokens"] == {"group_size": 32, "bits": 8}
    for name, module in model.named_modules():
        if not hasattr(module, "scales"):
            continue
        read = np.array(mx.dequantize(module.weight, module.scales, module.biases, 32, module.bits))
        expected = meant[gguf_name(f"{name}.weight")]
        if "q_proj" in name or "k_proj" in name:
            read = pair_rows(read, 4 if "q_proj" in name else 2)
        np.testing.assert_allclose(read, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "name"), [("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32")])
def test_floats_come_in_the_dtype_asked_for(dtype: str, name: str, tmp_path: Path) -> None:
    convert(Made("llama", tmp_path).write(), tmp_path / "imported", dtype)
    assert {record.dtype for record in read_checkpoint(tmp_path / "imported").tensors.values()} == {name}
    model, _ = load_model(tmp_path / "imported")
    assert model.model.norm.weight.dtype == getattr(mx, dtype)


def test_the_file_holds_layer_after_layer(tmp_path: Path) -> None:
    convert(Made("llama", tmp_path).write(), tmp_path / "imported", "float32")
    tensors = read_checkpoint(tmp_path / "imported").tensors
    layers = [n.split(".")[2] for n in sorted(tensors, key=lambda n: tensors[n].start) if ".layers." in n]
    assert layers == sorted(layers)


def test_llama3_rope_factors_become_its_scaling(tmp_path: Path) -> None:
    made = Made("llama", tmp_path, rope_theta=500000.0)
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    reference = write_tiny_model(
        "llama", tmp_path / "scaled", overrides={"rope_theta": 500000.0, "rope_scaling": scaling}
    )
    scaled, _ = load_model(reference)
    # MLX keeps periods: the factor is how much longer than unscaled each became.
    periods = np.array(scaled.layers[0].self_attn.rope._freqs)
    unscaled = 500000.0 ** (np.arange(0, 16, 2) / 16)
    made.tensors["rope_freqs.weight"] = as_floats((periods / unscaled).astype(np.float32))
    convert(made.write(), tmp_path / "imported", "float32")
    assert read_checkpoint(tmp_path / "imported").config["rope_scaling"] == pytest.approx(scaling)
    made.tensors["rope_freqs.weight"] = as_floats(np.linspace(1, 3, 8, dtype=np.float32))
    with pytest.raises(UnsupportedModel, match="rope_freqs"):
        convert(made.write(), tmp_path / "other", "float32")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("general.architecture", "gemma3", "architecture is 'gemma3'"),
        ("tokenizer.ggml.model", "llama", "kind 'llama'"),
        ("tokenizer.ggml.pre", "default", "rule 'default'"),
        ("llama.expert_count", 8, "mixture of experts"),
        ("llama.rope.scaling.type", "longrope", "rope scaling is 'longrope'"),
        ("llama.rope.dimension_count", 8, "rotates 8 of 16"),
        ("llama.attention.head_count_kv", [2, 2, 1, 1], "differs between layers"),
        ("split.count", 3, "one part of several"),
    ],
)
def test_what_cannot_be_imported_is_refused(key: str, value: object, words: str, tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    made.metadata[key] = value
    with pytest.raises(UnsupportedModel, match=words):
        convert(made.write(), tmp_path / "imported", "float32")
    assert not (tmp_path / "imported").exists()


def test_an_unknown_tensor_type_is_refused(tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    made.tensors["output.weight"] = (Q5_K, (288, 64), bytes(288 * 64))
    with pytest.raises(UnsupportedModel, match=r"output\.weight is of type Q5_K"):
        convert(made.write(), tmp_path / "imported", "float32")


def test_a_tensor_that_the_architecture_lacks_is_refused(tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    made.tensors["blk.0.attn_sinks.weight"] = as_floats(np.zeros(4))
    with pytest.raises(UnsupportedModel, match="attn_sinks"):
        convert(made.write(), tmp_path / "imported", "float32")


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("llama", "blk.0.attn_q.bias"),
        ("llama", "blk.0.attn_q_norm.weight"),
        ("llama", "blk.7.ffn_up.weight"),
        ("qwen2", "blk.0.attn_output.bias"),
        ("qwen3", "blk.0.attn_k.bias"),
    ],
)
def test_a_tensor_without_a_place_in_mlx_lms_model_is_refused(
    architecture: str, name: str, tmp_path: Path
) -> None:
    made = Made(architecture, tmp_path)
    made.tensors[name] = as_floats(np.zeros(32 if name.endswith("k.bias") else 64))
    with pytest.raises(UnsupportedModel, match=r"has no place for|lacks"):
        convert(made.write(), tmp_path / "imported", "float32")


def test_rows_that_do_not_fit_the_heads_are_told(tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    made.tensors["blk.0.attn_q.weight"] = as_floats(np.zeros((60, 64)))
    with pytest.raises(LoadError, match=r"attn_q\.weight has 60 rows, but 4 heads of 16"):
        convert(made.write(), tmp_path / "imported", "float32")


def test_no_damage_to_a_header_ends_in_a_traceback(tmp_path: Path) -> None:
    source = Made("llama", tmp_path).write()
    whole, rng = source.read_bytes(), np.random.default_rng(0)
    told = 0
    for _ in range(400):
        content = bytearray(whole)
        for at in rng.integers(0, 9000, size=3):
            content[at] = rng.integers(256)
        source.write_bytes(content)
        try:
            read_gguf_header(source)
        except (LoadError, UnsupportedModel) as error:
            told += 1
            assert "tiny.gguf" in str(error)
    assert told > 20, "the damage was too small to mean anything"


@pytest.mark.parametrize("kind", sorted(K_QUANTS))
def test_k_quants_keep_their_meaning(kind: int, tmp_path: Path) -> None:
    made = Made("llama", tmp_path, hidden_size=256, intermediate_size=512)
    name = "blk.1.ffn_down.weight"
    made.tensors[name], meant = as_k_quant(kind, (256, 512), seed=kind)
    convert(made.write(), tmp_path / "imported", "float32")
    model, _ = load_model(tmp_path / "imported")
    module = model.layers[1].mlp.down_proj
    read = module.weight
    if kind == Q4_K:  # four bits in groups of 32 is a form that MLX has
        assert (module.bits, module.group_size) == (4, 32)
        read = mx.dequantize(module.weight, module.scales, module.biases, 32, 4)
    np.testing.assert_allclose(np.array(read), meant, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("quantise", [lambda a: as_q4_0(a)[0], as_q4_1, lambda a: as_q8_0(a)[0]])
def test_groups_are_packed_as_mlx_packs_them(
    quantise: Callable[[np.ndarray], Tensor], tmp_path: Path
) -> None:
    made = Made("qwen2", tmp_path)  # whose rows stay in their order
    name = "blk.0.ffn_up.weight"
    made.tensors[name] = quantise(made.weights[name])
    expected = mx.load(str(made.write()))
    convert(made.source, tmp_path / "imported", "float16")
    read = mx.load(str(tmp_path / "imported" / "model.safetensors"))
    for part in ("weight", "scales", "biases"):
        ours, theirs = read[f"model.layers.0.mlp.up_proj.{part}"], expected[f"blk.0.ffn_up.{part}"]
        assert ours.dtype == theirs.dtype
        assert mx.array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bfloat16_arrives_as_it_is(dtype: str, tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    made.weights["token_embd.weight"][0, 0] = 1e30  # beyond half precision
    made.tensors["token_embd.weight"] = as_bf16(made.weights["token_embd.weight"])
    convert(made.write(), tmp_path / "imported", dtype)
    table = mx.load(str(tmp_path / "imported" / "model.safetensors"))["model.embed_tokens.weight"]
    bits = made.weights["token_embd.weight"].astype(np.float32).view(np.uint32) >> 16
    assert np.array_equal(np.array(table.astype(mx.bfloat16).view(mx.uint16)), bits.astype(np.uint16))
    with pytest.raises(UnsupportedModel, match="that F16 cannot"):
        convert(made.source, tmp_path / "halves", "float16")


def test_bfloat16_rounds_as_mlx_does(tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    convert(made.write(), tmp_path / "imported", "bfloat16")
    table = mx.load(str(tmp_path / "imported" / "model.safetensors"))["model.embed_tokens.weight"]
    assert mx.array_equal(table, mx.array(made.weights["token_embd.weight"]).astype(mx.bfloat16))


def test_numbers_beyond_the_dtype_are_refused(tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    made.tensors["output_norm.weight"] = as_floats(np.full(64, 1e6))
    with pytest.raises(UnsupportedModel, match=r"model\.norm\.weight holds numbers"):
        convert(made.write(), tmp_path / "imported", "float16")


@pytest.mark.parametrize("key", ["llama.block_count", "tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id"])
def test_missing_metadata_are_named(key: str, tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    del made.metadata[key]
    with pytest.raises(LoadError, match=key.replace(".", r"\.")):
        convert(made.write(), tmp_path / "imported", "float32")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    del made.tensors["blk.2.ffn_up.weight"]
    with pytest.raises(LoadError, match=r"model\.layers\.2\.mlp\.up_proj\.weight"):
        convert(made.write(), tmp_path / "imported", "float32")


@pytest.mark.parametrize("keep", [0, 3, 10, 100, 5000, -4000])
def test_a_file_cut_anywhere_is_told_and_leaves_nothing(keep: int, tmp_path: Path) -> None:
    source = Made("llama", tmp_path).write()
    source.write_bytes(source.read_bytes()[:keep])
    with pytest.raises(LoadError, match=r"tiny\.gguf"):
        convert(source, tmp_path / "store" / "imported", "float32")
    assert [p.name for p in (tmp_path / "store").iterdir()] == [".imported.lock"]


def test_tokens_come_back_as_the_original_tokenizer_makes_them(tmp_path: Path) -> None:
    convert(Made("llama", tmp_path).write(), tmp_path / "imported", "float32")
    _, tokenizer = load(str(tmp_path / "imported"))
    for text in ("the lazy dog", "<|user|>hi<|end|>", "naïve café 漢字 🦊", "  a\n\n b\t12345"):
        assert tokenizer.encode(text) == make_tokenizer().encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token_ids == {make_tokenizer().token_to_id("<|end|>")}


def test_a_begin_token_is_added_where_metadata_ask_for_it(tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    made.metadata["tokenizer.ggml.add_bos_token"] = True
    convert(made.write(), tmp_path / "imported", "float32")
    _, tokenizer = load(str(tmp_path / "imported"))
    begin = made.metadata["tokenizer.ggml.bos_token_id"]
    assert tokenizer.encode("the")[0] == begin
    assert tokenizer.encode("the", add_special_tokens=False)[0] != begin


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["Ġx", "1", "2", "3", "4", "'s"]),
        ("gpt-2", ["Ġx", "1234", "'s"]),
        ("llama-bpe", ["Ġx", "123", "4", "'s"]),
        ("qwen2", ["Ġx", "1", "2", "3", "4", "'s"]),
    ],
)
def test_text_is_split_by_the_named_rule(pre: str, pieces: list[str], tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    made.metadata["tokenizer.ggml.pre"] = pre
    convert(made.write(), tmp_path / "imported", "float32")
    tokenizer = load(str(tmp_path / "imported"))[1]
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(" x1234's")
    assert [piece for piece, _ in split] == pieces


async def test_importers_side_by_side_do_the_work_once(tmp_path: Path) -> None:
    source, directory = Made("llama", tmp_path).write(), tmp_path / "store" / "imported"
    totals: list[list[tuple[int, int]]] = [[], []]
    async with asyncio.TaskGroup() as group:
        for seen in totals:
            group.create_task(import_gguf(source, directory, lambda *step, seen=seen: seen.append(step)))
    worked = [seen for seen in totals if seen]
    assert len(worked) == 1
    done_bytes, total_bytes = worked[0][-1]
    assert done_bytes == total_bytes == read_checkpoint(directory).weight_bytes
    assert sorted(p.name for p in directory.parent.iterdir()) == [lock_path(directory).name, "imported"]


async def test_a_half_import_is_never_taken_for_whole(tmp_path: Path) -> None:
    source, directory = Made("llama", tmp_path).write(), tmp_path / "store" / "imported"
    started = asyncio.Event()
    async with asyncio.timeout(60):
        importing = asyncio.create_task(import_gguf(source, directory, lambda *_: started.set()))
        await started.wait()
        importing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await importing
    leftover = directory.parent / f".{directory.name}.partial"
    leftover.mkdir(exist_ok=True)
    (leftover / "config.json").write_text("{")
    assert await import_gguf(source, directory, ignore) == directory
    assert not leftover.exists()
    assert read_checkpoint(directory).model_type == "llama"


async def test_a_changed_source_is_imported_anew(tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    directory = await import_gguf(made.write(), tmp_path / "imported", ignore)
    before = (directory / ORIGIN_NAME).read_text()
    made.metadata["llama.rope.freq_base"] = 77.0
    await import_gguf(made.write(), directory, ignore)
    assert (directory / ORIGIN_NAME).read_text() != before
    assert json.loads((directory / "config.json").read_text())["rope_theta"] == 77.0


async def test_the_childs_errors_arrive_as_they_were(tmp_path: Path) -> None:
    made = Made("llama", tmp_path)
    made.tensors["output.weight"] = as_floats(np.zeros((288, 64)), F16)
    made.metadata["general.architecture"] = "bloom"
    with pytest.raises(UnsupportedModel, match="architecture is 'bloom'") as refused:
        await import_gguf(made.write(), tmp_path / "imported", ignore)
    assert refused.value.model == "tiny.gguf"
    with pytest.raises(LoadError, match=r"nowhere\.gguf cannot be read"):
        await import_gguf(tmp_path / "nowhere.gguf", tmp_path / "imported", ignore)
