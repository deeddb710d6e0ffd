"""GGUF -> an ordinary MLX model directory; runs as a child process: `python -m dnet_core.store.gguf`.

    blk.3.attn_q.weight (Q4_1) --mx.load--> weight, scales, biases --put rows back-->
    model.layers.3.self_attn.q_proj.{weight,scales,biases}

Q4_0, Q4_1 and Q8_0 stay quantised (groups of 32). Other types that MLX reads become floats; types that it
cannot read, other architectures and unknown tokenizers are refused, never approximated. The directory
appears by one rename, so that a directory which exists is whole.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
from filelock import FileLock

from dnet_core.errors import LoadError, UnsupportedModel
from dnet_core.store.child import run_and_tell, tell
from dnet_core.store.gguf_header import GGUFHeader, read_gguf_header
from dnet_core.store.gguf_tokens import write_tokenizer
from dnet_core.store.imports import ORIGIN_NAME, is_imported, lock_path, origin_of

GROUP_SIZE = 32  # of every GGUF type that stays quantised
_SPARE_BYTES = 64 * 1024 * 1024  # left free on the disk: the tokenizer, and air for others
_DTYPE_NAMES = {mx.uint32: "U32", mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16"}
_TYPE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
_TYPES_AS_FLOATS = ("F32", "F16", "BF16", "Q2_K", "Q4_K", "Q6_K")
_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"
# Llama 3's own constants, the only ones that GGUF files carry as factors.
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def convert(source: Path, destination: Path, dtype: str) -> str:
    """Import the GGUF file `source` as the model directory `destination`, once; return its path.

    `dtype` of scales, norms and unquantised weights: "float16", "bfloat16", "float32", or "auto": float16
    where MLX has a GPU, float32 on a CPU (float16 is emulated there; widening is exact).
    Safe beside another importer of the same file. Raises LoadError, UnsupportedModel.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.parent / f".{destination.name}.partial"
    try:
        with FileLock(lock_path(destination)):
            if is_imported(destination, source):  # another importer was first
                return str(destination)
            _remove(partial)  # whoever held the lock before and died left it
            partial.mkdir()
            try:
                _write_model(source, partial, _dtype(dtype))
                _remove(destination)  # an import of another version or of an older file
                partial.rename(destination)
            finally:
                _remove(partial)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise LoadError(
                f"the disk filled up while importing {source} to {destination}: make room"
            ) from error
        raise LoadError(f"{source} cannot be imported to {destination}: {error.strerror}") from error
    return str(destination)


def _write_model(source: Path, directory: Path, dtype: mx.Dtype) -> None:
    header = read_gguf_header(source)
    config = _config(header)
    _check_types(header)
    config["eos_token_id"] = write_tokenizer(header, directory)
    try:
        tensors = mx.load(str(source), format="gguf")
    except (RuntimeError, ValueError) as error:
        raise LoadError(f"{source} cannot be read: {error}; get the file again") from error
    assert isinstance(tensors, dict), "a GGUF file holds named tensors"
    if (factors := tensors.pop(_ROPE_FACTORS, None)) is not None:
        config["rope_scaling"] = _llama3_scaling(header, config, factors)
    weights = dict(_renamed(header, tensors, dtype))
    _check_complete(header, config, weights)
    config["quantization"] = _quantization(weights)
    if config["quantization"] is None:
        del config["quantization"]
    _save(weights, directory / "model.safetensors", source)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / ORIGIN_NAME).write_text(json.dumps(origin_of(source)) + "\n", encoding="utf-8")


def _dtype(name: str) -> mx.Dtype:
    if name == "auto":
        return mx.float16 if mx.default_device() == mx.gpu else mx.float32
    return {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}[name]


