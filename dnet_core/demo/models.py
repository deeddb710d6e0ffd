"""The models of a demonstration: the well-known ones and the sample, by their shapes."""

from __future__ import annotations

from dnet_core.errors import UnknownModel
from dnet_core.profile.published import WELL_KNOWN, Shape

SAMPLE = Shape("smollm2-135m-instruct", "llama", "bf16", 30, 576, 1536, 9, 3, 64, 49_152, context_tokens=8192)
MODELS = (SAMPLE, *WELL_KNOWN)
_SHOWN = (
    "mlx-community/Qwen3-30B-A3B-4bit",
    "mlx-community/Llama-3.3-70B-Instruct-4bit",
    "mlx-community/Llama-3.3-70B-Instruct-4bit",
    "mlx-community/Qwen3-235B-A22B-4bit",
    "mlx-community/GLM-4.6-4bit",
)
"""By number of Macs."""


def find(model: str) -> Shape:
    """Raises UnknownModel."""
    for shape in MODELS:
        if shape.id == model:
            return shape
    raise UnknownModel(model, f"the demonstration has {', '.join(shape.id for shape in MODELS)}")


def for_macs(count: int) -> str:
    """A model that shows what so many Macs are good for."""
    return _SHOWN[min(count, len(_SHOWN)) - 1]
