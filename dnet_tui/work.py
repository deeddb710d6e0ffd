"""What takes time: the step of a load, and every transfer with its speed and the time left; a fold of events.

Asked for -> profiling -> solving -> loading -> done, with fetching where files are missing. Downloads run
beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from dnet_core.events import (
    DevicesMeasured,
    DownloadEnded,
    DownloadProgressed,
    Event,
    FetchProgressed,
    LoadFailed,
    LoadProgressed,
    LoadStarted,
    MeasurementProgressed,
    ModelLoaded,
    ModelUnloaded,
    PlanMade,
    PlanStarted,
    Recovered,
    RecoveryStarted,
)
from dnet_tui.units import duration_text, progress_bytes_text, rate_text

STALLED_S = 15.0
"""So long without a byte, and the screen says so."""
_RATE_WINDOW_S = 8.0
_SAMPLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Transfer:
    """Bytes on their way, with enough of the past to tell how fast; times by the clock of `work_on`."""

    done_bytes: int
    total_bytes: int
    moved_s: float  # when the last byte came
    samples: tuple[tuple[float, int], ...]  # (when, done bytes), oldest first

    @classmethod
    def begin(cls, done_bytes: int, total_bytes: int, now_s: float) -> Transfer:
        return cls(done_bytes, total_bytes, now_s, ((now_s, done_bytes),))

    def advance(self, done_bytes: int, total_bytes: int, now_s: float) -> Transfer:
        """Return the transfer at `now_s`; one that went back to an earlier byte begins anew."""
        if done_bytes < self.done_bytes or total_bytes != self.total_bytes:
            return Transfer.begin(done_bytes, total_bytes, now_s)
        samples = self.samples
        if now_s - samples[-1][0] >= _SAMPLE_S:
            recent = tuple(sample for sample in samples if now_s - sample[0] <= _RATE_WINDOW_S)
            samples = (*(recent or samples[-1:]), (now_s, done_bytes))
        moved_s = now_s if done_bytes > self.done_bytes else self.moved_s
        return Transfer(done_bytes, total_bytes, moved_s, samples)

    def bytes_per_s(self) -> float | None:
        """Over the last seconds; None before two samples are there."""
        (first_s, first), (last_s, last) = self.samples[0], self.samples[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s and last > first else None

    def left_s(self) -> float | None:
        rate = self.bytes_per_s()
        return None if rate is None else (self.total_bytes - self.done_bytes) / rate

    @property
    def missing(self) -> int:
        """Bytes."""
        return self.total_bytes - self.done_bytes

    def is_stalled(self, now_s: float) -> bool:
        return self.done_bytes < self.total_bytes and now_s - self.moved_s >= STALLED_S

    def text(self, now_s: float, *, has_rate: bool = True) -> str:
        """`1.2/4.6 GB · 110 MB/s · 31 s left`, or that nothing comes any more; the rate can be left out."""
        parts = [progress_bytes_text(self.done_bytes, self.total_bytes)]
        if self.is_stalled(now_s):
            parts.append(f"stalled for {now_s - self.moved_s:.0f} s")
        else:
            rate, left_s = self.bytes_per_s(), self.left_s()
            if rate is not None and left_s is not None and self.done_bytes < self.total_bytes:
                parts += [rate_text(rate)] if has_rate else []
                parts.append(f"{duration_text(left_s)} left")
        return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class Measurement:
    """How many of the devices, or of the links between them, are done with since `since_s`."""

    subject: str
    num_done: int
    num_total: int
    since_s: float
    told_s: float

    def text(self, now_s: float) -> str:
        """`links 12/56 · 9 s left`, at the pace so far; of devices, measured at once, the time taken."""
        text = f"{self.subject} {self.num_done}/{self.num_total}"
        if self.subject == "devices" or not self.num_done:
            taken_s = now_s - self.since_s
            return f"{text} · {taken_s:.0f} s" if taken_s >= 1 else text
        each_s = (self.told_s - self.since_s) / self.num_done
        left_s = each_s * (self.num_total - self.num_done) - max(0.0, now_s - self.told_s)
        return f"{text} · {duration_text(left_s)} left" if left_s >= 1 else text


class Step(StrEnum):
    """Where a load stands."""

    PREPARING = "preparing"
    FETCHING = "fetching"
    PROFILING = "measuring the devices"
    SOLVING = "placing the layers"
    LOADING = "loading"


@dataclass(frozen=True, slots=True)
class Work:
    """The load that goes on (None: none does), since when, its bytes; and the downloads beside it."""

    step: Step | None = None
    since_s: float = 0.0
    transfer: Transfer | None = None
    measurement: Measurement | None = None
    progress: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of each device that loads, (done, total) bytes."""
    downloads: Mapping[str, Transfer] = field(default_factory=dict)
    fetches: Mapping[str, Transfer] = field(default_factory=dict)
    """Of each device that still brings the model's files to itself."""

    @property
    def is_going_on(self) -> bool:
        return self.step is not None or bool(self.downloads)

    def at(self, step: Step, now_s: float) -> Work:
        """Return the work at `step`, which began now unless it was there already."""
        if self.step is step:
            return self
        return Work(step, now_s, downloads=self.downloads)

    def idle(self) -> Work:
        return Work(downloads=self.downloads)