def _config(header: GGUFHeader) -> dict[str, object]:
    """`config.json` as mlx-lm's ModelArgs wants it, from the metadata. Raises UnsupportedModel, LoadError."""
    architecture = header.text("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise UnsupportedModel(
            header.path.name,
            f"its architecture is '{architecture}'; GGUF import knows {', '.join(_ARCHITECTURES)}:"
            " use the model in MLX or safetensors format",
        )
    if header.metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModel(
            header.path.name, "it is one part of several: join them with llama-gguf-split --merge"
        )
    if header.metadata.get(f"{architecture}.expert_count", 0):
        raise UnsupportedModel(
            header.path.name, "it is a mixture of experts: use it in MLX or safetensors format"
        )
    count, number = header.count, header.number
    heads, hidden = count(f"{architecture}.attention.head_count"), count(f"{architecture}.embedding_length")
    config: dict[str, object] = {
        "model_type": architecture,
        "architectures": [
            {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture] + "ForCausalLM"
        ],
        "hidden_size": hidden,
        "num_hidden_layers": count(f"{architecture}.block_count"),
        "intermediate_size": count(f"{architecture}.feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "rms_norm_eps": number(f"{architecture}.attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": count(f"{architecture}.context_length"),
        "rope_theta": 10000.0,
        "tie_word_embeddings": "output.weight" not in header.tensor_types,
    }
    if f"{architecture}.attention.head_count_kv" in header.metadata:
        config["num_key_value_heads"] = count(f"{architecture}.attention.head_count_kv")
    if f"{architecture}.attention.key_length" in header.metadata:
        config["head_dim"] = count(f"{architecture}.attention.key_length")
    if f"{architecture}.rope.freq_base" in header.metadata:
        config["rope_theta"] = number(f"{architecture}.rope.freq_base")
    rotated = header.metadata.get(f"{architecture}.rope.dimension_count", config["head_dim"])
    if rotated != config["head_dim"]:
        raise UnsupportedModel(
            header.path.name, f"it rotates {rotated} of {config['head_dim']} dimensions per head"
        )
    if architecture == "qwen2" and config["head_dim"] != hidden // heads:
        raise UnsupportedModel(header.path.name, "its heads do not add up to its hidden size")
    if (scaling := _rope_scaling(header, architecture)) is not None:
        config["rope_scaling"] = scaling
    if any(name.endswith("attn_output.bias") for name in header.tensor_types):
        config["attention_bias"] = True
    return config


def _rope_scaling(header: GGUFHeader, architecture: str) -> dict[str, object] | None:
    key = f"{architecture}.rope.scaling"
    match header.metadata.get(f"{key}.type", "none"):
        case "none":
            return None
        case "linear":
            return {"rope_type": "linear", "factor": header.number(f"{key}.factor")}
        case "yarn":
            return {
                "rope_type": "yarn",
                "factor": header.number(f"{key}.factor"),
                "original_max_position_embeddings": header.count(f"{key}.original_context_length"),
            }
        case other:
            raise UnsupportedModel(
                header.path.name, f"its rope scaling is '{other}'; known are none, linear, yarn"
            )


def _llama3_scaling(header: GGUFHeader, config: dict[str, object], factors: mx.array) -> dict[str, object]:
    """Find the Llama 3 rope scaling whose per-frequency `factors` `[head_dim / 2]` are in the file."""
    given = [float(x) for x in np.array(factors.astype(mx.float32)).reshape(-1)]
    head_dim, theta = config["head_dim"], config["rope_theta"]
    assert isinstance(head_dim, int), "set above"
    assert isinstance(theta, float), "set above"
    factor = max(given, default=1.0)
    low, high, original = _LLAMA3_ROPE.values()
    expected = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / head_dim)
        smooth = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))
        expected.append(1 / ((1 - smooth) / factor + smooth))
    if len(given) != len(expected) or any(
        abs(a - b) > 1e-3 * b for a, b in zip(given, expected, strict=True)
    ):
        raise UnsupportedModel(header.path.name, f"{_ROPE_FACTORS} holds other factors than Llama 3's")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3_ROPE}


def _check_types(header: GGUFHeader) -> None:
    for name, kind in header.tensor_types.items():
        if kind not in _TYPE_BITS and kind not in _TYPES_AS_FLOATS:
            known = ", ".join([*_TYPE_BITS, *_TYPES_AS_FLOATS])
            raise UnsupportedModel(header.path.name, f"{name} is of type {kind}; MLX reads {known}")


def _renamed(
    header: GGUFHeader, tensors: dict[str, mx.array], dtype: mx.Dtype
) -> Iterator[tuple[str, mx.array]]:
    """Yield mlx-lm's names with the tensors; Llama's q and k rows are put back, floats become `dtype`."""
    llama = header.metadata["general.architecture"] == "llama"
    heads = {"attn_q": header.count(f"{header.text('general.architecture')}.attention.head_count")}
    kv_key = f"{header.text('general.architecture')}.attention.head_count_kv"
    heads["attn_k"] = header.count(kv_key) if kv_key in header.metadata else heads["attn_q"]
    for name, tensor in tensors.items():
        module, part = _module(header, name)
        kind = name.split(".")[-2]
        array = _put_rows_back(tensor, heads[kind]) if llama and kind in heads else tensor
        if mx.issubdtype(array.dtype, mx.floating):
            array = array.astype(dtype)
            if not mx.isfinite(array).all().item():
                raise UnsupportedModel(header.path.name, f"{name} holds numbers that {dtype} cannot")
        yield f"{module}.{part}", array


