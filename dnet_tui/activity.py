"""What happened, as lines for a person: a fold of the same events, bounded.

Only what is worth a line makes one; laps and progress do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from dnet_core.events import (
    DevicesMeasured,
    DownloadEnded,
    DownloadProgressed,
    Event,
    FetchProgressed,
    LapMeasured,
    LoadFailed,
    LoadProgressed,
    LoadStarted,
    MeasurementProgressed,
    MemoryReported,
    ModelLoaded,
    ModelUnloaded,
    PeerJoined,
    PeerLeft,
    PeerOffered,
    PlanMade,
    PlanStarted,
    PredictionCompared,
    Recovered,
    RecoveryStarted,
    RingLost,
    SessionEnded,
    SessionStarted,
)
from dnet_core.types.generation import FinishReason
from dnet_core.types.ring import RingPlan
from dnet_tui.units import bytes_text, count_text, ms_text, seconds_text

MOST_LINES = 500


class Tone(StrEnum):
    PLAIN = "plain"
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class LogLine:
    at: datetime
    text: str
    tone: Tone = Tone.PLAIN

    def matches(self, wanted: str) -> bool:
        """Whether every word of `wanted` is in the line, whatever its case."""
        return all(word in self.text.lower() for word in wanted.lower().split())


@dataclass(frozen=True, slots=True)
class Activity:
    """The newest lines, oldest first, and what is needed to write the next ones."""

    lines: tuple[LogLine, ...] = ()
    fetching: str | None = None
    running: Mapping[str, tuple[int, datetime | None]] = field(default_factory=dict)
    """Of each session that runs: the length of its prompt, and when its first token came."""

    def with_line(self, at: datetime, text: str, tone: Tone = Tone.PLAIN) -> Activity:
        return replace(self, lines=(*self.lines, LogLine(at, text, tone))[-MOST_LINES:])


def note(activity: Activity, event: Event, at: datetime) -> Activity:
    """Return `activity` after `event`."""
    match event:
        case LoadProgressed() | MemoryReported() | DownloadProgressed() | MeasurementProgressed():
            return activity
        case DownloadEnded(model=model, problem=problem):
            text = f"{model} is here" if problem is None else f"{model} was not fetched: {problem}"
            tone = Tone.GOOD if problem is None else Tone.BAD
        case FetchProgressed():
            return _fetched(activity, event, at)
        case SessionStarted() | LapMeasured() | SessionEnded():
            return _answered(activity, event, at)
        case PeerJoined() | PeerLeft() | PeerOffered():
            text, tone = _peer(event)
        case PlanStarted() | DevicesMeasured() | PlanMade() | PredictionCompared():
            text, tone = _planned(event)
        case LoadStarted() | ModelLoaded() | ModelUnloaded() | LoadFailed():
            text, tone = _loaded(event)
        case RingLost() | RecoveryStarted() | Recovered():
            text, tone = _recovered(event)
        case _:
            assert_never(event)
    return activity.with_line(at, text, tone)


def _peer(event: PeerJoined | PeerLeft | PeerOffered) -> tuple[str, Tone]:
    match event:
        case PeerJoined(peer=peer) if peer.cannot_join is not None:
            return f"{peer.name} is there but cannot join: {peer.cannot_join}", Tone.BAD
        case PeerJoined(peer=peer):
            return f"{peer.name} joined", Tone.GOOD
        case PeerLeft(name=name, reason=reason):
            return f"{name} left: {reason}", Tone.BAD
        case PeerOffered(name=name):
            return f"{name} is back and can take part again", Tone.GOOD
        case _:
            assert_never(event)


def _planned(event: PlanStarted | DevicesMeasured | PlanMade | PredictionCompared) -> tuple[str, Tone]:
    match event:
        case PlanStarted(model=model):
            return f"measuring the devices for {_short(model)}", Tone.PLAIN
        case DevicesMeasured(request=request):
            model_profile = request.model
            return (
                f"{len(request.devices)} devices and {len(request.links)} links measured;"
                f" {model_profile.num_layers} layers, {bytes_text(model_profile.weight_bytes)}"
            ), Tone.PLAIN
        case PlanMade(solution=solution):
            prediction = solution.prediction
            return (
                f"plan: {_ring_text(solution.plan)}, {ms_text(prediction.tpot_s)} ms/token"
                f" ({prediction.tokens_per_s:.1f} tok/s) predicted"
            ), Tone.PLAIN
        case PredictionCompared(predicted_tpot_s=predicted_s, measured_tpot_s=measured_s, laps=laps):
            return (
                f"{ms_text(measured_s)} ms/token over {laps} tokens;"
                f" the plan said {ms_text(predicted_s)} ({measured_s / predicted_s - 1:+.0%})"
            ), Tone.PLAIN
        case _:
            assert_never(event)


def _short(model: str) -> str:
    """A model without its owner or folder."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def _ring_text(plan: RingPlan) -> str:
    count = len(plan.assignments)
    rounds = f", {plan.rounds} rounds" if plan.rounds > 1 else ""
    streamed = sum(len(a.streamed) for a in plan.assignments)
    disk = f", {streamed} layers from disk" if streamed else ""
    return f"{count} device{'s' * (count > 1)}{rounds}{disk}"


