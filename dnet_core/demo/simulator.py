"""An event simulator of a ring: tokens, computes, disk reads into buffers and hops; no formula of the solver.

Every device has one compute unit, which serves frames in the order in which they come, and one disk. The
disk reads the streamed layers in the order in which they are used, round after round and token after token;
it starts the next read as soon as it is idle and a buffer is free; a buffer is free again when its layer has
been computed.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Layer:
    """Seconds to compute a layer, and to read it from disk; None when it is in memory."""

    compute_s: float
    read_s: float | None


@dataclass(frozen=True, slots=True)
class Visit:
    """One window: the device that runs it, its layers, and the hop that brings a frame to it."""

    device: int
    layers: tuple[Layer, ...]
    hop_s: float


@dataclass(frozen=True, slots=True)
class SimulatedRing:
    """The way of a frame: its visits in order, what comes after the last one, and the hop back to the first.

    `num_buffers` per device; `head_s` is the time of norm, LM head and sampling on the last device.
    """

    visits: tuple[Visit, ...]
    head_s: float
    back_s: float
    num_buffers: tuple[int, ...]


@dataclass(slots=True)
class Passage:
    """What one visit of one frame took: waiting for its turn, waiting for bytes, computing."""

    frame: int
    visit: int
    queue_s: float
    disk_wait_s: float = 0.0
    compute_s: float = 0.0


@dataclass(slots=True)
class _Device:
    """State of one device; its disk reads the cycle `reads` again and again."""

    reads: list[float]
    free: int
    next_read: int = 0
    reading: bool = False
    ready: int = 0
    waiting: Callable[[], None] | None = None
    queue: deque[tuple[float, int, int]] = field(default_factory=deque)  # (since, frame, visit)
    busy: bool = False


class Simulator:
    """A clock and a heap of what happens next; `token_times` and `chunk_times` are the two questions to it.

    `passages` tells afterwards what every visit took, in the order in which they began.
    """

    def __init__(self, ring: SimulatedRing) -> None:
        self._ring = ring
        self._now = 0.0
        self._count = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._finished: list[float] = []
        self.passages: list[Passage] = []
        self._then: Callable[[int], None] = lambda frame: None
        self._last_frame = 0
        devices = range(len(ring.num_buffers))
        self._devices = [_Device(self._cycle(d), ring.num_buffers[d]) for d in devices]

    def token_times(self, tokens: int) -> list[float]:
        """When each of `tokens` tokens is sampled; a token starts when the one before it has come back."""

        def again(frame: int) -> None:
            if len(self._finished) < tokens:
                self._after(self._ring.back_s, lambda: self._arrive(frame, 0))

        self._then = again
        self._start_disks()
        self._arrive(0, 0)
        self._run()
        return self._finished

    def chunk_times(self, chunks: int) -> list[float]:
        """When each of `chunks` chunks, all there at the start, has passed; only the last has a head."""
        self._last_frame = chunks - 1
        self._start_disks()
        for frame in range(chunks):
            self._arrive(frame, 0)
        self._run()
        return self._finished

    def _cycle(self, device: int) -> list[float]:
        layers = (layer for visit in self._ring.visits if visit.device == device for layer in visit.layers)
        return [layer.read_s for layer in layers if layer.read_s is not None]

    def _run(self) -> None:
        while self._heap:
            self._now, _, event = heapq.heappop(self._heap)
            event()

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self._now + seconds, self._count, event))

    def _start_disks(self) -> None:
        for device in self._devices:
            self._read(device)

    def _read(self, device: _Device) -> None:
        """Let the disk start its next read, if it can."""
        if device.reading or not device.free or not device.reads:
            return
        device.reading = True
        device.free -= 1
        seconds = device.reads[device.next_read % len(device.reads)]
        device.next_read += 1
        self._after(seconds, lambda: self._read_done(device))

    def _read_done(self, device: _Device) -> None:
        device.reading = False
        device.ready += 1
        self._read(device)
        if device.waiting is not None:
            resume, device.waiting = device.waiting, None
            resume()

    def _arrive(self, frame: int, visit: int) -> None:
        device = self._devices[self._ring.visits[visit].device]
        device.queue.append((self._now, frame, visit))
        if not device.busy:
            self._serve(device)

    def _serve(self, device: _Device) -> None:
        """Take the next frame from the queue."""
        device.busy = bool(device.queue)
        if device.busy:
            since, frame, visit = device.queue.popleft()
            passage = Passage(frame, visit, self._now - since)
            self.passages.append(passage)
            self._layer(device, passage, 0)

    def _layer(self, device: _Device, passage: Passage, at: int) -> None:
        """Compute layer `at` of the visit, when its bytes are there."""
        layers = self._ring.visits[passage.visit].layers
        if at == len(layers):
            head = passage.visit == len(self._ring.visits) - 1 and passage.frame == self._last_frame
            head_s = self._ring.head_s if head else 0.0
            passage.compute_s += head_s
            self._after(head_s, lambda: self._leave(device, passage.frame, passage.visit))
            return
        layer = layers[at]
        if layer.read_s is not None:
            if not device.ready:
                device.waiting = lambda since=self._now: self._layer_read(device, passage, at, since)
                return
            device.ready -= 1
        passage.compute_s += layer.compute_s
        self._after(layer.compute_s, lambda: self._computed(device, passage, at))

    def _layer_read(self, device: _Device, passage: Passage, at: int, since: float) -> None:
        passage.disk_wait_s += self._now - since
        self._layer(device, passage, at)

    def _computed(self, device: _Device, passage: Passage, at: int) -> None:
        if self._ring.visits[passage.visit].layers[at].read_s is not None:
            device.free += 1
            self._read(device)
        self._layer(device, passage, at + 1)

    def _leave(self, device: _Device, frame: int, visit: int) -> None:
        if visit == len(self._ring.visits) - 1:
            self._finished.append(self._now)
            self._then(frame)
        else:
            hop_s = self._ring.visits[visit + 1].hop_s
            self._after(hop_s, lambda: self._arrive(frame, visit + 1))
        self._serve(device)


def seconds_per_token(ring: SimulatedRing, tokens: int = 24) -> float:
    """Seconds per token in steady state: the mean over the second half of `tokens` tokens."""
    times = Simulator(ring).token_times(tokens)
    half = tokens // 2
    return (times[-1] - times[half - 1]) / (tokens - half)
