"""Where the bytes of each tensor are: safetensors headers and `config.json`, read without MLX.

    file:  [8 bytes: n][n bytes: JSON header][tensor data ...]
                                             ^ data_offsets count from here; a TensorRecord counts from 0

A `Checkpoint` that exists is sound: every range lies in its file, has the size its shape and dtype ask for,
and overlaps no other. Everything else is a `LoadError` that names the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnet_core.errors import LoadError
from dnet_core.types.checkpoints import Checkpoint, TensorRecord

__all__ = [
    "Checkpoint",
    "TensorRecord",
    "build_checkpoint",
    "header_bytes_of",
    "parse_header",
    "parse_index",
    "read_checkpoint",
]

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PREFIX_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}
# JSON has no infinities; transformers writes them as {"__float__": "Infinity"}.
_TAGGED_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_AGAIN = "fetch or copy the model again"


def read_checkpoint(directory: Path) -> Checkpoint:
    """Read `config.json` and the header of every weight file in `directory` (no weights).

    Raises LoadError naming the file that is missing or broken, and what to do.
    """
    config_text = _read_bytes(directory / CONFIG_NAME)
    headers: dict[str, tuple[int, bytes]] = {}
    names, weight_map = _weight_files(directory)
    for name in names:
        headers[name] = _read_header(directory / name)
    generation = directory / "generation_config.json"
    generation_text = _read_bytes(generation) if generation.is_file() else None
    return build_checkpoint(
        str(directory), directory, config_text, generation_text, headers, weight_map=weight_map
    )


def build_checkpoint(
    model: str,
    directory: Path | None,
    config_text: bytes,
    generation_text: bytes | None,
    headers: Mapping[str, tuple[int, bytes]],
    weight_map: Mapping[str, str] | None,
) -> Checkpoint:
    """Check and join what was read. `headers` maps a file name to its size in bytes and its JSON header.

    `weight_map` is the index's: every tensor it promises must be in the file that it names.
    Raises LoadError.
    """
    place = f"{directory}/" if directory is not None else f"{model}: "
    config = _parse_config(config_text, f"{place}{CONFIG_NAME}")
    if generation_text is not None:
        _merge_eos(config, generation_text, f"{place}generation_config.json")
    tensors: dict[str, TensorRecord] = {}
    for name, (file_bytes, header) in sorted(headers.items()):
        for tensor, record in parse_header(header, name, file_bytes, f"{place}{name}").items():
            if tensor in tensors:
                message = f"tensor {tensor} is in {tensors[tensor].file} and in {place}{name}: remove one"
                raise LoadError(f"{message} of the two files")
            tensors[tensor] = record
    for tensor, name in (weight_map or {}).items():
        if tensor not in tensors or tensors[tensor].file != name:
            raise LoadError(
                f"{place}{INDEX_NAME} promises {tensor} in {name}, which has no such tensor: {_AGAIN}"
            )
    sizes = {name: file_bytes for name, (file_bytes, _) in sorted(headers.items())}
    return Checkpoint(model, directory, config, tensors, sizes, _fingerprint(config_text, tensors, sizes))


def parse_header(header: bytes, file: str, file_bytes: int, where: str) -> dict[str, TensorRecord]:
    """Parse the JSON `header` of a safetensors file of `file_bytes` bytes; `where` is for error texts.

    Raises LoadError unless all ranges lie in the file, fit shape and dtype, and do not overlap.
    """
    entries = _parse_object(header, where)
    data_start = PREFIX_BYTES + len(header)
    tensors: dict[str, TensorRecord] = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        record = _parse_tensor(name, entry, file, data_start, where)
        if record.stop > file_bytes:
            raise LoadError(
                f"{where} has {file_bytes:,} bytes, but tensor {name} ends at {record.stop:,}: it is cut"
                f" short; {_AGAIN}"
            )
        tensors[name] = record
    reached, previous = data_start, "the header"
    for name, record in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if record.start < reached:
            raise LoadError(f"{where} is corrupt: tensor {name} overlaps {previous}; {_AGAIN}")
        reached, previous = record.stop, name
    return tensors


def header_bytes_of(prefix: bytes, file_bytes: int, where: str) -> int:
    """The length of the JSON header, from the file's first 8 bytes. Raises LoadError."""
    if len(prefix) < PREFIX_BYTES:
        raise LoadError(f"{where} has only {len(prefix)} bytes, not even a header: {_AGAIN}")
    length = int(struct.unpack("<Q", prefix[:PREFIX_BYTES])[0])
    if length > MAX_HEADER_BYTES or PREFIX_BYTES + length > file_bytes:
        raise LoadError(
            f"{where} has {file_bytes:,} bytes, but its header claims {length:,}: it is no safetensors file"
            f" or was cut short; {_AGAIN}"
        )
    return length


