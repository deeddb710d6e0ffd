"""What a model's authors recommend for sampling: generation_config.json, as far as it can be used."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dnet_core.store.tokenizer_files import read_json
from dnet_core.types.generation import RECOMMENDABLE, SamplingParams

log = logging.getLogger(__name__)


def _whole(value: float) -> int:
    if value % 1:  # infinity, too
        raise ValueError(f"top_k must be a whole number, not {value}")
    return int(value)


def recommended_sampling(model_dir: Path) -> SamplingParams:
    """The sampling that the authors of the model in `model_dir` recommend.

    Greedy where they do not say that it samples (`do_sample`): so do mlx-lm and transformers. A value that
    cannot be used is passed over. Raises LoadError when the file cannot be read.
    """
    told = read_json(model_dir / "generation_config.json")
    if told.get("do_sample") is not True:
        return SamplingParams()
    found: dict[str, Any] = {"temperature": 1.0}
    for name in RECOMMENDABLE:
        value = told.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        try:
            wish: dict[str, Any] = {name: _whole(value) if name == "top_k" else value}
            SamplingParams(**wish)
        except ValueError as error:
            log.warning("%s, generation_config.json: %s; it is passed over", model_dir, error)
        else:
            found |= wish
    return SamplingParams(**found)
