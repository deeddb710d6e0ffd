"""Which tensor of a checkpoint belongs to which part of the model, and what it would be unquantised.

    model.layers.7.self_attn.q_proj.{weight U32, scales, biases}
    '-- layer 7 --''-- module ----'  one Matrix: rows x columns before packing

Layers are found by the pattern `*.layers.N.`, `*.h.N.` or `*.blocks.N.`; what mlx-lm drops when it loads a
checkpoint (vision towers, multi-token prediction, rotary tables) is dropped here too.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dnet_core.errors import LoadError, UnsupportedModel
from dnet_core.types.checkpoints import Checkpoint, TensorRecord

_LAYER = re.compile(r"(?P<list>(?:.*\.)?(?:layers|h|blocks|kv_reuse_layers))\.(?P<index>\d+)\.(?P<rest>.+)")
_DROPPED = re.compile(
    r"(^|\.)(vision|visual|audio|image|mtp|multi_modal|mm_|patch_|embed_vision|embed_audio|nextn)"
    r"|rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$"
)
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "num_transformer_layers")
_PARTS = ("weight", "scales", "biases", "bias", "qweight", "qzeros")
_QUANT_BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class Module:
    """All tensors of one module: a matrix with its scales and bias, a norm, or a lone parameter.

    `shape` is the weight's before packing (rows first), `num_bytes` what all its tensors take in memory.
    """

    path: str
    shape: tuple[int, ...]
    bits: int  # per weight
    num_bytes: int
    scale_dtype: str  # of the numbers that multiply: the scales' if quantised, else the weight's

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Parts:
    """A model's modules: by layer (paths relative to the layer), and the rest by full path."""

    layers: tuple[tuple[Module, ...], ...]
    rest: tuple[Module, ...]


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part of `config`: its `text_config` over it, where there is one."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else dict(config)


def split_parts(checkpoint: Checkpoint) -> Parts:
    """Sort the tensors of `checkpoint` by layer. Raises UnsupportedModel, LoadError."""
    by_layer: dict[str, dict[int, dict[str, TensorRecord]]] = defaultdict(lambda: defaultdict(dict))
    rest: dict[str, TensorRecord] = {}
    for name, record in checkpoint.tensors.items():
        if _DROPPED.search(name):
            continue
        if match := _LAYER.fullmatch(name):
            by_layer[match["list"]][int(match["index"])][match["rest"]] = record
        else:
            rest[name] = record
    if not by_layer:
        raise UnsupportedModel(checkpoint.model, "its tensors do not have the form of a list of layers")
    main = max(by_layer, key=lambda path: sum(map(len, by_layer[path].values())))
    layers = by_layer.pop(main)
    for path, others in by_layer.items():
        if path.endswith("kv_reuse_layers"):  # a second list that goes on where the first ends
            layers |= {len(layers) + i: tensors for i, tensors in sorted(others.items())}
        else:
            rest |= {f"{path}.{i}.{name}": r for i, tensors in others.items() for name, r in tensors.items()}
    stated = number(text_config(checkpoint.config), _NUM_LAYERS)
    count = int(stated) if stated is not None else max(layers) + 1
    for index in range(count):
        if index not in layers:
            raise LoadError(
                f"{checkpoint.model} has {count} layers by its config.json, but no tensors for layer {index}:"
                " fetch or copy the model again"
            )
    quantization = _quantization(checkpoint.config)
    return Parts(
        # Layers beyond the stated number predict several tokens at once; mlx-lm drops them.
        tuple(_modules(layers[i], quantization, f"{main}.{i}.") for i in range(count)),
        _modules(rest, quantization, ""),
    )


def number(config: Mapping[str, Any], keys: tuple[str, ...], layer: int = 0) -> float | None:
    """The first finite number in `config` under any of `keys`; a list has one for each layer."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, list) and layer < len(value):
            value = value[layer]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
    return None


def weight_format(modules: Iterable[Module]) -> str:
    """The format that most bytes of `modules` are in: "q4", "q8", "bf16", "f16", "f32"."""
    counts: Counter[str] = Counter()
    floats = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
    for module in modules:
        name = f"q{module.bits}" if module.bits < 16 else floats.get(module.scale_dtype, "f32")
        counts[name] += module.num_bytes
    return counts.most_common(1)[0][0]


def _quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config's quantisation as mlx-lm takes it: `quantization`, or an older `quantization_config`."""
    for source in (config, text_config(config)):
        for key in ("quantization", "quantization_config"):
            if isinstance(value := source.get(key), dict):
                return value
    return {}


def _modules(
    tensors: Mapping[str, TensorRecord], quantization: Mapping[str, Any], prefix: str
) -> tuple[Module, ...]:
    groups: dict[str, dict[str, TensorRecord]] = defaultdict(dict)
    for name, record in tensors.items():
        path, _, part = name.rpartition(".")
        if part in _PARTS:
            groups[path][part] = record
        else:
            groups[name]["weight"] = record
    return tuple(_module(path, group, quantization, prefix) for path, group in sorted(groups.items()))


def _module(
    path: str, group: Mapping[str, TensorRecord], quantization: Mapping[str, Any], prefix: str
) -> Module:
    num_bytes = sum(record.num_bytes for record in group.values())
    weight = group.get("weight") or group.get("qweight") or next(iter(group.values()))
    scales = group.get("scales")
    shape, bits = weight.shape, 8 * weight.num_bytes // max(1, math.prod(weight.shape))
    if "qweight" in group:  # AWQ, GPTQ: `[in, out * 4 / 32]`, four bits each
        return Module(path, (shape[-1] * 8, shape[0]), 4, num_bytes, "F16")
    if weight.dtype.startswith("F8"):  # mlx-lm widens these to bfloat16 when it loads them
        return Module(path, shape, 16, num_bytes + weight.num_bytes, "BF16")
    if weight.dtype == "U8" and path.endswith("_blocks"):  # mxfp4 as its authors store it: two to a byte
        return Module(path, (*shape[:-1], shape[-1] * 2), 4, num_bytes, "U8")
    if scales is None or weight.dtype not in ("U32", "U8"):
        return Module(path, shape, bits, num_bytes, weight.dtype)
    own = quantization.get(prefix + path)
    settings = {**quantization, **own} if isinstance(own, dict) else quantization
    group_size = number(settings, ("group_size",)) or (32 if scales.dtype == "U8" else 64)
    packed_bits = shape[-1] * (32 if weight.dtype == "U32" else 8)
    bits = round(packed_bits / max(1, scales.shape[-1] * group_size))
    if bits not in _QUANT_BITS:  # the default group size is not this module's
        bits = int(number(settings, ("bits",)) or 4)
    return Module(path, (*shape[:-1], packed_bits // bits), bits, num_bytes, scales.dtype)
