"""What the screen knows of the cluster: a frozen `ClusterView`, folded from the coordinator's events.

    view' = fold(view, event)        pure; the only way in which a view changes

Only facts are kept: what no event has told is absent, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from dnet_core.types.devices import Peer
from dnet_core.types.plan import DevicePrediction, Prediction, Solution, SolveRequest
from dnet_core.types.profiles import DeviceProfile, LinkProfile
from dnet_core.types.ring import Assignment, RingPlan
from dnet_tui.arrival import Arrival, Part
from dnet_tui.work import Step, Transfer, Work, moved

NUM_RECENT_LAPS = 32
"""How many laps the means are taken over: a few seconds of decoding."""


@dataclass(frozen=True, slots=True)
class Device:
    """A peer that was seen; `lost` says why it is gone, None while it is here; `memory` what it told last."""

    peer: Peer
    lost: str | None
    memory: MemoryReported | None = None


@dataclass(frozen=True, slots=True)
class NoModel:
    pass


@dataclass(frozen=True, slots=True)
class Preparing:
    """A load was asked for and nothing has been told about it yet."""

    model: str


@dataclass(frozen=True, slots=True)
class Fetching:
    model: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Loading:
    """The shards are filling; `progress` is what each peer that has told has read of its layers."""

    plan: RingPlan
    progress: Mapping[str, Transfer]
    fetches: Mapping[str, Transfer] = field(default_factory=dict)
    """Of each device that still brings the model's files to itself; it fills when it has them."""

    @property
    def done_bytes(self) -> int:
        return sum(read.done_bytes for read in self.progress.values())

    @property
    def total_bytes(self) -> int:
        return sum(read.total_bytes for read in self.progress.values())


@dataclass(frozen=True, slots=True)
class Ready:
    plan: RingPlan
    seconds: float


@dataclass(frozen=True, slots=True)
class Unusable:
    """The last load failed."""

    model: str
    message: str


ModelState = NoModel | Preparing | Fetching | Loading | Ready | Unusable


@dataclass(frozen=True, slots=True)
class StageSplit:
    """Mean seconds of one device per token, and the share of the token in which it computed.

    `queue_s` is spent behind other answers. Reads overlap all of it: `read_s` is how long the disk was busy.
    """

    compute_s: float
    disk_s: float
    network_s: float
    queue_s: float
    busy: float
    read_bytes: float
    read_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.disk_s + self.network_s + self.queue_s


@dataclass(frozen=True, slots=True)
class Session:
    """An answer that is being made; times by the clock that `fold` is given."""

    prompt_tokens: int
    started_s: float
    read_tokens: int = 0  # of the prompt
    answer_tokens: int = 0
    first_s: float | None = None  # when the first token came
    last_s: float | None = None  # and the newest

    @property
    def tokens_per_s(self) -> float | None:
        if self.first_s is None or self.last_s is None or self.last_s <= self.first_s:
            return None
        return (self.answer_tokens - 1) / (self.last_s - self.first_s)


@dataclass(frozen=True, slots=True)
class ClusterView:
    """Devices in the order in which they were seen, the model's state, and the newest laps.

    `facts` are what was measured for the newest plan, `solution` is that plan with its prediction and
    reasons; what is loaded may be another.
    """

    devices: tuple[Device, ...] = ()
    model: ModelState = NoModel()
    facts: SolveRequest | None = None
    solution: Solution | None = None
    sessions: Mapping[str, Session] = field(default_factory=dict)
    """The sessions that run."""
    laps: tuple[LapMeasured, ...] = ()
    """The newest laps of one token each; those that read a prompt carry many and would blur the means."""
    compared: PredictionCompared | None = None
    """What the newest answer that ran alone says of the prediction."""

    @property
    def plan(self) -> RingPlan | None:
        return self.model.plan if isinstance(self.model, Loading | Ready) else None

    @property
    def model_name(self) -> str | None:
        match self.model:
            case NoModel():
                return None
            case Loading(plan=plan) | Ready(plan=plan):
                return plan.model
            case Preparing(model=model) | Fetching(model=model) | Unusable(model=model):
                return model
            case _:
                assert_never(self.model)

    @property
    def is_arriving(self) -> bool:
        """Whether a model is on its way: measured for, placed, fetched or read."""
        return isinstance(self.model, Preparing | Fetching | Loading)

    @property
    def here(self) -> tuple[Device, ...]:
        return tuple(device for device in self.devices if device.lost is None)

    @property
    def lost_in_ring(self) -> frozenset[str]:
        """Names of devices that own layers but are gone."""
        if self.plan is None:
            return frozenset()
        gone = {device.peer.name for device in self.devices if device.lost is not None}
        return frozenset(a.peer for a in self.plan.assignments if a.peer in gone)


