"""The coordinator's interface over a simulated world.

Everything that takes time waits at `pause(seconds)`: `asyncio.sleep` in a demonstration, a gate in tests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from dnet_core import planning
from dnet_core.demo import models
from dnet_core.demo.answers import ANSWERS, KNOWN, Answer
from dnet_core.demo.library import DemoLibrary
from dnet_core.demo.loaded import DemoModel, DemoRing
from dnet_core.demo.macs import MOST_MACS
from dnet_core.demo.worlds import Placed, World
from dnet_core.errors import DnetError, NotReady, PeerLost, PeerReturned
from dnet_core.events import (
    DevicesMeasured,
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
    Recovered,
    RecoveryStarted,
    RingLost,
    SessionEnded,
    SessionStarted,
)
from dnet_core.planning import Prepared, Wishes
from dnet_core.tasks import TaskScope
from dnet_core.types.devices import Peer, PeerSource
from dnet_core.types.generation import (
    FinishReason,
    GenerationDone,
    GenerationEvent,
    GenerationRequest,
    Paused,
    PromptProgress,
    Resumed,
    TokenText,
)
from dnet_core.types.plan import Pin, Solution
from dnet_core.types.ring import LayerWindow, RingPlan

_EVENT_BOUND = 4096  # a listener that falls this far behind is broken: told by QueueFull
_MEASURE_S = 0.6
_LOOK_S = 0.1
_FETCH_STEP_S = 0.2
FETCH_BYTES_PER_S = 90e6

HERE = frozenset({models.SAMPLE.id, *(models.for_macs(count) for count in range(1, MOST_MACS + 1))})
"""The models that a demonstration need not fetch."""


class DemoCluster:
    """Speaks the interface of `dnet_core.coordinator.Coordinator`; `lose` and `rejoin` are its own."""

    def __init__(
        self,
        world: World,
        *,
        answers: Sequence[Answer] = ANSWERS,
        known: Mapping[str, Answer] = KNOWN,
        thinking_switches: tuple[str, ...] = (),
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        here: frozenset[str] = HERE,
    ) -> None:
        self._world = world
        self._answers = tuple(answers)
        self._known = known
        self._thinking_switches = thinking_switches
        self._pause = pause
        self._clock = clock
        self._tasks = TaskScope()
        self._listeners: list[asyncio.Queue[Event]] = []
        self._gone: set[str] = set()
        self._lost: set[str] = set()  # by the loaded model
        self._changing = asyncio.Lock()
        self._is_replaced = False  # a load runs, or waits until it may
        self._ring: DemoRing | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._loaded: DemoModel | None = None
        self._prepared: Prepared | None = None
        self._num_sessions = 0
        self.wishes = Wishes()
        self.library = DemoLibrary(
            world,
            self._tasks,
            self.tell,
            pause,
            loaded=lambda: self._loaded.model if self._loaded else None,
            gone=lambda: frozenset(self._gone),
            here=here,
        )

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)

    # ---- events ----

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Event]]:
        """Everything that happens from now on, in order."""
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

    # ---- devices ----

    @property
    def peers(self) -> tuple[Peer, ...]:
        return tuple(peer for peer in self._world.peers if peer.name not in self._gone)

    @property
    def all_peers(self) -> tuple[Peer, ...]:
        """Also those that were lost."""
        return self._world.peers

    def lose(self, name: str, reason: str = "the connection was closed") -> None:
        """Take a device away, in the middle of whatever it does."""
        if name in self._gone:
            return
        self._gone.add(name)
        self.tell(PeerLeft(name, reason))
        ring = self._ring
        if ring is not None and ring.end is None and name in ring.peers:
            ring.end = PeerLost(name, reason)
            self._leave_out(ring, name, reason)
            self._recovery = self._tasks.start(self._recover(ring))

    def _leave_out(self, ring: DemoRing, name: str, reason: str) -> None:
        self._lost.add(name)
        self.tell(RingLost(ring.placed.plan.model, name, reason))

    async def _recover(self, ring: DemoRing) -> None:
        """Load the model of `ring` on the devices that are there, again when one of them leaves meanwhile."""
        model, begun_s = ring.placed.plan.model, self._clock()
        async with self._changing:
            loaded: DemoModel | None = None
            while loaded is None:
                self.tell(RecoveryStarted(model, tuple(peer.name for peer in self.peers)))
                try:
                    loaded = await self._load(model, None)
                except PeerLost as error:
                    self._leave_out(ring, error.peer, "it went away while layers moved")
                except DnetError as error:
                    self.tell(LoadFailed(model, str(error)))
                    self._drop(error)
                    return
        seconds = self._clock() - begun_s
        self.tell(Recovered(loaded.plan, seconds, _MEASURE_S, seconds - _MEASURE_S))
        assert self._ring is not None, "it was loaded just now"
        ring.successor.set_result(self._ring)

    def rejoin(self, name: str) -> None:
        """Bring a lost device back; it is offered to the next plan."""
        if name not in self._gone:
            return
        self._gone.discard(name)
        self.tell(PeerJoined(next(peer for peer in self._world.peers if peer.name == name)))
        if self._loaded is not None and name in self.offered:
            self.tell(PeerOffered(name, self._loaded.model))

    @property
    def offered(self) -> tuple[str, ...]:
        """Devices that the loaded model has lost and that are back."""
        return tuple(peer.name for peer in self.peers if peer.name in self._lost)

    async def take_in(self) -> DemoModel:
        """As the coordinator's: answers pause, and go on with the devices that are `offered`."""
        ring, returned = self._ring, self.offered
        if ring is None or self.is_changing or ring.end is not None:
            raise NotReady(
                "no model is loaded" if ring is None else "layers are moving just now: wait a moment"
            )
        if not returned:
            raise NotReady("no device is back that the loaded model had lost")
        ring.end = PeerReturned(returned)
        self._lost.difference_update(returned)
        self._recovery = self._tasks.start(self._recover(ring))
        await asyncio.shield(ring.successor)
        assert self._loaded is not None, "something follows"
        return self._loaded

    # ---- plan ----

    cluster_key = "demo-key-of-no-cluster"

    def forget_measurements(self) -> None:
        """Simulated Macs are what they are."""

    @property
    def prepared(self) -> Prepared | None:
        """The plan that was made last, loaded or not."""
        return self._prepared

    async def prepare(self, model: str, wishes: Wishes | None = None) -> Prepared:
        self.tell(PlanStarted(model))
        await self._measure()
        return self._keep(await self._world.prepare(model, wishes or self.wishes, frozenset(self._gone)))

    async def _measure(self) -> None:
        total = len(self.peers)
        for done in range(total):
            self.tell(MeasurementProgressed("devices", done, total))
            await self._pause(_MEASURE_S / total)

    async def replan(self, excluded: Collection[str] = (), pins: tuple[Pin, ...] = ()) -> Solution:
        return await asyncio.to_thread(planning.replan, self._facts(), excluded, pins)

    async def predict(
        self, windows: Mapping[str, tuple[LayerWindow, ...]], num_resident: Mapping[str, int] | None = None
    ) -> Solution:
        return await asyncio.to_thread(planning.predict, self._facts(), windows, num_resident or {})

    def _facts(self) -> Prepared:
        if self._prepared is None:
            raise NotReady("nothing has been planned yet: load a model first")
        return self._prepared

    def _keep(self, prepared: Prepared) -> Prepared:
        self._prepared = prepared
        self.tell(DevicesMeasured(prepared.request))
        self.tell(PlanMade(prepared.solution))
        return prepared

    # ---- load ----

    @property
    def loaded(self) -> DemoModel | None:
        return self._loaded

    @property
    def is_changing(self) -> bool:
        return self._is_replaced or self._changing.locked()

    async def load(
        self, model: str, plan: RingPlan | Solution | None = None, chunk_tokens: int | None = None
    ) -> DemoModel:
        """As the coordinator's; `chunk_tokens` is the world's own."""
        if self._is_replaced:
            raise NotReady("a model is being loaded: wait for it or cancel it")
        self._is_replaced = True
        try:
            why = NotReady("another model is being loaded")
            self._stop_recovery(why)
            async with self._changing:
                self._drop(why)
                begun_s = self._clock()
                try:
                    await self._fetch(model)
                    loaded = await self._load(model, plan)
                except DnetError as error:
                    self.tell(LoadFailed(model, str(error)))
                    raise
                self.tell(ModelLoaded(loaded.plan, self._clock() - begun_s))
                return loaded
        finally:
            self._is_replaced = False

    def _stop_recovery(self, why: DnetError) -> None:
        """Let no recovery go on, nor anybody wait for it."""
        if self._recovery is not None and not self._recovery.done():
            self._recovery.cancel()
        self._drop(why)

    async def _fetch(self, model: str) -> None:
        await self._pause(_LOOK_S)
        missing = self.library.missing_bytes(model)
        steps = max(1, round(missing / FETCH_BYTES_PER_S / _FETCH_STEP_S)) if missing else 0
        for step in range(1, steps + 1):
            self.tell(FetchProgressed(model, missing * step // steps, missing))
            await self._pause(_FETCH_STEP_S)
        self.library.fetched(model)

    async def _fetch_elsewhere(self, plan: RingPlan) -> None:
        """The other devices of `plan` bring the files to themselves, one slower than the other."""
        local = {peer.name for peer in self._world.peers if peer.source is PeerSource.LOCAL}
        others = [a.peer for a in plan.assignments if a.peer not in local]
        missing = self.library.missing_on(plan.model, others)
        done = dict.fromkeys(missing, 0)
        while missing:
            for index, peer in enumerate(missing):
                step = int(FETCH_BYTES_PER_S * _FETCH_STEP_S / (1 + index / 4))
                done[peer] = min(missing[peer], done[peer] + step)
                self.tell(FetchProgressed(plan.model, done[peer], missing[peer], peer))
            missing = {peer: size for peer, size in missing.items() if done[peer] < size}
            await self._pause(_FETCH_STEP_S)
        self.library.fetched_on(plan.model, others)

    async def _load(self, model: str, plan: RingPlan | Solution | None) -> DemoModel:
        if plan is None:
            self.tell(PlanStarted(model))
        placed = await self._world.place(model, plan, self.wishes, frozenset(self._gone))
        if placed.prepared is not None:
            await self._measure()
            self._keep(placed.prepared)
        self.tell(LoadStarted(placed.plan))
        await self._fetch_elsewhere(placed.plan)
        for load_step in placed.load_steps:
            for peer, (done, total) in load_step.progress.items():
                self.tell(LoadProgressed(peer, done, total))
            self._report_memory(placed, {peer: done for peer, (done, _) in load_step.progress.items()})
            await self._pause(load_step.seconds)
        lost = self._gone & {assignment.peer for assignment in placed.plan.assignments}
        if lost:
            raise PeerLost(min(lost), "it went away while the model was loading")
        if placed.prepared is not None:
            planned = placed.prepared.solution.prediction.devices
            self._report_memory(placed, {device.peer: device.total_bytes for device in planned})
        self._ring = DemoRing(placed)
        self._loaded = DemoModel(
            model, placed.plan, placed.plan.context_tokens, int(time.time()), self._thinking_switches
        )
        return self._loaded

    def _report_memory(self, placed: Placed, held: Mapping[str, int]) -> None:
        for device in placed.prepared.request.devices if placed.prepared is not None else ():
            if device.peer in held:
                size = held[device.peer]
                budget = device.memory_budget_bytes
                self.tell(MemoryReported(device.peer, size, size, budget, device.memory_total_bytes))

    async def unload(self) -> None:
        why = NotReady("the model was unloaded")
        self._stop_recovery(why)
        async with self._changing:
            self._drop(why)

    def _drop(self, why: DnetError) -> None:
        loaded, ring, self._loaded, self._ring = self._loaded, self._ring, None, None
        self._lost.clear()
        if ring is not None:
            ring.give_up(why)
        if loaded is not None:
            self.tell(ModelUnloaded(loaded.model))

    # ---- generate ----

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """One pause before every prompt chunk and before every token."""
        ring = self._standing()
        answer = self.answer_to(request)
        prompt_tokens = self._world.num_tokens("\n".join(m.content for m in request.messages))
        self._num_sessions += 1
        session, sent, finish = f"s{self._num_sessions}", 0, FinishReason.CANCELLED
        self.tell(SessionStarted(session, prompt_tokens))
        begun_s, first_s = self._clock(), None
        try:
            yield PromptProgress(0, prompt_tokens, ())
            for done, lap in ring.placed.prompt_laps(prompt_tokens):
                await self._pause(lap.seconds)
                self.tell(LapMeasured(session, done, lap.stages))
                yield PromptProgress(done, prompt_tokens, lap.stages)
            longest = request.sampling.max_tokens
            tokens = [(thought, "") for thought in answer.thoughts] + [("", text) for text in answer.tokens]
            for thought, text in tokens[:longest]:
                if ring.end is not None:
                    paused_s = self._clock()
                    if isinstance(ring.end, PeerLost | PeerReturned):
                        is_back = isinstance(ring.end, PeerReturned)
                        yield Paused(ring.end.peer, str(ring.end), sent, is_back)
                    ring = await self._following(ring, prompt_tokens + sent)
                    yield Resumed(ring.peers, self._clock() - paused_s)
                lap = ring.placed.token_lap(sent)
                await self._pause(lap.seconds)
                first_s = self._clock() if first_s is None else first_s
                position = prompt_tokens + sent
                sent += 1
                self.tell(LapMeasured(session, position, lap.stages))
                yield TokenText(text, 1000 + sent, position, None, (), lap.stages, thought)
            await self._pause(ring.placed.token_lap(sent).seconds)  # the token that ends it
            if answer.error is not None:
                raise answer.error
            cut = longest is not None and sent < len(tokens)
            finish = FinishReason.LENGTH if cut else FinishReason.STOP
            yield self.done(finish, prompt_tokens, sent, begun_s, first_s)
        finally:
            self.tell(SessionEnded(session, finish, prompt_tokens, sent, 0))
            self.session_ended(sent, finish, answer)

    def done(
        self, finish: FinishReason, prompt_tokens: int, sent: int, begun_s: float, first_s: float | None
    ) -> GenerationDone:
        """The last word of a session that began at `begun_s` and had its first token at `first_s`."""
        decoding_s = self._clock() - first_s if first_s is not None else 0.0
        rate = (sent - 1) / decoding_s if sent > 1 and decoding_s > 0 else None
        ttft_s = first_s - begun_s if first_s is not None else None
        return GenerationDone(finish, prompt_tokens, sent, 0, ttft_s, rate)

    def session_ended(self, sent: int, finish: FinishReason, answer: Answer) -> None:
        """Told after the last event of every session."""

    def _standing(self) -> DemoRing:
        if self._ring is None:
            raise NotReady(
                "the model is still loading" if self.is_changing else "no model is loaded: load one first"
            )
        return self._ring

    async def _following(self, ring: DemoRing, read_tokens: int) -> DemoRing:
        """Wait for the ring after `ring`; the prompt and what was answered are read again there."""
        ring = await asyncio.shield(ring.successor)
        for _, lap in ring.placed.prompt_laps(read_tokens):
            await self._pause(lap.seconds)
        return ring

    def answer_to(self, request: GenerationRequest) -> Answer:
        """What to say: a known answer, or the next in turn."""
        question = request.messages[-1].content.lower()
        for words, answer in self._known.items():
            if words in question:
                return answer
        return self._answers[self._num_sessions % len(self._answers)]
