"""What a GGUF file says about itself: metadata, and where each tensor lies.

Layout (GGUF v2, v3, little endian):

    "GGUF" version:u32 num_tensors:u64 num_metadata:u64
    metadata: key:string type:u32 value           string: length:u64 bytes
    tensors:  name:string num_dims:u32 dims:u64[] (columns first) type:u32 offset:u64
    data:     from the next multiple of `general.alignment`; offsets count from there
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from dnet_core.errors import LoadError, UnsupportedModel

Value = bool | int | float | str | list["Value"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor: its type's name ("Q4_1", "F32", ...), its shape (rows first), and its first byte."""

    kind: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What stands before the weights; tensors by their GGUF names."""

    path: Path
    file_bytes: int
    metadata: dict[str, Value]
    tensors: dict[str, GGUFTensor]

    def text(self, key: str) -> str:
        """The string `key`. Raises LoadError where it is missing or no string."""
        value = self._required(key)
        if not isinstance(value, str):
            raise LoadError(f"{self.path}: {key} should be a string, but is {value!r}")
        return value

    def count(self, key: str) -> int:
        """The positive integer `key`. Raises LoadError; per-layer lists are UnsupportedModel."""
        value = self._required(key)
        if isinstance(value, list):
            raise UnsupportedModel(self.path.name, f"{key} differs between layers")
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise LoadError(f"{self.path}: {key} should be a positive number, but is {value!r}")
        return value

    def number(self, key: str) -> float:
        """The number `key`. Raises LoadError."""
        value = self._required(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise LoadError(f"{self.path}: {key} should be a number, but is {value!r}")
        return float(value)

    def texts(self, key: str) -> list[str]:
        """The list of strings `key`. Raises LoadError."""
        value = self._required(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise LoadError(f"{self.path}: {key} should be a list of strings")
        return [str(item) for item in value]

    def _required(self, key: str) -> Value:
        if key not in self.metadata:
            raise LoadError(
                f"{self.path} lacks {key} in its metadata: it was not made for llama.cpp or is damaged"
            )
        return self.metadata[key]


def read_gguf_header(path: Path) -> GGUFHeader:
    """Read all of the GGUF file at `path` but its weights.

    Raises LoadError for a file that is missing, no GGUF, or cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).header()
    except (struct.error, UnicodeDecodeError, IndexError, RecursionError, MemoryError) as error:
        raise LoadError(f"{path} is damaged or cut short: get the file again") from error
    except ValueError as error:  # mmap of an empty file
        raise LoadError(f"{path} is empty: get the file again") from error
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error


class _Reader:
    """A cursor over the header; reading past the end raises struct.error or IndexError."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def header(self) -> GGUFHeader:
        magic, version = self._data[:4], 0
        if magic == b"GGUF":
            self._at = 4
            version = self._scalar("I")
        if version not in (2, 3):
            raise LoadError(f"{self._path} is no GGUF file of version 2 or 3 (starts with {magic!r})")
        num_tensors, num_metadata = self._scalar("Q"), self._scalar("Q")
        metadata: dict[str, Value] = {}
        for _ in range(num_metadata):
            key = self._string()
            metadata[key] = self._value(self._scalar("I"))
        found: dict[str, tuple[str, tuple[int, ...], int]] = {}
        for _ in range(num_tensors):
            name = self._string()
            columns_first = self._unpack("Q", self._scalar("I"))
            kind = self._scalar("I")
            found[name] = _TYPE_NAMES.get(kind, f"type {kind}"), columns_first[::-1], self._scalar("Q")
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0:
            raise LoadError(
                f"{self._path}: general.alignment should be a positive number, but is {alignment!r}"
            )
        data_start = -(-self._at // alignment) * alignment
        tensors = {n: GGUFTensor(kind, shape, data_start + at) for n, (kind, shape, at) in found.items()}
        return GGUFHeader(self._path, len(self._data), metadata, tensors)

    def _scalar(self, code: str) -> int:
        return self._unpack(code, 1)[0]

    def _unpack(self, code: str, count: int) -> tuple[int, ...]:
        form = f"<{count}{code}"
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _skip(self, num_bytes: int) -> None:
        self._at += num_bytes
        if self._at > len(self._data):
            raise IndexError(self._at)

    def _string(self) -> str:
        length = self._scalar("Q")
        start = self._at
        self._skip(length)
        return self._data[start : self._at].decode()

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._scalar("I"), self._scalar("Q")
            if inner in _SCALARS:
                return list(self._unpack(_SCALARS[inner], count))
            return [self._value(inner) for _ in range(count)]
        if kind not in _SCALARS:
            raise LoadError(f"{self._path} is damaged: unknown metadata type {kind}")
        return self._scalar(_SCALARS[kind])
