"""The values of the control calls: what a shard says of itself, what it is told to load and to open."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from dnet_core.transport.frames import DriverFrame, RingFrame
from dnet_core.types.devices import Medium, PeerAddress, ThunderboltPort
from dnet_core.types.generation import SamplingParams
from dnet_core.types.profiles import LinkProfile, ProfileRequest
from dnet_core.types.ring import LayerWindow


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """A shard's answer to "who are you, what do you hold".

    Active and peak bytes are of MLX arrays, by MLX's own count. What was read are streamed layers, since the
    model was loaded. KV memory is set aside for a session when it is opened, for all that it may need.
    """

    id: str
    name: str
    version: str
    protocol_version: int
    cluster: str
    grpc_port: int
    http_port: int
    addresses: tuple[PeerAddress, ...]
    thunderbolt: tuple[ThunderboltPort, ...]
    backend: str
    active_bytes: int
    peak_bytes: int
    memory_total_bytes: int
    budget_bytes: int
    model: str | None
    num_resident: int
    num_streamed: int
    sessions: tuple[str, ...]
    prefixes: tuple[str, ...]
    prefix_bytes: int
    steps: int
    read_bytes: int
    read_s: float
    kv_room_bytes: int
    kv_taken_bytes: int


@dataclass(frozen=True, slots=True)
class Hop:
    """The next shard of the ring; `target` as gRPC takes it: `host:port` or `unix:path`."""

    name: str
    target: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a load may take: `budget_bytes` in all, of which `workspace_bytes` are for computing.

    A prompt comes in chunks of at most `chunk_tokens`.
    """

    budget_bytes: int | None  # None: what the shard finds itself
    workspace_bytes: int
    chunk_tokens: int


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """The part of a plan that one shard carries out."""

    model: str
    num_layers: int
    windows: tuple[LayerWindow, ...]
    streamed: tuple[int, ...]
    num_buffers: int
    context_tokens: int
    kv_bits: int
    next: Hop | None  # None: a ring of one
    limits: Limits

    @property
    def num_layers_here(self) -> int:
        return sum(map(len, self.windows))

    @property
    def resident(self) -> frozenset[int]:
        """The layers that stay in memory."""
        return frozenset(layer for window in self.windows for layer in window.layers) - set(self.streamed)

    @property
    def is_first(self) -> bool:
        """Whether it needs the embedding."""
        return any(window.start == 0 for window in self.windows)

    @property
    def is_last(self) -> bool:
        """Whether it needs norm and head."""
        return any(window.stop == self.num_layers for window in self.windows)


class LoadStep(StrEnum):
    FETCH = "fetch"
    READ = "read"
    WARM = "warm"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Progress of a load; `fingerprint` of the model's files is empty until READY."""

    step: LoadStep
    done_bytes: int
    total_bytes: int
    fingerprint: str


class Purpose(StrEnum):
    """What a session's prompt is read for."""

    ANSWER = "answer"  # tokens are sampled after it
    EMBED = "embed"  # the tail tells the mean of its hidden states, and the session is over
    READ = "read"  # nothing: it is kept for sessions that begin with it


@dataclass(frozen=True, slots=True)
class Reuse:
    """A session begins with the first `num_tokens` of a prefix that was kept under this name."""

    prefix: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """A shard has kept the KV of so many tokens; without `can_trim` it is of use only for all of them."""

    num_tokens: int
    can_trim: bool


@dataclass(frozen=True, slots=True)
class SessionOrder:
    """All that holds for a whole session. `sampling.seed` and `max_tokens` are set here.

    `answered_tokens` is the part of the answer that another ring has sampled before this session was opened:
    its frames read prompt and answer so far alike, and what is counted (`max_tokens`) or follows the answer's
    course goes on behind it. `recent_tokens` are the last ones of both.
    """

    session: str
    prompt_tokens: int
    max_tokens: int
    stop_tokens: tuple[int, ...]
    recent_tokens: tuple[int, ...]
    xtc_special_tokens: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    answered_tokens: tuple[int, ...]
    purpose: Purpose
    reuse: Reuse | None  # None: the prompt comes whole


@dataclass(frozen=True, slots=True)
class Arrival:
    """A frame and when it came: receiver's monotonic clock, and its seconds on the wire."""

    frame: RingFrame
    received_s: float
    wire_s: float


class ShardService(Protocol):
    """What a shard does for its callers; the gRPC server is a thin shell around one of these.

    Errors of these calls are DnetErrors.
    """

    def status(self) -> ShardStatus: ...

    async def warm_up(self) -> None:
        """Return when what models need is imported; until then it answers, but slowly."""
        ...

    async def models(self) -> tuple[str, ...]:
        """Models whose files are whole on this machine, as a load names them."""
        ...

    def load(self, order: LoadOrder) -> AsyncGenerator[LoadReport, None]: ...

    async def unload(self) -> None: ...

    async def profile(self, request: ProfileRequest, fresh: bool) -> str:
        """A DeviceProfile in its JSON form."""
        ...

    async def measure_link(self, hop: Hop, medium: Medium) -> LinkProfile: ...

    async def open_session(self, driver: str, order: SessionOrder) -> None: ...

    async def close_session(self, session: str, keep_as: str | None) -> KeptPrefix | None:
        """Free the session's memory at once, or keep its KV under this name; None: nothing is kept."""
        ...

    async def drop_prefixes(self, names: tuple[str, ...]) -> None: ...

    def receive(self, arrival: Arrival) -> None: ...

    def driver_frames(self, driver: str) -> AsyncGenerator[list[DriverFrame], None]: ...
