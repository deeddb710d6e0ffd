"""Weights of a window: mlx-lm's own loader builds the model lazily, then only what a shard owns is read.

Nothing is evaluated by the loader, so layers that are not owned never take memory; quantisation, renaming
and stacking of experts are exactly mlx-lm's. Embedding, norm and head are read by the first pass over a
window that uses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from dnet_core.errors import LoadError, UnsupportedModel
from dnet_core.slices.window import WindowedModel
from dnet_core.store.checkpoint import Checkpoint


def open_model(directory: Path, name: str) -> WindowedModel:
    """Build the model in `directory` without reading a weight.

    Raises UnsupportedModel (architecture, quantisation, custom code) or LoadError (files).
    """
    try:
        model, _ = load_model(directory, lazy=True)
    except (FileNotFoundError, RuntimeError) as error:
        raise LoadError(f"the weights in {directory} cannot be opened: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        # mlx-lm tells an unknown architecture or quantisation, and weights that do not fit the config, in
        # these; which one it is stands in its text.
        raise UnsupportedModel(name, f"mlx-lm cannot build it: {error}") from error
    return WindowedModel(model, name)


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of all parameters of `module`, read or not."""
    return sum(array.nbytes for _, array in tree_flatten(module.parameters()))


def read_parameters(module: nn.Module, name: str) -> None:
    """Read all parameters of `module` into memory. Raises LoadError when the files do not hold them."""
    try:
        mx.eval(module.parameters())
    except RuntimeError as error:
        raise LoadError(f"the weights of '{name}' cannot be read: {error}") from error


def stored_as_is(model: WindowedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """The parameters that are a tensor of the checkpoint, bit for bit: parameter -> tensor.

    mlx-lm is asked: what its `sanitize` hands through, under whatever name, is the very object that it was
    given. Checkpoints that are converted while they are loaded have none.
    """
    directory = checkpoint.directory
    assert directory is not None, "only headers are here"
    files = sorted(path.name for path in directory.glob("model*.safetensors"))
    if files != sorted(checkpoint.file_bytes) or _is_converted(directory, checkpoint.config):
        return {}
    raw: dict[str, mx.array] = {}
    for name in files:
        raw.update(cast("dict[str, mx.array]", mx.load(str(directory / name))))
    names = {id(array): name for name, array in raw.items()}
    sanitize = getattr(model.module, "sanitize", dict)
    sanitized: dict[str, mx.array] = sanitize(dict(raw))
    return {parameter: names[id(array)] for parameter, array in sanitized.items() if id(array) in names}


def _is_converted(directory: Path, config: dict[str, Any]) -> bool:
    """Whether mlx-lm may change weights behind `sanitize`: it does for other programs' quantisation."""
    text_config = config.get("text_config")
    configs = (config, text_config if isinstance(text_config, dict) else {})
    is_foreign = (
        any("quantization_config" in c for c in configs) or (directory / "hf_quant_config.json").exists()
    )
    return is_foreign and "quantization" not in config
