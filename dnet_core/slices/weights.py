"""Weights of a window: mlx-lm's own loader builds the model lazily, then only what a shard owns is read.

Nothing is evaluated by the loader, so layers that are not owned never take memory; quantisation, renaming
and stacking of experts are exactly mlx-lm's. Embedding, norm and head are read by the first pass over a
window that uses them.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from dnet_core.errors import LoadError, UnsupportedModel
from dnet_core.slices.window import WindowedModel


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
