"""The parameters of one layer outside the model: written to a layer file, read into a buffer, put in place.

A buffer is one flat array, allocated once and read into again and again; the parameters are views of it.
MLX takes arrays for constant, so a buffer may only be filled when nothing that was computed from it is still
to be evaluated: whoever runs a streamed layer evaluates all of its results before the layer's turn ends.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from dnet_core.disk_reads import ALIGNMENT_BYTES, whole_pages
from dnet_core.errors import LoadError
from dnet_core.slices.weights import parameter_bytes, stored_as_is
from dnet_core.slices.window import WindowedModel
from dnet_core.store.checkpoint import Checkpoint
from dnet_core.store.repack import (
    LayerFile,
    LayerReader,
    RawTensor,
    check_room,
    find_layer,
    find_range,
    layer_path,
    layers_folder,
    source_mark,
    write_layer,
)

_DTYPES: dict[str, mx.Dtype] = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "F32": mx.float32,
    "U64": mx.uint64,
    "I64": mx.int64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

PRODUCER = f"mlx-lm {metadata.version('mlx-lm')}"
"""Its code turns a checkpoint's tensors into parameters, so layer files belong to one version of it."""

_WORD = 8

Layout = tuple[tuple[str, str, tuple[int, ...], int], ...]
"""Name, dtype, shape and offset in the buffer of every parameter."""


@dataclass(frozen=True, slots=True)
class StreamedLayer:
    """A layer of a model that holds no weights now: where they are, and where they go."""

    file: LayerFile
    slots: LayerSlots


@dataclass(frozen=True, slots=True)
class MissingFile:
    """A layer file that is still to be written."""

    path: Path
    source: str
    model: str


def find_layers(
    model: WindowedModel, checkpoint: Checkpoint, layers: Collection[int], name: str
) -> dict[int, LayerFile | MissingFile]:
    """Where each of `layers` can be read in one go, or the file that must be written for it.

    Raises LoadError when the disk has no room for these files.
    """
    if not layers:
        return {}
    folder, source = layers_folder(checkpoint), source_mark(checkpoint, PRODUCER)
    as_is = stored_as_is(model, checkpoint)
    found: dict[int, LayerFile | MissingFile] = {}
    for layer in layers:
        path = layer_path(folder, layer)
        found[layer] = (
            _own_range(model, checkpoint, layer, as_is)
            or find_layer(path, source)
            or MissingFile(path, source, name)
        )
    missing = [layer for layer, place in found.items() if isinstance(place, MissingFile)]
    if missing:
        check_room(sum(parameter_bytes(model.layers[layer]) for layer in missing))
    return found


def make_streamed(module: nn.Module, place: LayerFile | MissingFile) -> StreamedLayer:
    """Write the layer file of `module` if there is none, and take the weights out of `module`.

    Raises LoadError.
    """
    if isinstance(place, MissingFile):
        tensors = {name: _raw(array, place.model) for name, array in tree_flatten(module.parameters())}
        place = write_layer(place.path, tensors, place.source, place.model)
    return StreamedLayer(place, LayerSlots(module))


def _own_range(
    model: WindowedModel, checkpoint: Checkpoint, layer: int, as_is: dict[str, str]
) -> LayerFile | None:
    """The layer as one range of the checkpoint's own file, if it is that."""
    module = model.layers[layer]
    prefix = next(name for name, part in model.module.named_modules() if part is module)
    names: dict[str, str] = {}
    for name, array in tree_flatten(module.parameters()):
        tensor = as_is.get(f"{prefix}.{name}")
        if tensor is None:
            return None
        record = checkpoint.tensors[tensor]
        if _DTYPES.get(record.dtype) != array.dtype or record.shape != array.shape:
            return None
        names[name] = tensor
    return find_range(checkpoint, names)