def _module(header: GGUFHeader, name: str) -> tuple[str, str]:
    """`blk.3.attn_q.scales` -> (`model.layers.3.self_attn.q_proj`, `scales`). Raises UnsupportedModel."""
    match name.split("."):
        case ["blk", layer, kind, part] if layer.isdecimal() and kind in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[kind]}", part
        case [kind, part] if kind in _TOP_NAMES:
            return _TOP_NAMES[kind], part
    raise UnsupportedModel(
        header.path.name, f"it has a tensor {name}, which this architecture lacks in mlx-lm"
    )


def _put_rows_back(array: mx.array, heads: int) -> mx.array:
    """Undo GGUF's order of rotary rows (pairs beside each other) in `[heads * head_dim, ...]`."""
    rows, *rest = array.shape
    return array.reshape(heads, rows // heads // 2, 2, *rest).swapaxes(1, 2).reshape(rows, *rest)


def _check_complete(header: GGUFHeader, config: dict[str, object], weights: dict[str, mx.array]) -> None:
    """Every module that mlx-lm's model has must be there. Raises LoadError; fills in `vocab_size`."""
    kinds = [
        name
        for name in _LAYER_NAMES
        if config["model_type"] == "qwen3" or not name.endswith(("q_norm", "k_norm"))
    ]
    layers = config["num_hidden_layers"]
    assert isinstance(layers, int), "set from a count"
    wanted = [f"model.layers.{i}.{_LAYER_NAMES[kind]}.weight" for i in range(layers) for kind in kinds]
    wanted += ["model.embed_tokens.weight", "model.norm.weight"]
    if config["model_type"] == "qwen2":
        wanted += [f"model.layers.{i}.self_attn.{p}_proj.bias" for i in range(layers) for p in "qkv"]
    if missing := [name for name in wanted if name not in weights]:
        raise LoadError(
            f"{header.path} lacks {len(missing)} tensors, {missing[0]} among them: get the file again"
        )
    config["vocab_size"] = weights["model.embed_tokens.weight"].shape[0]


def _quantization(weights: dict[str, mx.array]) -> dict[str, object] | None:
    """The config's `quantization`: the commonest bits as default, every other module by its path."""
    bits = {
        name.removesuffix(".scales"): weights[name.removesuffix("scales") + "weight"].shape[-1]
        * 32
        // (scales.shape[-1] * GROUP_SIZE)
        for name, scales in weights.items()
        if name.endswith(".scales")
    }
    if not bits:
        return None
    usual = max(sorted(set(bits.values())), key=list(bits.values()).count)
    others = {path: {"group_size": GROUP_SIZE, "bits": b} for path, b in sorted(bits.items()) if b != usual}
    return {"group_size": GROUP_SIZE, "bits": usual, **others}


def _save(weights: dict[str, mx.array], path: Path, source: Path) -> None:
    """Write a safetensors file whose tensors lie layer by layer, so that a shard reads its own in one go."""
    total_bytes = sum(array.nbytes for array in weights.values())
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < total_bytes + _SPARE_BYTES:
        needs = f"importing {source} needs {total_bytes + _SPARE_BYTES:,} bytes in {path.parent.parent}"
        raise LoadError(f"{needs}, but {free_bytes:,} are free: make room")
    names = sorted(weights, key=_file_order)
    entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    start = 0
    for name in names:
        stop = start + weights[name].nbytes
        dtype, shape = _DTYPE_NAMES[weights[name].dtype], list(weights[name].shape)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        start = stop
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        done_bytes = 0
        for name in names:
            array = weights.pop(name)
            # NumPy has no bfloat16: its bytes travel as uint16.
            array = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
            file.write(np.ascontiguousarray(np.array(array, copy=False)).data)
            done_bytes += array.nbytes
            tell(progress=[done_bytes, total_bytes])
        file.flush()
        os.fsync(file.fileno())


def _file_order(name: str) -> tuple[int, str]:
    """Embedding first, then layer by layer, then norm and head."""
    match name.split("."):
        case ["model", "layers", layer, *_]:
            return int(layer), name
        case ["model", "embed_tokens", *_]:
            return -1, name
    return sys.maxsize, name


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def main() -> int:
    parser = argparse.ArgumentParser(description="Import a GGUF file as an MLX model directory.")
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--dtype", choices=["auto", "float16", "bfloat16", "float32"], default="auto")
    options = parser.parse_args()
    return run_and_tell(lambda: convert(options.source, options.destination, options.dtype))


if __name__ == "__main__":
    sys.exit(main())