def fold(view: ClusterView, event: Event, now_s: float = 0.0) -> ClusterView:
    """Return `view` after `event`, which came at `now_s`. Telling the same thing twice changes nothing."""
    match event:
        case PeerJoined(peer=peer):
            return replace(view, devices=_with_device(view.devices, Device(peer, None)))
        case MemoryReported(peer=name):
            devices = tuple(replace(d, memory=event) if d.peer.name == name else d for d in view.devices)
            return replace(view, devices=devices)
        case PeerLeft(name=name, reason=reason):
            why = reason.removeprefix(f"{name} left the ring: ")  # the device is named where this is shown
            devices = tuple(replace(d, lost=why) if d.peer.name == name else d for d in view.devices)
            return replace(view, devices=devices)
        case FetchProgressed(peer=str(peer_name), done_bytes=done, total_bytes=total):
            if not isinstance(view.model, Loading):
                return view
            fetches = {name: t for name, t in view.model.fetches.items() if name != peer_name}
            if done < total:
                fetches[peer_name] = moved(view.model.fetches.get(peer_name), done, total, now_s)
            return replace(view, model=replace(view.model, fetches=fetches))
        case FetchProgressed(model=model, done_bytes=done, total_bytes=total):
            return replace(view, model=Fetching(model, done, total), laps=())
        case DownloadProgressed() | DownloadEnded() | MeasurementProgressed():  # `dnet_tui.work` follows them
            return view
        case PlanStarted() | RingLost() | RecoveryStarted() | PeerOffered():
            return view
        case DevicesMeasured(request=request):
            return replace(view, facts=request)
        case PlanMade(solution=solution):
            return replace(view, solution=solution)
        case LoadStarted(plan=plan):
            return replace(view, model=Loading(plan, {}), laps=())
        case LoadProgressed(peer=peer_name, done_bytes=done, total_bytes=total):
            if not isinstance(view.model, Loading):
                return view
            read = moved(view.model.progress.get(peer_name), done, total, now_s)
            progress = {**view.model.progress, peer_name: read}
            fetches = {name: t for name, t in view.model.fetches.items() if name != peer_name}
            return replace(view, model=Loading(view.model.plan, progress, fetches))
        case ModelLoaded(plan=plan, seconds=seconds):
            return replace(view, model=Ready(plan, seconds))
        case Recovered(plan=plan, seconds=seconds):
            return replace(view, model=Ready(plan, seconds))
        case LoadFailed(model=model, message=message):
            return replace(view, model=Unusable(model, message), laps=())
        case ModelUnloaded():
            known = isinstance(view.model, Loading | Ready)  # else a new load or a failure says more
            return replace(view, model=NoModel() if known else view.model, laps=())
        case SessionStarted(session=session, prompt_tokens=prompt_tokens):
            return replace(view, sessions={**view.sessions, session: Session(prompt_tokens, now_s)})
        case LapMeasured():
            return _with_lap(view, event, now_s)
        case SessionEnded(session=session):
            return replace(view, sessions={k: v for k, v in view.sessions.items() if k != session})
        case PredictionCompared():
            return replace(view, compared=event)
        case _:
            assert_never(event)


def arrival_of(view: ClusterView, work: Work) -> Arrival | None:
    """How far the model is that is being loaded; None while none is."""
    match view.model:
        case Preparing(model=model) | Fetching(model=model) if work.step is not None:
            return Arrival(model, work.step.value, work.transfer)
        case Loading(plan=plan, progress=progress, fetches=fetches):
            named = letters(view)
            parts = tuple(
                Part(named[a.peer], a.peer, fetches.get(a.peer), progress.get(a.peer))
                for a in plan.assignments
            )
            return Arrival(plan.model, Step.LOADING.value, work.transfer, parts)
        case _:
            return None


def _with_lap(view: ClusterView, lap: LapMeasured, now_s: float) -> ClusterView:
    session = view.sessions.get(lap.session)
    if session is not None:
        if lap.position < session.prompt_tokens:
            session = replace(session, read_tokens=lap.position)
        else:
            count = lap.position - session.prompt_tokens + 1
            first_s = now_s if session.first_s is None else session.first_s
            session = replace(
                session,
                read_tokens=session.prompt_tokens,
                answer_tokens=count,
                first_s=first_s,
                last_s=now_s,
            )
        view = replace(view, sessions={**view.sessions, lap.session: session})
        if lap.position <= session.prompt_tokens:  # a prompt, or the lap that ends it
            return view
    return replace(view, laps=(*view.laps, lap)[-NUM_RECENT_LAPS:])