def work_on(work: Work, event: Event, now_s: float) -> Work:
    """Return `work` after `event`, which came at `now_s`."""
    match event:
        case FetchProgressed(peer=str(peer), done_bytes=done, total_bytes=total):
            others = {name: transfer for name, transfer in work.fetches.items() if name != peer}
            if done < total:
                others[peer] = moved(work.fetches.get(peer), done, total, now_s)
            return replace(work.at(Step.LOADING, now_s), fetches=others)
        case FetchProgressed(done_bytes=done, total_bytes=total) if done < total:
            return _moved(work.at(Step.FETCHING, now_s), done, total, now_s)
        case FetchProgressed():
            return work.at(Step.PREPARING, now_s)
        case PlanStarted() | RecoveryStarted():
            return work.at(Step.PROFILING, now_s)
        case MeasurementProgressed(subject, num_done, num_total) if work.step is Step.PROFILING:
            before = work.measurement
            since_s = before.since_s if before is not None and num_done else now_s
            return replace(work, measurement=Measurement(subject, num_done, num_total, since_s, now_s))
        case DevicesMeasured():
            return work.at(Step.SOLVING, now_s)
        case PlanMade() if work.step is not None:
            return work.at(Step.PREPARING, now_s)
        case LoadStarted():
            return work.at(Step.LOADING, now_s)
        case LoadProgressed(peer=peer, done_bytes=done, total_bytes=total):
            progress = {**work.progress, peer: (done, total)}
            dones, totals = zip(*progress.values(), strict=True)
            fetches = {name: transfer for name, transfer in work.fetches.items() if name != peer}
            loading = replace(work.at(Step.LOADING, now_s), progress=progress, fetches=fetches)
            return _moved(loading, sum(dones), sum(totals), now_s)
        case ModelLoaded() | LoadFailed() | ModelUnloaded() | Recovered():
            return work.idle()
        case DownloadProgressed(model=model, done_bytes=done, total_bytes=total):
            transfer = moved(work.downloads.get(model), done, total, now_s)
            return replace(work, downloads={**work.downloads, model: transfer})
        case DownloadEnded(model=model):
            return replace(work, downloads={m: t for m, t in work.downloads.items() if m != model})
        case _:
            return work


def _moved(work: Work, done: int, total: int, now_s: float) -> Work:
    return replace(work, transfer=moved(work.transfer, done, total, now_s))


def moved(before: Transfer | None, done: int, total: int, now_s: float) -> Transfer:
    """Return the transfer that was `before`, or a new one."""
    return before.advance(done, total, now_s) if before else Transfer.begin(done, total, now_s)
