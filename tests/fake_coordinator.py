"""The simulated cluster of the product with everything written down: devices, plans, answers and times.

Every step waits at a `Gate`, which lets tests walk step by step. What was asked and what was closed is kept
for the tests to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dnet_core.demo.answers import Answer
from dnet_core.demo.cluster import DemoCluster, DemoModel
from dnet_core.demo.worlds import Lap, LoadStep
from dnet_core.errors import DnetError, NotReady
from dnet_core.events import FetchProgressed, PeerJoined, PeerLeft
from dnet_core.planning import Prepared, Wishes
from dnet_core.types.devices import PROTOCOL_VERSION, Medium, Peer, PeerAddress, PeerSource
from dnet_core.types.generation import (
    FinishReason,
    GenerationDone,
    GenerationRequest,
    StageTime,
)
from dnet_core.types.models import Fits, ModelFit
from dnet_core.types.plan import Solution
from dnet_core.types.ring import RingPlan, split_evenly

__all__ = ["Answer", "FakeCoordinator", "Gate", "peer", "words"]


class Gate:
    """A pause that ends when the test says so."""

    def __init__(self) -> None:
        self._go = asyncio.Semaphore(0)
        self._quiet = asyncio.Event()
        self.now_s = 0.0
        """The sum of all pauses that have passed: the clock of a test."""

    async def __call__(self, seconds: float) -> None:
        self._quiet.set()
        await self._go.acquire()
        self.now_s += seconds

    def rest(self) -> None:
        """What went through the gate has ended."""
        self._quiet.set()

    async def arrive(self) -> None:
        """Wait until something stands at the gate, or has ended."""
        await self._quiet.wait()

    async def step(self, steps: int = 1) -> None:
        """Let `steps` pauses pass; return when the next one is reached or all is done."""
        for _ in range(steps):
            await self._quiet.wait()
            self._quiet.clear()
            self._go.release()
            await self._quiet.wait()


def peer(name: str, port: int = 58081, host: str = "127.0.0.1") -> Peer:
    return Peer(
        name=name,
        addresses=(PeerAddress(host, Medium.LOOPBACK),),
        grpc_port=port,
        http_port=port - 50_000,
        version="0.1.0",
        protocol_version=PROTOCOL_VERSION,
        cluster="default",
        source=PeerSource.LOCAL,
    )


def words(text: str) -> tuple[str, ...]:
    """Cut `text` into tokens: every word with the space before it."""
    head, *rest = text.split(" ")
    return (head, *(f" {word}" for word in rest))


DEFAULT_ANSWER = Answer(words("The capital of France is **Paris**."))


@dataclass(frozen=True)
class WrittenPlan:
    """A plan with times that are easy to reckon with."""

    plan: RingPlan
    prompt_chunks: int
    prepared: None = None

    @property
    def load_steps(self) -> tuple[LoadStep, ...]:
        totals = {a.peer: 3_300_000 * len(a.layers) for a in self.plan.assignments}
        return tuple(
            LoadStep({name: (total * quarter // 4, total) for name, total in totals.items()}, 0.2)
            for quarter in range(1, 5)
        )

    def prompt_laps(self, prompt_tokens: int) -> tuple[tuple[int, Lap], ...]:
        chunks = range(1, self.prompt_chunks + 1)
        return tuple(
            (prompt_tokens * chunk // self.prompt_chunks, Lap(0.3, self._stages())) for chunk in chunks
        )

    def token_lap(self, index: int) -> Lap:
        return Lap(0.09, self._stages())

    def _stages(self) -> tuple[StageTime, ...]:
        return tuple(
            StageTime(
                peer=assignment.peer,
                queue_s=0.0001,
                compute_s=0.0021 * len(assignment.resident) + 0.0004 * index,
                disk_wait_s=0.004 * len(assignment.streamed),
                wire_s=0.0003 * (index + 1),
                read_bytes=3_300_000 * len(assignment.streamed),
                read_s=0.006 * len(assignment.streamed),
            )
            for index, assignment in enumerate(self.plan.assignments)
        )


class WrittenWorld:
    """A world without measurements: plans cannot be prepared, only placed."""

    def __init__(
        self,
        devices: Sequence[str],
        plan: Callable[[str], RingPlan],
        prompt_tokens: int,
        prompt_chunks: int,
    ) -> None:
        self.peers = tuple(peer(name, 58081 + index) for index, name in enumerate(devices))
        self._plan = plan
        self._prompt_tokens = prompt_tokens
        self._prompt_chunks = prompt_chunks

    def num_tokens(self, text: str) -> int:
        return self._prompt_tokens

    async def fit(self, model: str, gone: frozenset[str]) -> ModelFit:
        """All fit, the faster the shorter their names."""
        return Fits(30, 3_300_000 * 30, len(self.peers), 0, 1000 / len(model), 0.5, is_measured=True)

    async def prepare(self, model: str, wishes: Wishes, gone: frozenset[str]) -> Prepared:
        raise NotReady("nothing is measured here")

    async def place(
        self, model: str, plan: RingPlan | Solution | None, wishes: Wishes, gone: frozenset[str]
    ) -> WrittenPlan:
        if isinstance(plan, Solution):
            plan = plan.plan
        return WrittenPlan(plan or self._plan(model), self._prompt_chunks)


class FakeCoordinator(DemoCluster):
    """A written world at a gate."""

    def __init__(
        self,
        *,
        devices: Sequence[str] = ("shard-1", "shard-2"),
        plan: Callable[[str], RingPlan] | None = None,
        num_layers: int = 30,
        answers: Sequence[Answer] = (DEFAULT_ANSWER,),
        load_error: DnetError | None = None,
        start_error: DnetError | None = None,
        fetch_bytes: int = 0,
        prompt_tokens: int = 40,
        prompt_chunks: int = 1,
        thinking_switches: tuple[str, ...] = (),
        pause: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self.gate = Gate()
        even = lambda model: split_evenly(model, num_layers, tuple(devices), 1, 8192)  # noqa: E731
        super().__init__(
            WrittenWorld(devices, plan or even, prompt_tokens, prompt_chunks),
            answers=answers,
            known={},
            thinking_switches=thinking_switches,
            pause=pause or self.gate,
            clock=lambda: self.gate.now_s,
        )
        self._start_error = start_error
        self.load_error = load_error
        self.fetch_bytes = fetch_bytes
        self.requests: list[GenerationRequest] = []
        self.num_loads = 0
        self.closed_after: list[int] = []
        """Tokens sent before the consumer closed the stream, for every stream that was closed early."""
        self.closed = asyncio.Event()
        self.ended: list[FinishReason] = []
        self.is_open = False

    async def _fetch(self, model: str) -> None:
        """Four steps, if there is anything to fetch."""
        await self._pause(0.1)
        if self.load_error is not None:
            raise self.load_error
        for quarter in range(1, 5) if self.fetch_bytes else ():
            self.tell(FetchProgressed(model, self.fetch_bytes * quarter // 4, self.fetch_bytes))
            await self._pause(0.2)

    async def __aenter__(self) -> Self:
        if self._start_error is not None:
            raise self._start_error
        self.is_open = True
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_open = False
        await super().__aexit__(kind, error, trace)

    def lose(self, name: str, reason: str = "connection closed") -> None:
        """Tell only that it is gone: what follows from it is the test's to tell."""
        self.tell(PeerLeft(name, reason))

    def join(self, name: str) -> None:
        self.tell(PeerJoined(next(p for p in self.peers if p.name == name)))

    async def load(
        self, model: str, plan: RingPlan | Solution | None = None, chunk_tokens: int | None = None
    ) -> DemoModel:
        self.num_loads += 1
        try:
            return await super().load(model, plan, chunk_tokens)
        finally:
            self.gate.rest()

    def answer_to(self, request: GenerationRequest) -> Answer:
        self.requests.append(request)
        return super().answer_to(request)

    def done(
        self, finish: FinishReason, prompt_tokens: int, sent: int, begun_s: float, first_s: float | None
    ) -> GenerationDone:
        return GenerationDone(finish, prompt_tokens, sent, 0, 1.9, 11.8)

    def session_ended(self, sent: int, finish: FinishReason, answer: Answer) -> None:
        if finish is FinishReason.CANCELLED and answer.error is None:
            self.closed_after.append(sent)
            self.closed.set()
        self.ended.append(finish)
        self.gate.rest()
