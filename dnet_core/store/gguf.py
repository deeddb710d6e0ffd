"""GGUF -> an ordinary MLX model directory; runs as a child process: `python -m dnet_core.store.gguf`.

    blk.3.attn_q.weight (Q4_1) --groups of 32, rows put back-->
    model.layers.3.self_attn.q_proj.{weight, scales, biases}

Quantised types stay quantised where MLX has the form (gguf_tensors.py); unknown types, architectures and
tokenizers are refused, never approximated. One tensor is in memory at a time. The directory appears by one
rename, so that a directory which exists is whole.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from dnet_core.errors import LoadError, UnsupportedModel
from dnet_core.store.child import run_and_tell, tell
from dnet_core.store.gguf_header import GGUFHeader, GGUFTensor, read_gguf_header
from dnet_core.store.gguf_tensors import (
    GROUP_SIZE,
    TYPES,
    cast,
    put_rows_back,
    tensor_floats,
    tensor_groups,
)
from dnet_core.store.gguf_tokens import write_tokenizer
from dnet_core.store.imports import ORIGIN_NAME, is_imported, lock_path, origin_of

_SPARE_BYTES = 64 * 1024 * 1024  # left free on the disk: the tokenizer, and air for others
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ITEM_BYTES = {"U32": 4, "F32": 4, "F16": 2, "BF16": 2}
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
                _write_model(source, partial, dtype)
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


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a GGUF tensor goes: a module and part of mlx-lm's model. `heads` > 0: rows are to be put back."""

    module: str
    part: str
    source: GGUFTensor
    heads: int

    def outputs(self, dtype: str) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, safetensors dtype, shape) of what is written for it."""
        bits = TYPES[self.source.kind].bits
        *rows, columns = self.source.shape
        if bits is None:
            return [(f"{self.module}.{self.part}", dtype, self.source.shape)]
        groups = (*rows, columns // GROUP_SIZE)
        return [
            (f"{self.module}.weight", "U32", (*rows, columns * bits // 32)),
            (f"{self.module}.scales", dtype, groups),
            (f"{self.module}.biases", dtype, groups),
        ]


def _write_model(source: Path, directory: Path, dtype: str) -> None:
    header = read_gguf_header(source)
    config = _config(header)
    _check_tensors(header)
    config["eos_token_id"] = write_tokenizer(header, directory)
    data = np.memmap(source, np.uint8, mode="r")
    if _ROPE_FACTORS in header.tensors:
        factors = tensor_floats("F32", *_content(data, header.tensors[_ROPE_FACTORS]))
        config["rope_scaling"] = _llama3_scaling(header, config, factors)
    targets = sorted(_targets(header, config), key=_file_order)
    _check_complete(header, config, targets)
    if (quantization := _quantization(targets)) is not None:
        config["quantization"] = quantization
    _save(targets, data, _dtype(dtype, header), directory / "model.safetensors", header)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / ORIGIN_NAME).write_text(json.dumps(origin_of(source)) + "\n", encoding="utf-8")


def _dtype(name: str, header: GGUFHeader) -> str:
    if name == "auto" and mx.default_device() != mx.gpu:
        name = "float32"
    elif name == "auto":
        name = "bfloat16" if any(t.kind == "BF16" for t in header.tensors.values()) else "float16"
    return _DTYPES[name]


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
        "tie_word_embeddings": "output.weight" not in header.tensors,
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
    if any(name.endswith("attn_output.bias") for name in header.tensors):
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


def _llama3_scaling(
    header: GGUFHeader, config: dict[str, object], factors: NDArray[np.float32]
) -> dict[str, object]:
    """Find the Llama 3 rope scaling whose per-frequency `factors` `[head_dim / 2]` are in the file."""
    given = [float(factor) for factor in factors.reshape(-1)]
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


def _check_tensors(header: GGUFHeader) -> None:
    """Every tensor is of a known type and lies in the file. Raises UnsupportedModel, LoadError."""
    for name, tensor in header.tensors.items():
        if tensor.kind not in TYPES:
            reason = f"{name} is of type {tensor.kind}; known are {', '.join(TYPES)}"
            raise UnsupportedModel(header.path.name, reason)
        if name == _ROPE_FACTORS and tensor.kind != "F32":
            raise UnsupportedModel(header.path.name, f"{name} is of type {tensor.kind} instead of F32")
        if not tensor.shape or tensor.shape[-1] % TYPES[tensor.kind].block_items:
            raise LoadError(f"{header.path}: {name} of shape {tensor.shape} cannot be of type {tensor.kind}")
        if tensor.start + _num_bytes(tensor) > header.file_bytes:
            raise LoadError(f"{header.path} is cut short: {name} ends beyond its end; get the file again")


def _num_bytes(tensor: GGUFTensor) -> int:
    kind = TYPES[tensor.kind]
    return math.prod(tensor.shape) // kind.block_items * kind.block_bytes


def _content(data: NDArray[np.uint8], tensor: GGUFTensor) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """The tensor's bytes (a copy, aligned) and its shape."""
    return np.array(data[tensor.start : tensor.start + _num_bytes(tensor)]), tensor.shape


