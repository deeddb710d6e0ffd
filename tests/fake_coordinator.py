"""A coordinator without a ring: the same interface, scripted devices, answers and times.

Every step waits at `pause(seconds)`. Tests pass a `Gate`, which lets them walk step by step; a demonstration
passes `asyncio.sleep`. What was asked and what was closed is kept for the tests to read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from dnet_core.errors import DnetError, NotReady
from dnet_core.events import (
    Event,
    FetchProgressed,
    LapMeasured,
    LoadFailed,
    LoadProgressed,
    LoadStarted,
    ModelLoaded,
    ModelUnloaded,
    PeerJoined,
    PeerLeft,
    SessionEnded,
    SessionStarted,
)
from dnet_core.types.devices import PROTOCOL_VERSION, Medium, Peer, PeerAddress, PeerSource
from dnet_core.types.generation import (
    FinishReason,
    GenerationDone,
    GenerationEvent,
    GenerationRequest,
    PromptProgress,
    StageTime,
    TokenText,
)
from dnet_core.types.ring import RingPlan, split_evenly

_EVENT_BOUND = 1024  # a listener that falls this far behind is broken: told by QueueFull


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


@dataclass(frozen=True, slots=True)
class FakeLoaded:
    model: str
    plan: RingPlan
    context_tokens: int
    thinking_switches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the fake thinks and says: its tokens, and the error that breaks it off after them, if any."""

    tokens: tuple[str, ...]
    error: DnetError | None = None
    thoughts: tuple[str, ...] = ()


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


class FakeCoordinator:
    """Speaks the interface of `dnet_core.coordinator.Coordinator`."""

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
        self._pause = pause or self.gate
        self._peers = tuple(peer(name, 58081 + index) for index, name in enumerate(devices))
        self._plan = plan or (lambda model: split_evenly(model, num_layers, tuple(devices), 1, 8192))
        self._answers = tuple(answers)
        self.load_error = load_error
        self._start_error = start_error
        self.fetch_bytes = fetch_bytes
        self._prompt_tokens = prompt_tokens
        self._prompt_chunks = prompt_chunks
        self._thinking_switches = thinking_switches
        self._listeners: list[asyncio.Queue[Event]] = []
        self._loaded: FakeLoaded | None = None
        self.requests: list[GenerationRequest] = []
        self.num_loads = 0
        self.closed_after: list[int] = []
        """Tokens sent before the consumer closed the stream, for every stream that was closed early."""
        self.closed = asyncio.Event()
        self.ended: list[FinishReason] = []
        self.is_open = False

    async def __aenter__(self) -> Self:
        if self._start_error is not None:
            raise self._start_error
        self.is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.is_open = False

    @property
    def peers(self) -> tuple[Peer, ...]:
        return self._peers

    @property
    def loaded(self) -> FakeLoaded | None:
        return self._loaded

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Event]]:
        queue: asyncio.Queue[Event] = asyncio.Queue(_EVENT_BOUND)
        self._listeners.append(queue)

        async def events() -> AsyncIterator[Event]:
            while True:
                yield await queue.get()

        try:
            yield events()
        finally:
            self._listeners.remove(queue)

    def tell(self, event: Event) -> None:
        for queue in self._listeners:
            queue.put_nowait(event)

    def lose(self, name: str, reason: str = "connection closed") -> None:
        self.tell(PeerLeft(name, reason))

    def join(self, name: str) -> None:
        self.tell(PeerJoined(next(p for p in self._peers if p.name == name)))

    async def load(self, model: str) -> FakeLoaded:
        """Fetch (4 steps, if there is anything to fetch), then load each device in 4 steps."""
        self.num_loads += 1
        try:
            return await self._load(model)
        except DnetError as error:
            self.tell(LoadFailed(model, str(error)))
            raise
        finally:
            self.gate.rest()

    async def _load(self, model: str) -> FakeLoaded:
        self._loaded = None
        await self._pause(0.1)
        if self.load_error is not None:
            raise self.load_error
        for quarter in range(1, 5) if self.fetch_bytes else ():
            self.tell(FetchProgressed(model, self.fetch_bytes * quarter // 4, self.fetch_bytes))
            await self._pause(0.2)
        plan = self._plan(model)
        self.tell(LoadStarted(plan))
        for quarter in range(1, 5):
            for assignment in plan.assignments:
                total = 3_300_000 * len(assignment.layers)
                self.tell(LoadProgressed(assignment.peer, total * quarter // 4, total))
            await self._pause(0.2)
        self._loaded = FakeLoaded(model, plan, plan.context_tokens, self._thinking_switches)
        self.tell(ModelLoaded(plan, 1.8))
        return self._loaded

    async def unload(self) -> None:
        if self._loaded is not None:
            self.tell(ModelUnloaded(self._loaded.model))
            self._loaded = None

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """One pause before every prompt chunk and before every token."""
        if self._loaded is None:
            raise NotReady("no model is loaded")
        answer = self._answers[len(self.requests) % len(self._answers)]
        self.requests.append(request)
        session, sent, finish = f"s{len(self.requests)}", 0, FinishReason.CANCELLED
        self.tell(SessionStarted(session, self._prompt_tokens))
        try:
            yield PromptProgress(0, self._prompt_tokens, ())
            for chunk in range(1, self._prompt_chunks + 1):
                await self._pause(0.3)
                done = self._prompt_tokens * chunk // self._prompt_chunks
                yield PromptProgress(done, self._prompt_tokens, self._stages())
            for thought, text in [(t, "") for t in answer.thoughts] + [("", t) for t in answer.tokens]:
                await self._pause(0.09)
                stages, position = self._stages(), self._prompt_tokens + sent
                sent += 1
                self.tell(LapMeasured(session, position, stages))
                yield TokenText(text, 1000 + sent, position, None, (), stages, thought)
            await self._pause(0.09)
            if answer.error is not None:
                raise answer.error
            finish = FinishReason.STOP
            yield GenerationDone(finish, self._prompt_tokens, sent, 0, 1.9, 11.8)
        finally:
            if finish is FinishReason.CANCELLED and answer.error is None:
                self.closed_after.append(sent)
                self.closed.set()
            self.ended.append(finish)
            self.tell(SessionEnded(session, finish, self._prompt_tokens, sent))
            self.gate.rest()

    def _stages(self) -> tuple[StageTime, ...]:
        assert self._loaded is not None, "only a loaded ring runs"
        layers = {a.peer: a for a in self._loaded.plan.assignments}
        return tuple(
            StageTime(
                peer=name,
                queue_s=0.0001,
                compute_s=0.0021 * len(assignment.resident) + 0.0004 * index,
                disk_wait_s=0.004 * len(assignment.streamed),
                wire_s=0.0003 * (index + 1),
                read_bytes=3_300_000 * len(assignment.streamed),
                read_s=0.006 * len(assignment.streamed),
            )
            for index, (name, assignment) in enumerate(layers.items())
        )