def parse_index(text: bytes, where: str) -> dict[str, str]:
    """Parse `model.safetensors.index.json` to tensor name -> file name. Raises LoadError."""
    weight_map = _parse_object(text, where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise LoadError(f"{where} has no weight_map: {_AGAIN}")
    for name in weight_map.values():
        # A name with a path in it could point anywhere on this machine.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise LoadError(f"{where} names a weight file {name!r}, which is not a plain *.safetensors name")
    return weight_map


def _weight_files(directory: Path) -> tuple[list[str], dict[str, str] | None]:
    index = directory / INDEX_NAME
    if index.is_file():
        weight_map = parse_index(_read_bytes(index), str(index))
        names = sorted(set(weight_map.values()))
        for name in names:
            if not (directory / name).is_file():
                raise LoadError(f"{directory / name} is missing, but {INDEX_NAME} names it: {_AGAIN}")
        return names, weight_map
    names = sorted(path.name for path in directory.glob("model*.safetensors") if path.is_file())
    if not names:
        raise LoadError(
            f"{directory} has no model*.safetensors file: give a model in MLX or safetensors format,"
            " or a .gguf file"
        )
    return names, None


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LoadError(
            f"{path} is missing: {path.parent} is not a model directory, or is incomplete"
        ) from None
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error


def _read_header(path: Path) -> tuple[int, bytes]:
    try:
        with path.open("rb") as file:
            file_bytes = path.stat().st_size
            header = file.read(header_bytes_of(file.read(PREFIX_BYTES), file_bytes, str(path)))
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    return file_bytes, header


def _parse_object(text: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, or nested without end
        raise LoadError(f"{where} is not valid JSON ({error}): {_AGAIN}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{where} should hold a JSON object, but holds {type(value).__name__}: {_AGAIN}")
    return value


def _parse_config(text: bytes, where: str) -> dict[str, Any]:
    try:
        config = {key: _untag_floats(value) for key, value in _parse_object(text, where).items()}
    except RecursionError as error:  # Python's own limit is lower than that of its JSON parser
        raise LoadError(f"{where} is nested too deeply: {_AGAIN}") from error
    if not isinstance(config.get("model_type"), str):
        raise LoadError(f"{where} has no model_type: it is not a language model's config")
    return config


def _untag_floats(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"__float__"} and str(value["__float__"]) in _TAGGED_FLOATS:
            return _TAGGED_FLOATS[str(value["__float__"])]
        return {key: _untag_floats(item) for key, item in value.items()}
    return [_untag_floats(item) for item in value] if isinstance(value, list) else value


def _merge_eos(config: dict[str, Any], text: bytes, where: str) -> None:
    """Prefer the generation config's end-of-sequence ids, as mlx-lm does: they are the complete ones."""
    eos = _parse_object(text, where).get("eos_token_id")
    if eos is not None:
        config["eos_token_id"] = eos


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _parse_tensor(name: str, entry: object, file: str, data_start: int, where: str) -> TensorRecord:
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (
        isinstance(dtype, str)
        and isinstance(shape, list)
        and all(map(_is_count, shape))
        and isinstance(offsets, list)
        and len(offsets) == 2
        and all(map(_is_count, offsets))
    ):
        raise LoadError(f"{where} is corrupt: tensor {name} lacks dtype, shape or data_offsets; {_AGAIN}")
    if dtype not in DTYPE_BITS:
        raise LoadError(
            f"{where}: tensor {name} has the unknown dtype {dtype}; convert the model with mlx-lm"
        )
    start, stop = offsets
    wanted_bytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
    if stop - start != wanted_bytes:
        raise LoadError(
            f"{where} is corrupt: tensor {name} of {shape} {dtype} takes {wanted_bytes:,} bytes, but has"
            f" {stop - start:,}; {_AGAIN}"
        )
    return TensorRecord(file, dtype, tuple(shape), data_start + start, data_start + stop)


def _fingerprint(config: bytes, tensors: Mapping[str, TensorRecord], sizes: Mapping[str, int]) -> str:
    digest = hashlib.sha256(config)
    for name, record in sorted(tensors.items()):
        digest.update(
            repr((name, record.file, record.dtype, record.shape, record.start, record.stop)).encode()
        )
    digest.update(repr(sorted(sizes.items())).encode())
    return digest.hexdigest()[:32]
