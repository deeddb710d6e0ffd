"""Everything that happens, told once: the closed union `Event` of frozen values.

The coordinator emits, any number of listeners (screen, log, metrics) subscribe; state is a fold of events.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnet_core.types.devices import Peer
from dnet_core.types.generation import FinishReason, StageTime
from dnet_core.types.plan import Solution
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
class FetchProgressed:
    """A model's files are being brought to this machine."""

    model: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class PlanStarted:
    """The devices are being measured, to place `model` on them."""

    model: str


@dataclass(frozen=True, slots=True)
class PlanMade:
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


Event = (
    PeerJoined
    | PeerLeft
    | FetchProgressed
    | PlanStarted
    | PlanMade
    | LoadStarted
    | LoadProgressed
    | ModelLoaded
    | LoadFailed
    | ModelUnloaded
    | SessionStarted
    | LapMeasured
    | SessionEnded
)
