"""Streamed layers, read ahead on the loader thread, for the compute thread to run.

    compute   [ layer 3 ][ layer 4 ]   waits   [ layer 5 ] ...
    loader    [ read 4  ][ read 5            ][ read 6 ] ...          2 buffers

All decisions are taken on the compute thread, when a layer's turn begins and when it ends; the loader thread
works off the reads it is given, in order. So a read starts when a buffer is free and the disk is idle,
whether or not a frame is here: reads go on across windows, rounds and tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx

from dnet_core.errors import NotReady
from dnet_core.shard.mlx_thread import MlxThread
from dnet_core.slices.layers import LayerBuffer, StreamedLayer
from dnet_core.slices.residency import cycle_after, cycle_from, decide
from dnet_core.slices.window import WindowedModel
from dnet_core.store.repack import LayerReader


@dataclass(frozen=True, slots=True)
class _Held:
    """A buffer in use: its layer's parameters are read, being read, or waiting to be."""

    buffer: LayerBuffer
    read: Future[dict[str, mx.array]]


@dataclass(frozen=True, slots=True)
class Reads:
    """Streamed layers that were read: their bytes, and the seconds it took."""

    num_bytes: int
    seconds: float

    def __add__(self, other: Reads) -> Reads:
        return Reads(self.num_bytes + other.num_bytes, self.seconds + other.seconds)

    def __sub__(self, other: Reads) -> Reads:
        return Reads(self.num_bytes - other.num_bytes, self.seconds - other.seconds)


@dataclass(frozen=True, slots=True)
class Spent:
    """What streaming has done for compute, and cost it, in some time."""

    waited_s: float
    reads: Reads


class Stopped(Exception):
    """What runs is wanted no more: no other layer is waited for."""


class LayerStream:
    """The streamed layers of one loaded model, in at most as many buffers. Owned by the compute thread.

    `read`, the sum of all reads so far, is set by the loader thread; `end` may come from the event loop.
    """

    def __init__(
        self, model: WindowedModel, layers: Mapping[int, StreamedLayer], num_buffers: int, thread: MlxThread
    ) -> None:
        """`layers` by index. Allocates the buffers, and makes `model` run these layers in turns."""
        self._layers = layers
        self._order = tuple(sorted(layers))  # windows come in the order of their layers
        self._num_buffers = num_buffers
        self._thread = thread
        self._reader = LayerReader()
        self._held: dict[int, _Held] = {}
        self._ended = False
        self._is_wanted: Callable[[], bool] = lambda: True
        self._waited_s = 0.0
        self._told = Reads(0, 0.0)
        self.read = Reads(0, 0.0)
        model.stream(self._order, self.turn)
        size = max(layer.file.num_bytes for layer in layers.values())
        self._free = thread.submit(lambda: [LayerBuffer(size) for _ in range(num_buffers)]).result()

    def begin(self) -> None:
        """Start reading what the first token needs."""
        self._arrange(self._order)

    def end(self) -> None:
        """Let there be no other turn: what runs raises NotReady at its next layer. Safe from any thread."""
        self._ended = True

    def close(self) -> None:
        """Let no more reads begin, and wait for the one in hand. There are no more turns."""
        self._ended = True
        for held in self._held.values():
            held.read.cancel()
        wait([held.read for held in self._held.values()])
        self._held.clear()
        self._reader.close()

    def watch(self, is_wanted: Callable[[], bool]) -> None:
        """Ask `is_wanted` before every turn whether what runs is to go on."""
        self._is_wanted = is_wanted

    @contextmanager
    def turn(self, layer: int) -> Iterator[None]:
        """The weights of `layer` are there inside; all that is computed from them must be evaluated inside.

        Raises LoadError when they cannot be read (a later turn tries again), NotReady when ended, Stopped
        when what runs is not wanted any more.
        """
        if not self._is_wanted():
            raise Stopped
        if self._ended:
            raise NotReady("the model is being unloaded")
        begun = time.monotonic()
        try:
            parameters = self._parameters(layer)
        finally:
            self._waited_s += time.monotonic() - begun
        self._layers[layer].slots.put(parameters)
        try:
            yield
        finally:
            self._layers[layer].slots.clear()
            self._arrange(cycle_after(self._order, layer))

    def take_spent(self) -> Spent:
        """How long compute has waited for bytes, and what has been read, since the last call."""
        read = self.read
        spent = Spent(self._waited_s, read - self._told)
        self._told, self._waited_s = read, 0.0
        return spent

    def _parameters(self, layer: int) -> dict[str, mx.array]:
        """Wait for the layer's bytes. A read ahead that failed is tried again: the file may be back."""
        read = self._await(layer)
        if read.exception() is not None:
            self._release(layer)
            read = self._await(layer)
        if read.exception() is not None:
            self._release(layer)
        return read.result()

    def _await(self, layer: int) -> Future[dict[str, mx.array]]:
        """The finished read of `layer`."""
        self._arrange(cycle_from(self._order, layer))
        while layer not in self._held:
            # Every buffer waits for a read that has begun, of a layer that is not needed now.
            wait([held.read for held in self._held.values()], return_when=FIRST_COMPLETED)
            self._arrange(cycle_from(self._order, layer))
        wait([self._held[layer].read])
        return self._held[layer].read

    def _arrange(self, upcoming: Iterable[int]) -> None:
        in_memory = [layer for layer, held in self._held.items() if held.read.done()]
        pending = [layer for layer in self._held if layer not in in_memory]
        decision = decide(upcoming, in_memory, pending, self._num_buffers)
        for layer in decision.drop:
            self._release(layer)
        for layer in decision.cancel:
            if self._held[layer].read.cancel():
                self._release(layer)
        for layer in decision.read:
            if layer not in self._held and self._free:
                buffer = self._free.pop()
                self._held[layer] = _Held(buffer, self._submit(layer, buffer))

    def _release(self, layer: int) -> None:
        self._free.append(self._held.pop(layer).buffer)

    def _submit(self, layer: int, buffer: LayerBuffer) -> Future[dict[str, mx.array]]:
        file = self._layers[layer].file

        def read() -> dict[str, mx.array]:
            begun = time.monotonic()
            parameters = buffer.fill(file, self._reader)
            self.read += Reads(file.num_bytes, time.monotonic() - begun)
            return parameters

        return self._thread.submit(read)
