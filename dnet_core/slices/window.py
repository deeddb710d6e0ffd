"""Run a window of any mlx-lm model through the model's own forward pass.

For one call the list of layers is replaced by stand-ins:

    layer     0 .. start-1              start .. stop-2   stop-1             stop .. L-1
    becomes   returns what was          the layer         the layer, its     returns what was
              received                  itself            output is kept     kept

So the code between, before and after the layers is the model's, for every architecture. MLX is lazy: what
the model builds around a window (embedding, masks of other layers, norm and head below the tail) is never
computed, and weights that are never used are never read.

Activations are injected as the *return value* of the layer before the window, so architectures that hand a
tuple from layer to layer need no code here, and what a model does between two layers runs exactly once, on
the receiving side.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import CacheList, make_prompt_cache

from dnet_core.errors import ProtocolError, UnsupportedModel
from dnet_core.slices.adapters import check_splittable, hands_on_hidden_only
from dnet_core.slices.hidden import Arrays, Hole, arrays_of, fill
from dnet_core.slices.kv import CacheSize, cache_size
from dnet_core.slices.wrapped import LastToken, Observer, StandIn, Streamed, Wrapped
from dnet_core.types.ring import LayerWindow

BEGIN_EVERY = 4
"""Layers after which MLX begins to compute: the ring waits for this window, so nothing is only built."""


class End(Enum):
    """What a window that ends with the last layer gives."""

    LOGITS = "logits"  # [batch, tokens, vocabulary]
    LAST = "last"  # [batch, 1, vocabulary]: of the last token; of all where the head is not apart
    HIDDEN = "hidden"  # [batch, tokens, hidden], as the model's body hands it to the LM head: after the norm


@dataclass(frozen=True, slots=True)
class _LayerUse:
    """What one pass through the model showed of one layer."""

    slots: tuple[int, ...]  # indices into the cache list that the layer was given
    output: Any  # what it returns for one token, with holes for arrays


class WindowedModel:
    """mlx-lm's model object, of which windows `[start, stop)` can be run. Owned by the compute thread."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self._model = model
        self._name = name
        self.layers: list[nn.Module] = list(model.layers)
        self._running: list[Any] = list(self.layers)  # what runs for them: streamed ones are wrapped
        self._streams = False
        self._entering: Any = None
        self._leaving: Any = None
        self._kinds = [_kind(c) for c in self.make_cache()]
        self._slots: dict[LayerWindow, tuple[int, ...]] = {}
        self._lists: dict[LayerWindow, list[Any]] = {}
        self._sources: dict[LayerWindow, list[int | None]] = {}
        self._blanks = self.make_cache()

    @property
    def module(self) -> nn.Module:
        """mlx-lm's own model object."""
        return self._model

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def make_cache(self) -> list[Any]:
        """The model's own caches for one sequence. Layers that never run here leave theirs empty."""
        cache: list[Any] = make_prompt_cache(self._model)
        return cache

    def check_windows(self, windows: tuple[LayerWindow, ...]) -> None:
        """Raise UnsupportedModel unless these windows are known to compute what the whole model does.

        One window over all layers is the model itself, whatever its architecture.
        """
        if any(len(window) < self.num_layers for window in windows):
            check_splittable(self._model, self._name)
            assert len(self._uses) == self.num_layers

    def stream(self, layers: Collection[int], turn: Callable[[int], AbstractContextManager[None]]) -> None:
        """From now on run each of `layers` inside `turn(layer)`, with everything evaluated at its end.

        Raises UnsupportedModel unless layers of this architecture are known to depend on nothing but what
        they are given: another one might use weights that are not there.
        """
        check_splittable(self._model, self._name)
        for layer in layers:
            self._running[layer] = Streamed(self.layers[layer], partial(turn, layer))
        self._streams = True

    def slots(self, window: LayerWindow) -> tuple[int, ...]:
        """Indices into the cache list that belong to `window`: those of its layers, and with the first
        window those of the embedding.
        """
        found = self._slots.get(window)
        if found is None:
            found = self._slots[window] = tuple(sorted(self._own_slots(window)))
        return found

    def _own_slots(self, window: LayerWindow) -> set[int]:
        every = set(range(len(self._kinds)))
        if len(window) == self.num_layers:
            return every
        own = {slot for layer in window.layers for slot in self._uses[layer].slots}
        if window.start == 0:
            own |= every - {slot for use in self._uses for slot in use.slots}
        return own

    def embed_and_run(
        self,
        window: LayerWindow,
        tokens: mx.array,
        cache: list[Any],
        position: int,
        end: End = End.LOGITS,
    ) -> Arrays:
        """Run a first window `[0, stop)` on token ids `[batch, tokens]`, the first one at `position`."""
        assert window.start == 0, f"{window} does not begin with the embedding"
        return self._forward(window, tokens, None, cache, position, end)

    def run(
        self,
        window: LayerWindow,
        received: Arrays,
        cache: list[Any],
        position: int,
        end: End = End.LOGITS,
    ) -> Arrays:
        """Run `window` on the output of the layer before it, for the tokens from `position` on.

        Both are what the layers hand on, as arrays. When the window ends with the last layer the result is
        one array: what `end` says.
        """
        assert window.start > 0, f"{window} begins with the embedding: it takes token ids"
        batch, num_tokens = received[0].shape[:2]
        ids = mx.zeros((batch, num_tokens), mx.int32)  # for its shape: the embedding is never computed
        entering = fill(self._uses[window.start - 1].output, list(received))
        return self._forward(window, ids, entering, cache, position, end)

    def check_hidden(self) -> None:
        """Raise UnsupportedModel unless the model shows its hidden states apart from its logits."""
        holder, key = self._body
        found: list[Any] = []
        body = holder[key]
        holder[key] = Observer(body, lambda _arguments, output: found.append(output))
        try:
            self._model(mx.zeros((1, 1), mx.int32), cache=self.make_cache())
        finally:
            holder[key] = body
        if len(found) != 1 or not isinstance(found[0], mx.array) or found[0].shape[:2] != (1, 1):
            raise UnsupportedModel(self._name, "its hidden states cannot be had: it cannot embed")

    @cached_property
    def vocab_size(self) -> int:
        """How many token ids the model knows: as many as it has logits."""
        logits, _ = self._one_token()
        return logits.shape[-1]

    def cache_sizes(self, kv_bits: int, chunk_tokens: int) -> tuple[CacheSize, ...]:
        """What the caches of a sequence take, by slot, when its prompt comes in chunks of `chunk_tokens`."""
        _, cache = self._one_token()
        return tuple(cache_size(part, kv_bits, chunk_tokens) for part in cache)

    def _one_token(self) -> tuple[mx.array, list[Any]]:
        """Logits and caches of one token through the whole model; nothing is computed."""
        cache = self.make_cache()
        return self._model(mx.zeros((1, 1), mx.int32), cache=cache), cache

    def check_tokens(self, tokens: tuple[int, ...]) -> None:
        """Raise ProtocolError unless all are tokens of the model: MLX would read beyond the embedding."""
        if not tokens or not all(0 <= token < self.vocab_size for token in tokens):
            raise ProtocolError(f"tokens {tokens[:8]} arrived, but the model has {self.vocab_size}")

    def check_input(self, window: LayerWindow, received: Arrays, num_tokens: int) -> None:
        """Raise ProtocolError unless `received` is what comes out of the layer before, for `num_tokens`."""
        holes = [hole for _, hole in tree_flatten(self._uses[window.start - 1].output) if hole is not None]
        fits = (
            len(received) == len(holes)
            and received[0].shape[:2] == (1, num_tokens)
            and all(hole.fits(array, num_tokens) for array, hole in zip(received, holes, strict=True))
        )
        if not fits or num_tokens < 1:
            arrived = ", ".join(f"{array.dtype} {array.shape}" for array in received)
            raise ProtocolError(f"{num_tokens} tokens arrived at layers {window} as [{arrived}]")

    def blank_input(self, window: LayerWindow) -> Arrays:
        """Zeros of the shapes and dtypes that `window` receives for one token."""
        holes = tree_flatten(self._uses[window.start - 1].output)
        return tuple(mx.zeros(hole.shape, hole.dtype) for _, hole in holes if isinstance(hole, Hole))

    def _forward(
        self, window: LayerWindow, ids: mx.array, entering: Any, cache: list[Any], position: int, end: End
    ) -> Arrays:
        if window.stop == self.num_layers:
            if end is End.HIDDEN:
                return self._forward_body(window, ids, entering, cache, position)
            if end is End.LAST and ids.shape[1] > 1 and self._head_is_apart:
                with self._body_as(LastToken):
                    return self._forward(window, ids, entering, cache, position, End.LOGITS)
        if len(window) == self.num_layers and not self._streams:
            return (self._model(ids, cache=cache),)
        self._entering = entering
        owner, key = self._layer_list
        own_list = owner[key]
        owner[key] = self._stand_ins(window)
        try:
            logits = self._model(ids, cache=self._cache_for(window, cache, position))
            leaving = self._leaving
        finally:
            owner[key] = own_list
            self._entering = self._leaving = None
        if window.stop == self.num_layers:
            return (logits,)
        return arrays_of(leaving, self._uses[window.stop - 1].output)

    def _forward_body(
        self, window: LayerWindow, ids: mx.array, entering: Any, cache: list[Any], position: int
    ) -> Arrays:
        """As `_forward`, but what the body hands to the head; the head is built and never computed."""
        found: list[mx.array] = []
        with self._body_as(lambda body: Observer(body, lambda _arguments, output: found.append(output))):
            self._forward(window, ids, entering, cache, position, End.LOGITS)
        return (found[0],)

    @contextmanager
    def _body_as(self, wrap: Callable[[Any], Wrapped]) -> Iterator[None]:
        """The model's body is wrapped inside. Raises UnsupportedModel when it is not apart from the head."""
        holder, key = self._body
        body = holder[key]
        holder[key] = wrap(body)
        try:
            yield
        finally:
            holder[key] = body

    def _stand_ins(self, window: LayerWindow) -> list[Any]:
        found = self._lists.get(window)
        if found is not None:
            return found
        layers: list[Any] = [StandIn(layer, lambda: self._entering) for layer in self.layers[: window.start]]
        for index in range(window.start, window.stop - 1):
            layer = self._running[index]
            starts = (index - window.start) % BEGIN_EVERY == BEGIN_EVERY - 1
            layers.append(Observer(layer, _begin) if starts else layer)
        layers.append(Observer(self._running[window.stop - 1], self._keep))
        layers += [StandIn(layer, lambda: self._leaving) for layer in self.layers[window.stop :]]
        self._lists[window] = layers
        return layers

    def _keep(self, _arguments: tuple[Any, ...], output: Any) -> None:
        self._leaving = output

    def _cache_for(self, window: LayerWindow, cache: list[Any], position: int) -> list[Any]:
        """`cache`, with the slots of other layers filled by an equal cache of this window.

        Models make masks from the cache of one particular layer (often the first). Inside a window all caches
        of a kind have seen the same tokens, so any of them gives the same mask. Where the window has none of
        the kind nobody uses the mask, but some models read the position off that cache: a blank one has it.
        """
        sources = self._sources.get(window)
        if sources is None:
            own = self.slots(window)
            like = {self._kinds[slot]: slot for slot in reversed(own)}
            sources = [s if s in own else like.get(kind) for s, kind in enumerate(self._kinds)]
            self._sources[window] = sources
        for blank, source in zip(self._blanks, sources, strict=True):
            if source is None:
                _set_position(blank, position)
        return [
            blank if source is None else cache[source]
            for blank, source in zip(self._blanks, sources, strict=True)
        ]

    def _holes(self, output: Any) -> Any:
        """The shape of what a layer returned. Raises UnsupportedModel when it cannot travel as arrays."""
        match output:
            case mx.array():
                return Hole(output.shape, output.dtype)
            case tuple() | list() if hands_on_hidden_only(self._model):
                return type(output)([self._holes(output[0]), *(None for _ in output[1:])])
            case tuple() | list():
                return type(output)(self._holes(part) for part in output)
            case None:
                return None
        raise UnsupportedModel(self._name, f"its layers hand on a {type(output).__name__}, not only arrays")

    @cached_property
    def _layer_list(self) -> tuple[dict[str, Any], str]:
        return _find_layer_list(self._model, self._name)

    @cached_property
    def _body(self) -> tuple[dict[str, Any], str]:
        """The module, and its attribute, that holds the one with the layers. Raises UnsupportedModel."""
        body, _ = self._layer_list
        for _, module in self._model.named_modules():
            for key, value in module.items():
                if value is body:
                    return module, key
        raise UnsupportedModel(self._name, "its head is not apart from its layers: it cannot embed")

    @cached_property
    def _head_is_apart(self) -> bool:
        try:
            return bool(self._body)
        except UnsupportedModel:
            return False

    @cached_property
    def _uses(self) -> tuple[_LayerUse, ...]:
        """Pass one token through the whole model, lazily, and note what each layer is given and returns.

        Raises UnsupportedModel when layers do not run once each, in order, with caches of their own.
        """
        cache = self.make_cache()
        slot_of = {id(c): slot for slot, c in enumerate(cache)}
        order: list[int] = []
        uses: dict[int, _LayerUse] = {}

        def watch(index: int) -> Callable[[tuple[Any, ...], Any], None]:
            def saw(arguments: tuple[Any, ...], output: Any) -> None:
                order.append(index)
                slots = tuple(slot_of[id(a)] for a in arguments if id(a) in slot_of)
                uses[index] = _LayerUse(slots, self._holes(output))

            return saw

        owner, key = self._layer_list
        own_list = owner[key]
        owner[key] = [Observer(layer, watch(i)) for i, layer in enumerate(self.layers)]
        try:
            self._model(mx.zeros((1, 1), mx.int32), cache=cache)
        finally:
            owner[key] = own_list
        if order != list(range(self.num_layers)):
            raise UnsupportedModel(self._name, "its layers do not run exactly once each, in order")
        claimed = [slot for use in uses.values() for slot in use.slots]
        if len(set(claimed)) != len(claimed):
            raise UnsupportedModel(self._name, "some of its layers share one KV cache")
        return tuple(uses[i] for i in range(self.num_layers))


def _begin(_arguments: tuple[Any, ...], output: Any) -> None:
    """Let MLX compute what has been built so far while the rest of the window is built."""
    mx.async_eval(output)  # type: ignore[no-untyped-call]


def _set_position(cache: Any, position: int) -> None:
    for part in cache.caches if isinstance(cache, CacheList) else (cache,):
        if hasattr(part, "offset"):
            part.offset = position


def _kind(cache: Any) -> tuple[Any, ...]:
    """What must be equal for two caches to give the same mask."""
    if isinstance(cache, CacheList):
        return (CacheList, *(_kind(part) for part in cache.caches))
    return (type(cache), getattr(cache, "max_size", None), getattr(cache, "chunk_size", None))


def _find_layer_list(model: nn.Module, name: str) -> tuple[dict[str, Any], str]:
    """The module, and its attribute, that holds the list which `model.layers` shows."""
    layers = list(model.layers)
    for _, module in model.named_modules():
        for key, value in module.items():
            if (
                isinstance(value, list)
                and len(value) == len(layers)
                and all(a is b for a, b in zip(value, layers, strict=True))
            ):
                return module, key
    raise UnsupportedModel(name, "its layers are not one plain list")
