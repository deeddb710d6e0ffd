"""Everything that happens, told once: the closed union `Event` of frozen values.

The coordinator emits, any number of listeners (screen, log, metrics) subscribe; state is a fold of events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dnet_core.types.devices import Peer
from dnet_core.types.generation import FinishReason, StageTime
from dnet_core.types.plan import DeviceAccuracy, Solution, SolveRequest
from dnet_core.types.ring import RingPlan


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A peer was found, or one that was lost is back."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerLeft:
    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryReported:
    """What a shard holds, by MLX's own count; told about once a second while it changes and is heard."""

    peer: str
    active_bytes: int
    peak_bytes: int  # since its model was loaded
    budget_bytes: int  # what models may take there
    memory_total_bytes: int  # of the machine


@dataclass(frozen=True, slots=True)
class FetchProgressed:
    """A model's files are being brought to the device `peer` (None: to this machine, before it is placed)."""

    model: str
    done_bytes: int
    total_bytes: int
    peer: str | None = None


@dataclass(frozen=True, slots=True)
class DownloadProgressed:
    """A model is being fetched to this machine beside everything else, without being loaded."""

    model: str
    done_bytes: int
    total_bytes: int


STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class DownloadEnded:
    """`problem` says why it is not whole (STOPPED: somebody wanted it so); None: it is."""

    model: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class PlanStarted:
    """The devices are being measured, to place `model` on them."""

    model: str


@dataclass(frozen=True, slots=True)
class MeasurementProgressed:
    """`num_done` of the `num_total` devices, or of the links between them, are measured or cannot be.

    Machines are measured at once, shards of one machine and links that meet in turn.
    """

    subject: Literal["devices", "links"]
    num_done: int
    num_total: int


@dataclass(frozen=True, slots=True)
class DevicesMeasured:
    """All facts for a plan are there: the model's layers, the devices and their links."""

    request: SolveRequest


@dataclass(frozen=True, slots=True)
class PlanMade:
    """The plan that was made, or chosen by hand; what is loaded follows it only when a load says so."""

    solution: Solution


@dataclass(frozen=True, slots=True)
class LoadStarted:
    plan: RingPlan


@dataclass(frozen=True, slots=True)
class LoadProgressed:
    """`peer` holds `done_bytes` of the `total_bytes` it owns; layers below arrive in order."""

    peer: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    plan: RingPlan
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadFailed:
    model: str
    message: str


@dataclass(frozen=True, slots=True)
class ModelUnloaded:
    model: str


@dataclass(frozen=True, slots=True)
class RingLost:
    """`peer` of the loaded ring is gone. Answers wait: for Recovered, or for LoadFailed, which ends them."""

    model: str
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class RecoveryStarted:
    """`model` is being placed anew on `peers`; PlanMade, LoadStarted and LoadProgressed tell how far."""

    model: str
    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recovered:
    """The model is loaded as `plan` says, `seconds` after the ring was lost; answers go on."""

    plan: RingPlan
    seconds: float
    solve_s: float
    load_s: float


@dataclass(frozen=True, slots=True)
class PeerOffered:
    """A device that `model` lost is back: it takes part again when `Coordinator.take_in` is called."""

    name: str
    model: str


@dataclass(frozen=True, slots=True)
class SessionStarted:
    session: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class LapMeasured:
    """One lap of one session: where its time went, stage by stage, in ring order."""

    session: str
    position: int
    stages: tuple[StageTime, ...]


@dataclass(frozen=True, slots=True)
class SessionEnded:
    session: str
    finish_reason: FinishReason | None  # None: it failed
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt: they had been read before


@dataclass(frozen=True, slots=True)
class PredictionCompared:
    """An answer that ran alone has ended: seconds per token predicted and measured over `laps` tokens."""

    model: str
    laps: int
    predicted_tpot_s: float
    measured_tpot_s: float
    devices: tuple[DeviceAccuracy, ...]


Event = (
    PeerJoined
    | PeerLeft
    | MemoryReported
    | FetchProgressed
    | DownloadProgressed
    | DownloadEnded
    | PlanStarted
    | MeasurementProgressed
    | DevicesMeasured
    | PlanMade
    | LoadStarted
    | LoadProgressed
    | ModelLoaded
    | LoadFailed
    | ModelUnloaded
    | RingLost
    | RecoveryStarted
    | Recovered
    | PeerOffered
    | SessionStarted
    | LapMeasured
    | SessionEnded
    | PredictionCompared
)