def prepare(view: ClusterView, model: str) -> ClusterView:
    """Return `view` after the user asked for `model`."""
    return replace(view, model=Preparing(model), laps=())


def _with_device(devices: tuple[Device, ...], device: Device) -> tuple[Device, ...]:
    if any(d.peer.name == device.peer.name for d in devices):
        return tuple(device if d.peer.name == device.peer.name else d for d in devices)
    return (*devices, device)


def letters(view: ClusterView) -> dict[str, str]:
    """Name the devices A, B, C ...: in ring order first, then in the order in which they were seen."""
    ring = [a.peer for a in view.plan.assignments] if view.plan is not None else []
    names = dict.fromkeys([*ring, *(device.peer.name for device in view.devices)])
    return {name: _letter(index) for index, name in enumerate(names)}


def _letter(index: int) -> str:
    letter = chr(ord("A") + index % 26)
    return letter if index < 26 else f"{letter}{index // 26 + 1}"


def assignment_of(view: ClusterView, name: str) -> Assignment | None:
    if view.plan is None:
        return None
    return next((a for a in view.plan.assignments if a.peer == name), None)


def profile_of(view: ClusterView, name: str) -> DeviceProfile | None:
    """What was measured on the device `name`."""
    if view.facts is None:
        return None
    return next((d for d in view.facts.devices if d.peer == name), None)


def link_of(view: ClusterView, source: str, target: str) -> LinkProfile | None:
    """The measured hop from `source` to `target`; the fastest for small messages if there are several."""
    if view.facts is None:
        return None
    found = [k for k in view.facts.links if (k.source, k.target) == (source, target)]
    return min(found, key=lambda link: link.latency_s, default=None)


def next_in_ring(view: ClusterView, name: str) -> str | None:
    """The device to which `name` hands on; None when it is not in the ring, or alone in it."""
    ring = [a.peer for a in view.plan.assignments] if view.plan is not None else []
    if name not in ring or len(ring) < 2:
        return None
    return ring[(ring.index(name) + 1) % len(ring)]


def prediction_of(view: ClusterView) -> Prediction | None:
    """What the plan that is loaded, or being loaded, should do."""
    if view.solution is None or view.solution.plan != view.plan:
        return None
    return view.solution.prediction


def device_prediction(view: ClusterView, name: str) -> DevicePrediction | None:
    prediction = prediction_of(view)
    if prediction is None:
        return None
    return next((d for d in prediction.devices if d.peer == name), None)


def reason_of(view: ClusterView, name: str) -> str | None:
    """Why the newest plan gives `name` what it gives; None as long as it has not got that."""
    reasons = view.solution.reasons if view.solution is not None else ()
    found = next((reason for reason in reasons if reason.peer == name), None)
    if found is None or found.used != (assignment_of(view, name) is not None):
        return None
    return found.text


def loaded_layers(model: ModelState) -> frozenset[int]:
    """Layers whose bytes have arrived. Each peer's layers arrive in order, so bytes tell how many."""
    match model:
        case Ready(plan=plan):
            return frozenset(range(plan.num_layers))
        case Loading(plan=plan, progress=progress):
            arrived: list[int] = []
            for assignment in plan.assignments:
                read, layers = progress.get(assignment.peer), assignment.layers
                if read is not None:
                    total = read.total_bytes
                    arrived.extend(layers[: len(layers) * read.done_bytes // total if total else len(layers)])
            return frozenset(arrived)
        case _:
            return frozenset()


def stage_splits(view: ClusterView) -> dict[str, StageSplit]:
    """Mean stage times per device over the recent laps; a device of which nothing is known is absent."""
    sums: dict[str, list[float]] = {}
    for lap in view.laps:
        for stage in lap.stages:
            parts = (
                stage.compute_s,
                stage.disk_wait_s,
                stage.wire_s,
                stage.queue_s,
                stage.read_bytes,
                stage.read_s,
            )
            total = sums.setdefault(stage.peer, [0.0] * len(parts))
            for index, part in enumerate(parts):
                total[index] += part
    lap_s = sum(sum(total[:4]) for total in sums.values())
    n = len(view.laps)
    return {
        peer: StageSplit(
            compute / n,
            disk / n,
            wire / n,
            queue / n,
            compute / lap_s if lap_s else 0.0,
            read / n,
            read_s / n,
        )
        for peer, (compute, disk, wire, queue, read, read_s) in sums.items()
    }


def stage_history(view: ClusterView, name: str) -> tuple[float, ...]:
    """Seconds of the device `name` in each of the recent laps, oldest first."""
    return tuple(
        sum(s.compute_s + s.disk_wait_s + s.wire_s + s.queue_s for s in lap.stages if s.peer == name)
        for lap in view.laps
    )