def _targets(header: GGUFHeader, config: dict[str, object]) -> Iterator[_Target]:
    """Where each tensor goes. Raises UnsupportedModel, LoadError."""
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    head_dim = config["head_dim"]
    assert isinstance(head_dim, int), "set from counts"
    for name, tensor in header.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        module, part = _module(header, name)
        num_heads = heads.get(name.split(".")[-2])
        if isinstance(num_heads, int) and tensor.shape[0] != num_heads * head_dim:
            reason = f"{name} has {tensor.shape[0]} rows, but {num_heads} heads of {head_dim}"
            raise LoadError(f"{header.path}: {reason}; get the file again")
        paired = config["model_type"] == "llama" and isinstance(num_heads, int)
        yield _Target(module, part, tensor, num_heads if paired and isinstance(num_heads, int) else 0)


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


def _check_complete(header: GGUFHeader, config: dict[str, object], targets: list[_Target]) -> None:
    """Every tensor of mlx-lm's model must be there, and nothing else; fills in `vocab_size`.

    Raises LoadError for what is missing, UnsupportedModel for what mlx-lm would have no place for.
    """
    layers, model_type = config["num_hidden_layers"], config["model_type"]
    assert isinstance(layers, int), "set from a count"
    normed = model_type == "qwen3"
    kinds = [kind for kind in _LAYER_NAMES if normed or kind not in ("attn_q_norm", "attn_k_norm")]
    modules = {f"model.layers.{i}.{_LAYER_NAMES[kind]}" for i in range(layers) for kind in kinds}
    modules |= {"model.embed_tokens", "model.norm"}
    if not config["tie_word_embeddings"]:
        modules.add("lm_head")
    biased = "qkv" if model_type == "qwen2" else "qkvo" if config.get("attention_bias") else ""
    wanted = {f"{module}.weight" for module in modules}
    wanted |= {f"model.layers.{i}.self_attn.{x}_proj.bias" for i in range(layers) for x in biased}
    found = {f"{target.module}.{target.part}": target for target in targets}
    if missing := sorted(wanted - set(found)):
        text = f"{header.path} lacks {len(missing)} tensors, {missing[0]} among them"
        raise LoadError(f"{text}: get the file again")
    if extra := sorted(set(found) - wanted):
        raise UnsupportedModel(header.path.name, f"mlx-lm's {model_type} has no place for its {extra[0]}")
    config["vocab_size"] = found["model.embed_tokens.weight"].source.shape[0]


def _quantization(targets: list[_Target]) -> dict[str, object] | None:
    """The config's `quantization`: the commonest bits as default, every other module by its path."""
    bits = {t.module: b for t in targets if (b := TYPES[t.source.kind].bits) is not None}
    if not bits:
        return None
    usual = max(sorted(set(bits.values())), key=list(bits.values()).count)
    others = {path: {"group_size": GROUP_SIZE, "bits": b} for path, b in sorted(bits.items()) if b != usual}
    return {"group_size": GROUP_SIZE, "bits": usual, **others}


def _save(
    targets: list[_Target], data: NDArray[np.uint8], dtype: str, path: Path, header: GGUFHeader
) -> None:
    """Write a safetensors file whose tensors lie layer by layer, so that a shard reads its own in one go."""
    entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    total_bytes = 0
    for name, item, shape in (output for target in targets for output in target.outputs(dtype)):
        stop = total_bytes + math.prod(shape) * _ITEM_BYTES[item]
        entries[name] = {"dtype": item, "shape": list(shape), "data_offsets": [total_bytes, stop]}
        total_bytes = stop
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < total_bytes + _SPARE_BYTES:
        needs = f"importing {header.path} needs {total_bytes + _SPARE_BYTES:,} bytes in {path.parent.parent}"
        raise LoadError(f"{needs}, but {free_bytes:,} are free: make room")
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    done_bytes = 0
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for target in targets:
            for array in _arrays(target, data, dtype, header):
                file.write(np.ascontiguousarray(array).data)
                done_bytes += array.nbytes
            tell(progress=[done_bytes, total_bytes])
        file.flush()
        os.fsync(file.fileno())
    assert done_bytes == total_bytes, "what was announced is what was written"


def _arrays(
    target: _Target, data: NDArray[np.uint8], dtype: str, header: GGUFHeader
) -> Iterator[NDArray[Any]]:
    """The arrays of `target.outputs`, in their order."""
    content, shape = _content(data, target.source)
    if TYPES[target.source.kind].bits is None:
        numbers = [tensor_floats(target.source.kind, content, shape)]
    else:
        weight, *numbers = tensor_groups(target.source.kind, content, shape)
        yield put_rows_back(weight, target.heads)
    for array in numbers:
        converted = cast(array, dtype)
        if converted is None:
            reason = f"{target.module}.{target.part} holds numbers that {dtype} cannot"
            raise UnsupportedModel(header.path.name, reason)
        yield put_rows_back(converted, target.heads)


def _file_order(target: _Target) -> tuple[int, str, str]:
    """Embedding first, then layer by layer, then norm and head."""
    match target.module.split("."):
        case ["model", "layers", layer, *_]:
            return int(layer), target.module, target.part
        case ["model", "embed_tokens"]:
            return -1, target.module, target.part
    return sys.maxsize, target.module, target.part


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