def _loaded(event: LoadStarted | ModelLoaded | ModelUnloaded | LoadFailed) -> tuple[str, Tone]:
    match event:
        case LoadStarted(plan=plan):
            return f"loading {_short(plan.model)} on {_ring_text(plan)}", Tone.PLAIN
        case ModelLoaded(plan=plan, seconds=seconds):
            return f"{_short(plan.model)} ready in {seconds_text(seconds)}", Tone.GOOD
        case ModelUnloaded(model=model):
            return f"{_short(model)} unloaded", Tone.PLAIN
        case LoadFailed(model=model, message=message):
            return f"{_short(model)} not loaded: {message}", Tone.BAD
        case _:
            assert_never(event)


def _recovered(event: RingLost | RecoveryStarted | Recovered) -> tuple[str, Tone]:
    match event:
        case RingLost(peer=peer, reason=reason):
            return f"ring broken at {peer}: {reason}; answers wait", Tone.BAD
        case RecoveryStarted(peers=peers):
            return f"placing the layers again on {', '.join(peers)}", Tone.PLAIN
        case Recovered(plan=plan, seconds=seconds):
            return f"going on with {_ring_text(plan)} after {seconds_text(seconds)}", Tone.GOOD
        case _:
            assert_never(event)


def _fetched(activity: Activity, event: FetchProgressed, at: datetime) -> Activity:
    """One line when a download begins, one when it is complete."""
    if event.done_bytes >= event.total_bytes:
        if activity.fetching != event.model:
            return activity
        fetched = f"{_short(event.model)} fetched, {bytes_text(event.total_bytes)}"
        return replace(activity.with_line(at, fetched, Tone.GOOD), fetching=None)
    if activity.fetching == event.model:
        return activity
    begun = f"fetching {_short(event.model)}, {bytes_text(event.total_bytes)}"
    return replace(activity.with_line(at, begun), fetching=event.model)


def _answered(
    activity: Activity, event: SessionStarted | LapMeasured | SessionEnded, at: datetime
) -> Activity:
    running = activity.running
    match event:
        case SessionStarted(session=session, prompt_tokens=count):
            told = activity.with_line(at, f"answer begins: prompt of {count_text(count)} tok")
            return replace(told, running={**running, session: (count, None)})
        case LapMeasured(session=session, position=position):
            prompt_tokens, first = running.get(session, (0, at))
            if first is not None or position < prompt_tokens:
                return activity
            return replace(activity, running={**running, session: (prompt_tokens, at)})
        case SessionEnded(session=session, finish_reason=reason, completion_tokens=count):
            _, first = running.get(session, (0, None))
            took_s = (at - first).total_seconds() if first is not None else 0.0
            rate = f", {(count - 1) / took_s:.1f} tok/s" if took_s > 0 and count > 1 else ""
            tone = Tone.BAD if reason is None else Tone.PLAIN
            told = activity.with_line(at, f"answer {_ENDS[reason]}: {count} tok{rate}", tone)
            return replace(told, running={name: value for name, value in running.items() if name != session})
        case _:
            assert_never(event)


_ENDS = {
    None: "failed",
    FinishReason.STOP: "done",
    FinishReason.LENGTH: "cut at its limit",
    FinishReason.CANCELLED: "stopped",
}
