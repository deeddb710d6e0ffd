"""What MLX says of itself and of the device; nothing is measured, and mlx-lm is not imported for it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class MlxFacts:
    """`recommended_working_set_bytes` is None off Apple's GPUs."""

    version: str
    backend: str  # "metal", "cuda", "cpu"
    device_name: str
    recommended_working_set_bytes: int | None


def mlx_facts() -> MlxFacts:
    """Ask MLX what it computes on here."""
    info = mx.device_info()
    working_set = int(info["max_recommended_working_set_size"]) if backend() == "metal" else None
    return MlxFacts(metadata.version("mlx"), backend(), str(info["device_name"]), working_set)


def backend() -> str:
    """What MLX computes on here: "metal", "cuda" or "cpu"."""
    if mx.default_device() != mx.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"
