"""What is asked of the solver and what it answers: requests, predictions, reasons.

SolveRequest --solve--> Solution = RingPlan + Prediction + a reason per device + a row per ring size
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dnet_core.types.profiles import DeviceProfile, LinkProfile, ModelProfile
from dnet_core.types.ring import LayerWindow, RingPlan


class Objective(StrEnum):
    LATENCY = "latency"  # the time of one typical request
    THROUGHPUT = "throughput"  # the slowest stage, for several users at once


@dataclass(frozen=True, slots=True)
class Pin:
    """This peer runs exactly these windows, one per round; never empty."""

    peer: str
    windows: tuple[LayerWindow, ...]

    def __post_init__(self) -> None:
        if not self.windows:
            raise ValueError(f"the pin of {self.peer} has no layers: exclude the device instead")


@dataclass(frozen=True, slots=True)
class SolveRequest:
    """The facts and the wishes from which a plan is made.

    `devices` come in order of preference (the head's own device first); a pair of them without a link in
    `links` can never be neighbours in the ring. A typical request has `prompt_tokens` (at most the context)
    and gets `answer_tokens`; a prompt is read in chunks of `chunk_tokens`.
    """

    model: ModelProfile
    devices: tuple[DeviceProfile, ...]
    links: tuple[LinkProfile, ...]
    context_tokens: int
    kv_bits: int = 16
    batch: int = 1
    prompt_tokens: int = 1000
    answer_tokens: int = 300
    chunk_tokens: int = 512
    objective: Objective = Objective.LATENCY
    max_rounds: int = 8
    allow_streaming: bool = True
    head_device: str | None = None  # None: any device may have the embedding
    excluded: frozenset[str] = frozenset()
    pins: tuple[Pin, ...] = ()

    def __post_init__(self) -> None:
        names = [device.peer for device in self.devices]
        if len(set(names)) != len(names):
            raise ValueError("a device is listed twice")
        if self.kv_bits not in (4, 8, 16):
            raise ValueError(f"kv_bits must be 16, 8 or 4, not {self.kv_bits}")
        counts = ("context_tokens", "batch", "prompt_tokens", "answer_tokens", "chunk_tokens", "max_rounds")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class DevicePrediction:
    """One device of a plan. Times are per token of one stream in decode, but for `prefill_stage_s`."""

    peer: str
    num_layers: int
    resident_bytes: int  # weights that stay in memory
    buffer_bytes: int  # for streamed layers
    kv_bytes: int
    embedding_bytes: int  # zero but on the head
    head_bytes: int  # norm, LM head and logits; zero but on the tail
    workspace_bytes: int
    budget_bytes: int
    compute_s: float
    stall_s: float  # part of its turns in which compute waits for the disk
    disk_s: float  # how long its disk reads; overlaps everything else
    network_s: float  # its hops to the next device
    streamed_bytes_per_token: int
    prefill_stage_s: float  # one full chunk

    @property
    def total_bytes(self) -> int:
        """All the memory the plan takes on this device."""
        return (
            self.resident_bytes
            + self.buffer_bytes
            + self.kv_bytes
            + self.embedding_bytes
            + self.head_bytes
            + self.workspace_bytes
        )

    @property
    def free_bytes(self) -> int:
        """What is left of the budget; negative if the plan does not fit."""
        return self.budget_bytes - self.total_bytes


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan will do, as the cost model sees it; `devices` in ring order."""

    prompt_tokens: int
    answer_tokens: int
    chunk_tokens: int
    batch: int
    ttft_s: float
    tpot_s: float
    slowest_stage_s: float  # busiest device per token: what limits many streams together
    devices: tuple[DevicePrediction, ...]

    @property
    def request_s(self) -> float:
        """Seconds of the typical request, first byte to last."""
        return self.ttft_s + self.answer_tokens * self.tpot_s

    @property
    def tokens_per_s(self) -> float:
        """Decode speed of one stream (of `batch` sequences together)."""
        return self.batch / self.tpot_s

    @property
    def throughput_tokens_per_s(self) -> float:
        """Decode speed with enough streams to keep the slowest stage busy."""
        return self.batch / self.slowest_stage_s

    @property
    def streamed_bytes_per_token(self) -> int:
        return sum(device.streamed_bytes_per_token for device in self.devices)


@dataclass(frozen=True, slots=True)
class DeviceReason:
    """Why a device does what it does in the plan, in one sentence for a person."""

    peer: str
    used: bool
    text: str


@dataclass(frozen=True, slots=True)
class RingSize:
    """The best plan with exactly this many devices, in short."""

    peers: tuple[str, ...]
    rounds: int
    ttft_s: float
    tpot_s: float
    streamed_bytes_per_token: int

    @property
    def num_devices(self) -> int:
        return len(self.peers)


@dataclass(frozen=True, slots=True)
class Solution:
    """A plan with all that is to be said of it.

    `sizes` goes from one device up; a number of devices that cannot hold the model has no row.
    """

    plan: RingPlan
    prediction: Prediction
    reasons: tuple[DeviceReason, ...]
    sizes: tuple[RingSize, ...]


@dataclass(frozen=True, slots=True)
class DeviceAccuracy:
    """Compute of one device per decoded token: as predicted, and the median of an answer's laps."""

    peer: str
    predicted_compute_s: float
    measured_compute_s: float

    @property
    def ratio(self) -> float:
        """Measured over predicted: above 1 is slower than predicted."""
        return self.measured_compute_s / self.predicted_compute_s
