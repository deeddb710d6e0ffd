"""Models to choose from, and what they would do on the devices at hand."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ModelOrigin(StrEnum):
    """How a model became known."""

    SAMPLE = "sample"  # comes with the program
    IMPORTED = "imported"  # made from a GGUF file
    CACHED = "cached"  # whole in the hub's cache
    PARTIAL = "partial"  # a fetch was interrupted
    LISTED = "listed"  # one of the well-known
    FOUND = "found"  # by a search on the hub


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model. What is not known without a network or a header is None.

    `here_bytes` are on this machine; a model that `is_here` needs no network.
    """

    id: str
    origin: ModelOrigin
    size_bytes: int | None
    here_bytes: int
    quantization: str | None
    num_layers: int | None
    is_gated: bool = False

    @property
    def is_here(self) -> bool:
        return self.origin in (ModelOrigin.SAMPLE, ModelOrigin.IMPORTED, ModelOrigin.CACHED)


@dataclass(frozen=True, slots=True)
class Room:
    """Where fetched models are put, and how many bytes are free there."""

    folder: str
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Fits:
    """The solver places the model; `num_streamed` of its layers are read from disk for every token.

    `is_measured`: the devices were measured with weights of this format, else their figures for another
    format stand in.
    """

    num_layers: int
    weight_bytes: int
    num_devices: int
    num_streamed: int
    tokens_per_s: float
    ttft_s: float
    is_measured: bool


@dataclass(frozen=True, slots=True)
class TooBig:
    """No plan holds the model; `missing_bytes` is about what is missing in all, zero where that is not it."""

    num_layers: int
    weight_bytes: int
    missing_bytes: int
    reason: str


ModelFit = Fits | TooBig
