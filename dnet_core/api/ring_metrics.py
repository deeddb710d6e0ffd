"""What happens on the ring, counted: a fold of the coordinator's events, told in Prometheus' text format."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dnet_core.coordinator import Coordinator
from dnet_core.events import (
    Event,
    LapMeasured,
    LoadFailed,
    ModelLoaded,
    PeerLeft,
    Recovered,
    RingLost,
    SessionEnded,
    SessionStarted,
)
from dnet_core.types.generation import StageTime

FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
NEXT_TOKEN_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5)

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Counts of values by upper bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


@dataclass(slots=True)
class _Disk:
    """What one device has read of streamed layers, and how long its compute has waited for that."""

    read_bytes: int = 0
    read_s: float = 0.0
    wait_s: float = 0.0

    def take(self, stage: StageTime) -> None:
        self.read_bytes += stage.read_bytes
        self.read_s += stage.read_s
        self.wait_s += stage.disk_wait_s


class RingMetrics:
    """The fold of events. Owned by the task that runs `listen`."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._stage_s: Counter[Labels] = Counter()
        self._disks: dict[str, _Disk] = {}  # by device
        self._disks_now: dict[str, _Disk] = {}  # the same since the model was loaded
        self._first_token = Histogram(FIRST_TOKEN_S)
        self._next_token = Histogram(NEXT_TOKEN_S)
        self._sessions: dict[str, tuple[int, float, bool]] = {}  # prompt tokens, last time, has a token

    async def listen(self, coordinator: Coordinator) -> None:
        """Take every event from now on."""
        async with coordinator.subscribe() as events:
            async for event in events:
                self.take(event, time.monotonic())

    def take(self, event: Event, now_s: float) -> None:
        match event:
            case SessionStarted():
                self._sessions[event.session] = (event.prompt_tokens, now_s, False)
            case LapMeasured():
                self._take_lap(event, now_s)
            case SessionEnded():
                self._sessions.pop(event.session, None)
                reason = str(event.finish_reason or "failed")
                self._counts["sessions_total", (("finish_reason", reason),)] += 1
                self._counts["prompt_tokens_total", ()] += event.prompt_tokens
                self._counts["cached_prompt_tokens_total", ()] += event.cached_tokens
                self._counts["completion_tokens_total", ()] += event.completion_tokens
            case ModelLoaded():
                self._disks_now.clear()
                self._counts["loads_total", (("result", "loaded"),)] += 1
            case LoadFailed():
                self._counts["loads_total", (("result", "failed"),)] += 1
            case RingLost():
                self._counts["rings_lost_total", ()] += 1
            case Recovered():
                self._counts["recoveries_total", ()] += 1
            case PeerLeft():
                self._counts["devices_lost_total", ()] += 1
            case _:
                pass  # other events are for the screen

    def _take_lap(self, event: LapMeasured, now_s: float) -> None:
        for stage in event.stages:
            for name in ("queue", "compute", "disk_wait", "wire"):
                labels = (("device", stage.peer), ("stage", name))
                self._stage_s[labels] += getattr(stage, f"{name}_s")
            for disks in (self._disks, self._disks_now):
                disks.setdefault(stage.peer, _Disk()).take(stage)
        prompt_tokens, last_s, has_token = self._sessions.get(event.session, (0, now_s, True))
        if event.position < prompt_tokens:
            return  # a chunk of the prompt
        (self._next_token if has_token else self._first_token).add(now_s - last_s)
        self._sessions[event.session] = (prompt_tokens, now_s, True)

    def _disk_lines(self) -> Iterator[str]:
        """Reads in all, in bytes and seconds; of the loaded model their speed, and how much was hidden."""
        total = _by_device(self._disks)
        yield from family("disk_read_bytes_total", "counter", {d: disk.read_bytes for d, disk in total})
        yield from family("disk_read_seconds_total", "counter", {d: disk.read_s for d, disk in total})
        yield from family("disk_stall_seconds_total", "counter", {d: disk.wait_s for d, disk in total})
        now = [(d, disk) for d, disk in _by_device(self._disks_now) if disk.read_s > 0]
        speeds = {d: disk.read_bytes / disk.read_s for d, disk in now}
        yield from family("disk_read_bytes_per_second", "gauge", speeds)
        hidden = {d: max(0.0, 1 - disk.wait_s / disk.read_s) for d, disk in now}
        yield from family("disk_overlap_ratio", "gauge", hidden)

    def lines(self) -> Iterator[str]:
        """The counters in Prometheus' text format."""
        yield from self._disk_lines()
        for name in sorted({name for name, _ in self._counts}):
            yield from family(name, "counter", {k[1]: n for k, n in self._counts.items() if k[0] == name})
        yield from family("stage_seconds_total", "counter", self._stage_s)
        for name, histogram in (
            ("time_to_first_token_seconds", self._first_token),
            ("time_per_output_token_seconds", self._next_token),
        ):
            yield f"# TYPE dnet_{name} histogram"
            yield from histogram.lines(f"dnet_{name}")


def _by_device(disks: Mapping[str, _Disk]) -> list[tuple[Labels, _Disk]]:
    return [((("device", device),), disk) for device, disk in disks.items()]


def family(name: str, kind: str, values: Mapping[Labels, float]) -> Iterator[str]:
    yield f"# TYPE dnet_{name} {kind}"
    for labels, value in sorted(values.items()):
        text = ",".join(f'{key}="{_escaped(told)}"' for key, told in labels)
        yield f"dnet_{name}{{{text}}} {value}" if text else f"dnet_{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
