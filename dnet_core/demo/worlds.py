"""Where the plans and the times of a simulated cluster come from.

`Macs` asks the real solver for plans and the event simulator for times. Tests have a world of their own, in
which both are written down.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from dnet_core import planning
from dnet_core.demo import macs, models
from dnet_core.demo.rings import decode_ring, prompt_ring
from dnet_core.demo.simulator import Passage, SimulatedRing, Simulator
from dnet_core.library import Facts, fit_of
from dnet_core.planning import Prepared, Wishes
from dnet_core.profile.published import published_profile
from dnet_core.solve.problem import build
from dnet_core.types.devices import Peer
from dnet_core.types.generation import StageTime
from dnet_core.types.models import ModelFit
from dnet_core.types.plan import Solution, SolveRequest
from dnet_core.types.ring import RingPlan

CHUNK_TOKENS = 512
_WARM_UP_TOKENS = 8  # while buffers fill
_SIMULATED_TOKENS = 40  # after these a ring is in its steady state, and the times repeat
_SPREAD = 0.04  # of stage times around the simulated ones, as of machines that do other things too
_LOAD_STEP_S = 1 / 8


@dataclass(frozen=True, slots=True)
class Lap:
    """One lap: how long it takes, and where the time goes."""

    seconds: float
    stages: tuple[StageTime, ...]


@dataclass(frozen=True, slots=True)
class LoadStep:
    """(done, total) bytes of each device, and how long it is until the next step."""

    progress: Mapping[str, tuple[int, int]]
    seconds: float


class Placed(Protocol):
    """A plan, and how long things take with it."""

    @property
    def plan(self) -> RingPlan: ...
    @property
    def prepared(self) -> Prepared | None:
        """What the plan was chosen from; None where it was written down."""
        ...

    @property
    def load_steps(self) -> tuple[LoadStep, ...]: ...
    def prompt_laps(self, prompt_tokens: int) -> tuple[tuple[int, Lap], ...]:
        """Chunk by chunk: the tokens read when it has passed, and the lap since the chunk before."""
        ...

    def token_lap(self, index: int) -> Lap: ...


class World(Protocol):
    """Devices, and what a ring of them would do."""

    @property
    def peers(self) -> tuple[Peer, ...]: ...
    def num_tokens(self, text: str) -> int: ...
    async def fit(self, model: str, gone: frozenset[str]) -> ModelFit: ...
    async def prepare(self, model: str, wishes: Wishes, gone: frozenset[str]) -> Prepared: ...
    async def place(
        self, model: str, plan: RingPlan | Solution | None, wishes: Wishes, gone: frozenset[str]
    ) -> Placed:
        """`plan` None: as `prepare` finds best. Raises what it raises, and LoadError."""
        ...


class Macs:
    """The first `count` Macs of `demo.macs` with the models of `demo.models`."""

    def __init__(self, count: int) -> None:
        desk = macs.desk(count)
        self.peers = tuple(macs.peer(mac, index) for index, mac in enumerate(desk))
        self._devices = tuple(macs.profile(mac) for mac in desk)
        self._links = macs.links(desk)

    def num_tokens(self, text: str) -> int:
        return 16 + len(text) // 4

    async def fit(self, model: str, gone: frozenset[str]) -> ModelFit:
        profile = published_profile(models.find(model))
        devices = tuple(device for device in self._devices if device.peer not in gone)
        facts = Facts(devices, self._links, CHUNK_TOKENS, one_machine=False)
        return await asyncio.to_thread(fit_of, profile, facts, Wishes())

    async def prepare(self, model: str, wishes: Wishes, gone: frozenset[str]) -> Prepared:
        request = self._request(model, wishes, gone)
        # Beside the event loop, so that streams and screen go on.
        solution = await asyncio.to_thread(planning.place, request, one_machine=False)
        return Prepared(model, request, solution, one_machine=False)

    async def place(
        self, model: str, plan: RingPlan | Solution | None, wishes: Wishes, gone: frozenset[str]
    ) -> Placed:
        prepared = await self.prepare(model, wishes, gone)
        if isinstance(plan, Solution):
            prepared = replace(prepared, solution=plan)
        elif plan is not None:
            windows = {a.peer: a.windows for a in plan.assignments}
            resident = {a.peer: len(a.resident) for a in plan.assignments}
            solution = await asyncio.to_thread(planning.predict, prepared, windows, resident)
            prepared = replace(prepared, solution=solution)
        return await asyncio.to_thread(PlacedOnMacs, prepared)

    def _request(self, model: str, wishes: Wishes, gone: frozenset[str]) -> SolveRequest:
        profile = published_profile(models.find(model))
        devices = tuple(device for device in self._devices if device.peer not in gone)
        return planning.request_from(profile, devices, self._links, CHUNK_TOKENS, wishes)


class PlacedOnMacs:
    """A solver's plan in the simulator."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.plan = prepared.solution.plan
        ring = decode_ring(self.plan, build(prepared.request))
        simulator = Simulator(ring)
        ends = simulator.token_times(_SIMULATED_TOKENS)
        frames = [number // len(ring.visits) for number in range(len(simulator.passages))]
        self._laps = self._laps_of(ring, ends, zip(frames, simulator.passages, strict=True))[_WARM_UP_TOKENS:]
        self.load_steps = _load_steps(prepared)

    def token_lap(self, index: int) -> Lap:
        lap = self._laps[index % len(self._laps)]
        noise = random.Random(index)  # noqa: S311 - the same demonstration every time
        stages = tuple(_scaled(stage, noise.uniform(1 - _SPREAD, 1 + _SPREAD)) for stage in lap.stages)
        return Lap(lap.seconds + sum(map(_total_s, stages)) - sum(map(_total_s, lap.stages)), stages)

    def prompt_laps(self, prompt_tokens: int) -> tuple[tuple[int, Lap], ...]:
        count = max(1, -(-prompt_tokens // CHUNK_TOKENS))
        # In whole chunks, because the simulator takes all of a prompt's chunks for as long as the last.
        whole = prompt_tokens if count == 1 else min(count * CHUNK_TOKENS, self.plan.context_tokens)
        ring = prompt_ring(self.plan, build(replace(self.prepared.request, prompt_tokens=whole)))
        simulator = Simulator(ring)
        ends = simulator.chunk_times(count)
        laps = self._laps_of(ring, ends, ((passage.frame, passage) for passage in simulator.passages))
        return tuple((min(prompt_tokens, (c + 1) * CHUNK_TOKENS), lap) for c, lap in enumerate(laps))

    def _laps_of(
        self, ring: SimulatedRing, ends: list[float], passages: Iterable[tuple[int, Passage]]
    ) -> list[Lap]:
        """Laps from the visits of each; a lap lasts from the end of the one before."""
        peers = [assignment.peer for assignment in self.plan.assignments]
        layer_bytes = [layer.weight_bytes for layer in self.prepared.request.model.layers]
        windows = [window for window, _ in self.plan.path]
        stages: list[list[StageTime]] = [[] for _ in ends]
        for lap, passage in passages:
            visit = ring.visits[passage.visit]
            reads = [
                (layer_bytes[number], layer.read_s)
                for number, layer in zip(windows[passage.visit].layers, visit.layers, strict=True)
                if layer.read_s is not None
            ]
            last = passage.visit == len(ring.visits) - 1
            stages[lap].append(
                StageTime(
                    peer=peers[visit.device],
                    queue_s=passage.queue_s,
                    compute_s=passage.compute_s,
                    disk_wait_s=passage.disk_wait_s,
                    wire_s=ring.back_s if last else ring.visits[passage.visit + 1].hop_s,
                    read_bytes=sum(size for size, _ in reads),
                    read_s=sum(seconds for _, seconds in reads),
                )
            )
        starts = [0.0, *ends[:-1]]
        return [Lap(end - start, tuple(s)) for start, end, s in zip(starts, ends, stages, strict=True)]


def _total_s(stage: StageTime) -> float:
    return stage.compute_s + stage.disk_wait_s + stage.wire_s


def _scaled(stage: StageTime, factor: float) -> StageTime:
    return replace(
        stage,
        compute_s=stage.compute_s * factor,
        disk_wait_s=stage.disk_wait_s * factor,
        wire_s=stage.wire_s * factor,
    )


def _load_steps(prepared: Prepared) -> tuple[LoadStep, ...]:
    """All devices read at once, each as fast as its disk."""
    rates = {device.peer: device.disk_read_bytes_per_s for device in prepared.request.devices}
    totals = {
        device.peer: max(1, device.resident_bytes + device.embedding_bytes + device.head_bytes)
        for device in prepared.solution.prediction.devices
    }
    longest_s = max(total / rates[peer] for peer, total in totals.items())
    count = max(1, round(longest_s / _LOAD_STEP_S))
    return tuple(
        LoadStep(
            {
                peer: (min(total, int(rates[peer] * step * longest_s / count)), total)
                for peer, total in totals.items()
            },
            longest_s / count,
        )
        for step in range(1, count + 1)
    )
