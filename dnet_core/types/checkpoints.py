"""A model's files as values: its config, and where the bytes of each tensor are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor: bytes `[start, stop)` of `file`, counted from the start of the file."""

    file: str
    dtype: str  # as safetensors names it: "F32", "BF16", "U32", ...
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model's config and all its tensors by name.

    `directory` is None when only the headers were fetched. `fingerprint` is equal for equal models,
    wherever they lie: config, tensors, and file sizes go into it (not the weights themselves).
    """

    model: str
    directory: Path | None
    config: dict[str, Any]
    tensors: dict[str, TensorRecord]
    file_bytes: dict[str, int]
    fingerprint: str

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])

    @property
    def weight_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors.values())
