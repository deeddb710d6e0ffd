"""One layer's parameters as one range of one file, so that streaming reads a layer in one go.

    cache/layers/FINGERPRINT/            one checkpoint, as its files are now
        layer-0007.safetensors           the parameters as mlx-lm's model has them, quantised as they are
        layer-0007.safetensors.tmp       being written, or left by a process that died; removed by the next
        .lock                            held by whoever writes

Where a checkpoint holds a layer in this form already (one range, nothing renamed or computed), that range of
its own file is used and nothing is written. What is read is what was written: a file that is new to a reader,
or has changed since its last read, is compared with its checksum.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from dnet_core.disk_reads import ALIGNMENT_BYTES, DiskReader, opened, whole_pages
from dnet_core.errors import LoadError
from dnet_core.settings import paths
from dnet_core.store.checkpoint import DTYPE_BITS, PREFIX_BYTES, header_bytes_of, parse_header
from dnet_core.types.checkpoints import Checkpoint, TensorRecord

FORMAT = "dnet-layer-1"
"""Part of every source mark: with another one, files are written anew."""

RESERVE_BYTES = 1 << 30
"""Writing layer files leaves this much of the disk free."""


@dataclass(frozen=True, slots=True)
class LayerFile:
    """Bytes `[start, stop)` of `path` are one layer; `tensors` by parameter name, aligned to their items.

    `checksum` is the CRC-32 of these bytes; None for a checkpoint's own file, which has none.
    """

    path: Path
    start: int
    stop: int
    tensors: Mapping[str, TensorRecord]
    checksum: int | None

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor to write: `data` is its bytes, row by row."""

    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class CachedLayers:
    """The layer files of one checkpoint."""

    model: str
    folder: Path
    num_layers: int
    size_bytes: int


# ---- where they are ----


def layers_folder(checkpoint: Checkpoint) -> Path:
    """Where the layers of `checkpoint` are kept: by its fingerprint, and by where its files lie.

    The fingerprint does not see the weights themselves: two finetunes of one model may share it.
    """
    places = "\0".join(str(path) for path in _files(checkpoint))
    mark = hashlib.sha256(places.encode()).hexdigest()[:8]
    return paths().cache / "layers" / f"{checkpoint.fingerprint}-{mark}"


def source_mark(checkpoint: Checkpoint, producer: str) -> str:
    """Changes when the files of `checkpoint` do, or `producer`: the version of what computes parameters."""
    digest = hashlib.sha256(f"{FORMAT} {producer}".encode())
    for path in _files(checkpoint):
        status = _status(path)
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def _files(checkpoint: Checkpoint) -> list[Path]:
    """Where the weights really lie; in the hub's cache the model's directory has links only."""
    assert checkpoint.directory is not None, "only headers are here"
    return [(checkpoint.directory / name).resolve() for name in sorted(checkpoint.file_bytes)]


def layer_path(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:04d}.safetensors"


def find_layer(path: Path, source: str) -> LayerFile | None:
    """The layer file at `path`, if it was made from `source` and is whole as far as header and size tell."""
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            header = file.read(header_bytes_of(file.read(PREFIX_BYTES), size_bytes, str(path)))
        tensors = parse_header(header, path.name, size_bytes, str(path))
        metadata = json.loads(header)["__metadata__"]
        checksum, made_from = int(metadata["crc32"]), metadata["source"]
    except (OSError, LoadError, KeyError, ValueError, TypeError):
        return None
    start = PREFIX_BYTES + len(header)
    if made_from != source or max((t.stop for t in tensors.values()), default=0) != size_bytes:
        return None
    return LayerFile(path, start, size_bytes, tensors, checksum)


def find_range(checkpoint: Checkpoint, names: Mapping[str, str]) -> LayerFile | None:
    """The parameters `names` (parameter -> tensor) as one range of one of the checkpoint's own files.

    None when they lie in several files, with something else between them, or not aligned to their items.
    """
    assert checkpoint.directory is not None, "only headers are here"
    tensors = {parameter: checkpoint.tensors[name] for parameter, name in names.items()}
    files = {record.file for record in tensors.values()}
    if len(files) != 1:
        return None
    start = min(record.start for record in tensors.values())
    stop = max(record.stop for record in tensors.values())
    aligned = all((r.start - start) % item_bytes(r.dtype) == 0 for r in tensors.values())
    if not aligned or stop - start != sum(record.num_bytes for record in tensors.values()):
        return None
    return LayerFile(checkpoint.directory / files.pop(), start, stop, tensors, None)


def item_bytes(dtype: str) -> int:
    """Bytes of one item of a safetensors dtype: "BF16" has 2."""
    return DTYPE_BITS[dtype] // 8


# ---- writing ----


def check_room(num_bytes: int) -> None:
    """Raise LoadError unless the cache directory's disk has room for layer files of `num_bytes`."""
    folder = paths().cache / "layers"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(folder).free
    except OSError as error:
        raise LoadError(f"{folder} cannot be made: {error.strerror}") from error
    if free_bytes < num_bytes + RESERVE_BYTES:
        raise LoadError(
            f"streaming needs {_gigabytes(num_bytes)} of layer files in {folder}, and a reserve of"
            f" {_gigabytes(RESERVE_BYTES)}, but the disk has {_gigabytes(free_bytes)} free: free some, or"
            " remove other models' layers with 'dnet-shard cache clear'"
        )