def _raw(array: mx.array, model: str) -> RawTensor:
    rows = mx.contiguous(array)
    if array.dtype == mx.bfloat16:  # which NumPy does not know
        rows = rows.view(mx.uint16)
    try:
        mx.eval(rows)
    except RuntimeError as error:
        raise LoadError(f"the weights of '{model}' cannot be read: {error}") from error
    return RawTensor(_NAMES[array.dtype], array.shape, _memory(rows))


def _memory(array: mx.array) -> memoryview:
    """The bytes of an evaluated array, not a copy of them."""
    return np.array(array, copy=False).data.cast("B")


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a parameter hangs in its layer: `owner[key]`."""

    name: str
    owner: Any
    key: Any
    blank: mx.array


class LayerSlots:
    """Puts parameters into a layer and takes them out again. From the start the layer holds none.

    Without them it has lazy stand-ins of the same shape that take no memory; floats are NaN, so that a use
    out of turn would be seen.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._slots = tuple(_slots(layer))
        self.clear()

    def put(self, parameters: dict[str, mx.array]) -> None:
        for slot in self._slots:
            slot.owner[slot.key] = parameters[slot.name]

    def clear(self) -> None:
        for slot in self._slots:
            slot.owner[slot.key] = slot.blank


def _slots(layer: nn.Module) -> list[_Slot]:
    slots = []
    for name, array in tree_flatten(layer.parameters()):
        owner: Any = layer
        *path, last = name.split(".")
        for part in path:
            owner = owner[int(part)] if isinstance(owner, (list, tuple)) else owner[part]
        key = int(last) if isinstance(owner, list) else last
        is_float = mx.issubdtype(array.dtype, mx.floating)
        blank = mx.full(array.shape, float("nan") if is_float else 0, array.dtype)
        slots.append(_Slot(name, owner, key, blank))
    return slots


class LayerBuffer:
    """Memory for one streamed layer of at most `num_bytes`. Made and filled on the loader thread.

    It is counted in words of 8 bytes: MLX has 31 bits for a length, and a layer of experts may be larger.
    """

    def __init__(self, num_bytes: int) -> None:
        """Raises LoadError when there is no memory."""
        size = whole_pages(num_bytes)
        self._words = mx.zeros((size + ALIGNMENT_BYTES) // _WORD, mx.uint64, stream=mx.cpu)
        try:
            mx.eval(self._words)
        except RuntimeError as error:
            raise LoadError(f"no memory for a stream buffer of {num_bytes:,} bytes: {error}") from error
        # From the first page on: a disk can write there without the help of a CPU.
        self._start = -np.array(self._words, copy=False).ctypes.data % ALIGNMENT_BYTES
        self._memory = _memory(self._words)[self._start : self._start + size]
        self._views: dict[Layout, dict[str, mx.array]] = {}

    def fill(self, file: LayerFile, reader: LayerReader) -> dict[str, mx.array]:
        """Read the layer of `file`; the parameters by name, evaluated. Raises LoadError."""
        reader.read(file, self._memory)
        layout = tuple((n, t.dtype, t.shape, t.start - file.start) for n, t in sorted(file.tensors.items()))
        if layout not in self._views:
            with mx.stream(mx.cpu):
                views = {
                    name: self._view(_DTYPES[d], shape, self._start + at) for name, d, shape, at in layout
                }
                mx.eval(views)
            self._views[layout] = views
        return self._views[layout]

    def _view(self, dtype: mx.Dtype, shape: tuple[int, ...], offset: int) -> mx.array:
        """An array on the buffer's own memory: nothing is copied, now or when it is filled again."""
        num_items = math.prod(shape)
        stop = offset + num_items * dtype.size
        words = self._words[offset // _WORD : -(-stop // _WORD)]
        row_bytes = shape[-1] * dtype.size if shape else dtype.size
        if shape and offset % _WORD == 0 and row_bytes % _WORD == 0:
            return words.reshape(*shape[:-1], row_bytes // _WORD).view(dtype)
        first = offset % _WORD // dtype.size
        return words.view(dtype)[first : first + num_items].reshape(shape)
