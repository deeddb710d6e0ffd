"""Weights that a shard holds and is told to hold again: a ring that is made anew moves only what must move.

    before   [ 0 ][ 1 ][ 2 ][ 3 ]                      loaded
    after              [ 2 ][ 3 ][ 4 ][ 5 ]            2 and 3 are handed over, 4 and 5 are read

A load always builds a new model object, without weights; what is kept is put there in the place of arrays
that would be read. Everything else of the old object is freed before a byte is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from dnet_core.slices.window import WindowedModel
from dnet_core.transport.control import LoadOrder


@dataclass(frozen=True, slots=True)
class Kept:
    """Parameters by layer, and those of no layer (None: not kept), of the model with this fingerprint."""

    fingerprint: str
    layers: dict[int, Any]
    others: list[tuple[str, mx.array]] | None

    def put_into(self, model: WindowedModel, fingerprint: str) -> None:
        """Let `model` have them, if its files are the same."""
        if fingerprint != self.fingerprint:
            return
        for index, parameters in self.layers.items():
            model.layers[index].update(parameters)
        if self.others is not None:
            model.module.load_weights(self.others, strict=False)


def keep(model: WindowedModel, fingerprint: str, before: LoadOrder, after: LoadOrder) -> Kept:
    """What `after` needs of `model`, which was loaded as `before` says; nothing is copied.

    Layers that stay in memory both times; embedding, norm and head only if none of them would be in excess.
    """
    kept = {index: model.layers[index].parameters() for index in before.resident & after.resident}
    if before.is_first > after.is_first or before.is_last > after.is_last:
        return Kept(fingerprint, kept, None)
    of_layers = {id(array) for layer in model.layers for _, array in tree_flatten(layer.parameters())}
    named = tree_flatten(model.module.parameters())
    return Kept(fingerprint, kept, [(name, array) for name, array in named if id(array) not in of_layers])