def write_layer(path: Path, tensors: Mapping[str, RawTensor], source: str, model: str) -> LayerFile:
    """Write the layer file `path`: whole or not at all. Raises LoadError."""
    ordered = sorted(tensors.items(), key=lambda item: (-item_bytes(item[1].dtype), item[0]))
    checksum = 0
    for _, tensor in ordered:
        checksum = zlib.crc32(tensor.data, checksum)
    header = _header(dict(ordered), {"source": source, "model": model}, checksum)
    partial = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            try:
                with partial.open("wb") as file:
                    file.write(header)
                    for _, tensor in ordered:
                        file.write(tensor.data)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        raise LoadError(f"{path} cannot be written: {error.strerror or error}") from error
    found = find_layer(path, source)
    if found is None:
        raise LoadError(f"{path} was changed while it was written: is another program using the folder?")
    return found


def _header(tensors: Mapping[str, RawTensor], metadata: dict[str, str], checksum: int) -> bytes:
    """Length and JSON of a safetensors file, padded so that the data begins on a page."""
    entries: dict[str, object] = {"__metadata__": {**metadata, "crc32": str(checksum)}}
    offset = 0
    for name, tensor in tensors.items():
        stop = offset + len(tensor.data)
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries).encode()
    text += b" " * (-(PREFIX_BYTES + len(text)) % ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text


# ---- reading ----


class LayerReader:
    """Reads layers past the page cache, and tells when a file is not what it was. Owned by one thread."""

    def __init__(self) -> None:
        self._disk = DiskReader()
        self._seen: dict[tuple[Path, int], tuple[int, int, int]] = {}

    def close(self) -> None:
        """End the threads that read. Nothing is being read."""
        self._disk.close()

    def read(self, file: LayerFile, into: memoryview) -> None:
        """Fill the first `file.num_bytes` of `into`; what is behind them may be written to, up to a page.

        Straight from the disk if `into` and the layer begin on pages. Raises LoadError: missing, cut short,
        damaged.
        """
        try:
            if not (file.start % ALIGNMENT_BYTES == 0 and self._try_direct(file, into)):
                with opened(file.path) as descriptor:
                    self._read(descriptor, file, into[: file.num_bytes])
        except OSError as error:
            raise LoadError(
                f"{file.path} cannot be read: {error.strerror or error}; load the model again"
            ) from error

    def _try_direct(self, file: LayerFile, into: memoryview) -> bool:
        """Read with O_DIRECT, which only Linux has; whether file system and `into` allow it."""
        if sys.platform != "linux":
            return False
        try:
            with opened(file.path, os.O_DIRECT) as descriptor:
                self._read(descriptor, file, into[: whole_pages(file.num_bytes)])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True

    def _read(self, descriptor: int, file: LayerFile, target: memoryview) -> None:
        status = os.fstat(descriptor)
        mark = (status.st_ino, status.st_size, status.st_mtime_ns)
        seen = self._seen.get((file.path, file.start))
        if status.st_size < file.stop:
            raise LoadError(
                f"{file.path} has {status.st_size:,} bytes, but layer data reaches to {file.stop:,}: it was"
                " cut short; load the model again"
            )
        if file.checksum is None and seen is not None and seen != mark:
            raise LoadError(f"{file.path} has changed since the model was loaded: load it again")
        self._fill(descriptor, file, target)
        data = target[: file.num_bytes]
        if file.checksum is not None and seen != mark and zlib.crc32(data) != file.checksum:
            raise LoadError(
                f"{file.path} is damaged (its checksum is wrong): remove it with 'dnet-shard cache clear'"
                " and load the model again"
            )
        self._seen[file.path, file.start] = mark

    def _fill(self, descriptor: int, file: LayerFile, target: memoryview) -> None:
        if sys.platform == "linux":
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        try:
            self._disk.read(descriptor, file.start, file.num_bytes, target)
        except EOFError as error:
            raise LoadError(f"{file.path} was cut short: {error}; load the model again") from error
        if sys.platform == "linux":  # what was read is used once: its pages would only push others out
            os.posix_fadvise(descriptor, file.start, file.num_bytes, os.POSIX_FADV_DONTNEED)


# ---- what is kept ----


def cached_layers() -> tuple[CachedLayers, ...]:
    """What the cache directory holds, one entry for each checkpoint, by model. Blocks on the disk.

    Raises LoadError when a folder cannot be read.
    """
    root = paths().cache / "layers"
    found = []
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        files = sorted(folder.glob("layer-*.safetensors"))
        found.append(CachedLayers(_model_of(files), folder, len(files), _size_bytes(folder)))
    return tuple(sorted(found, key=lambda layers: (layers.model, str(layers.folder))))


def clear_layers() -> int:
    """Remove all layer files; returns how many bytes. Raises LoadError.

    A shard that is streaming from them loses its model.
    """
    found = cached_layers()
    for layers in found:
        try:
            shutil.rmtree(layers.folder)
        except OSError as error:
            raise LoadError(f"{layers.folder} cannot be removed: {error.strerror}") from error
    return sum(layers.size_bytes for layers in found)


def _size_bytes(folder: Path) -> int:
    """What the files of `folder` take; a shard that writes at this moment renames and removes some."""
    total = 0
    try:
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                total += path.stat().st_size
    except OSError as error:
        raise LoadError(f"{folder} cannot be read: {error.strerror}") from error
    return total


def _model_of(files: list[Path]) -> str:
    for path in files:
        try:
            with path.open("rb") as file:
                length = header_bytes_of(file.read(PREFIX_BYTES), _status(path).st_size, str(path))
                return str(json.loads(file.read(length))["__metadata__"]["model"])
        except (OSError, LoadError, KeyError, ValueError, TypeError, RecursionError):
            continue
    return "(unfinished)"


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
