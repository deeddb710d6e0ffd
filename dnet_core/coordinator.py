"""The coordinator: discover -> profile -> solve -> load -> generate, for one head.

It lives in the terminal application or in `dnet-api`; both are thin shells around this object. What happens
is told as events; what is asked for is awaited.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from dnet_core import planning
from dnet_core.accuracy import Accuracy
from dnet_core.chunks import Serving, serving
from dnet_core.cluster import Cluster
from dnet_core.cluster_options import ClusterOptions
from dnet_core.errors import DnetError, NotReady
from dnet_core.events import (
    DevicesMeasured,
    Event,
    LoadFailed,
    LoadStarted,
    ModelLoaded,
    PeerJoined,
    PeerLeft,
    PlanMade,
    PlanStarted,
)
from dnet_core.generate.driver import Driver
from dnet_core.generate.recover import answer, converse, embedding, reading
from dnet_core.generate.thoughts import thinking_switches
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.library import Library
from dnet_core.loading import LoadedModel, Ring, Source, load_shards, open_ring, read_source
from dnet_core.planning import Prepared, Wishes
from dnet_core.settings import paths
from dnet_core.succession import Succession
from dnet_core.tasks import TaskScope
from dnet_core.telemetry import Telemetry
from dnet_core.transport.control import ShardStatus
from dnet_core.types.devices import Peer
from dnet_core.types.generation import GenerationEvent, GenerationRequest, SamplingParams
from dnet_core.types.plan import Pin, Solution, SolveRequest
from dnet_core.types.ring import LayerWindow, RingPlan

log = logging.getLogger(__name__)

Value = TypeVar("Value")

SUBSCRIBER_EVENTS = 4096
"""A listener that falls this far behind loses the oldest events; it is told in the log."""


class Coordinator:
    """One head. `async with` owns its tasks and its local shards, which start in the background."""

    def __init__(self, options: ClusterOptions, wishes: Wishes | None = None) -> None:
        """`wishes` are for plans that nobody asks for in particular. Raises TrustError for a bad key."""
        self._wishes = wishes or Wishes()
        self._tasks = TaskScope()
        self._cluster = Cluster(options, self._tasks, self._hear)
        self._telemetry = Telemetry(self._cluster, self._tasks, self._emit)
        self._subscribers: set[asyncio.Queue[Event]] = set()
        self._prepared: Prepared | None = None
        self._succession = Succession(self._cluster, self._tasks, self._emit, self._keep, self._wishes)
        self.library = Library(
            self._cluster,
            self._tasks,
            self._emit,
            planned=lambda: self._prepared,
            loaded=lambda: self.loaded.model if self.loaded else None,
            wishes=self._wishes,
        )
        """Which models there are, and what they would do here."""
        self._accuracy = Accuracy(paths().cache / "accuracy.json")

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._cluster.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Answers that wait for the next ring wait for nothing.
        self._succession.give_up(NotReady("the coordinator has ended"))
        await self._tasks.__aexit__(kind, error, trace)

    def keep_on(self, work: Coroutine[Any, Any, Value]) -> asyncio.Future[Value]:
        """Run `work` until it or the coordinator ends, whatever becomes of who waits for the result."""
        result: asyncio.Future[Value] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                result.set_result(await work)
            except Exception as error:  # the border: a failure is of who waits, not of the whole head
                if not isinstance(error, DnetError):
                    log.exception("a fault of %s", work)
                result.set_exception(error)
                result.exception()  # nobody need ask for it

        def end(_task: asyncio.Task[None]) -> None:
            result.cancel()
            work.close()  # of a task that was cancelled before it had begun

        self._tasks.start(run()).add_done_callback(end)
        return result

    # ---- events ----

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[Event]]:
        """Everything that happens from now on, in order."""
        queue: asyncio.Queue[Event] = asyncio.Queue(SUBSCRIBER_EVENTS)
        self._subscribers.add(queue)
        self._telemetry.listen(bool(self._subscribers))

        async def events() -> AsyncIterator[Event]:
            while True:
                yield await queue.get()

        try:
            yield events()
        finally:
            self._subscribers.discard(queue)
            self._telemetry.listen(bool(self._subscribers))

    def _hear(self, event: Event) -> None:
        """Take what the cluster tells; a device that is back is offered."""
        self._emit(event)
        if isinstance(event, PeerLeft):
            self._succession.left(event.name)
        if isinstance(event, PeerJoined) and event.peer.cannot_join is None:
            self._telemetry.watch(event.peer)
            self._succession.joined(event.peer.name)

    def _emit(self, event: Event) -> None:
        self._tell(event)
        compared = self._accuracy.hear(event)
        if compared is not None:
            self._tell(compared)

    def _tell(self, event: Event) -> None:
        for queue in self._subscribers:
            if queue.full():
                log.warning("a listener is slow: it misses %s", type(queue.get_nowait()).__name__)
            queue.put_nowait(event)

    # ---- discover ----

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The devices that are there now."""
        return self._cluster.peers

    @property
    def cluster_key(self) -> str:
        """What other devices must be given to join, in a form to copy."""
        return self._cluster.key.text

    async def wait_for_local_shards(self) -> None:
        """Return when the local shards answer. Raises StartError when one does not start."""
        await self._cluster.wait_for_local_shards()

    async def statuses(self) -> tuple[ShardStatus, ...]:
        """What every device says of itself now. Raises the first error of one that does not answer."""
        return tuple(await asyncio.gather(*(self._cluster.status(peer.name) for peer in self.peers)))

    async def survey(self) -> tuple[tuple[Peer, ShardStatus | DnetError], ...]:
        """Every device with what it says of itself now, or why it does not answer."""
        peers = self.peers

        async def ask(peer: Peer) -> ShardStatus | DnetError:
            try:
                return await self._cluster.status(peer.name)
            except DnetError as error:
                return error

        return tuple(zip(peers, await asyncio.gather(*map(ask, peers)), strict=True))

    # ---- profile, solve ----

    @property
    def wishes(self) -> Wishes:
        """What is wanted of plans that nobody asks for in particular."""
        return self._wishes

    @property
    def prepared(self) -> Prepared | None:
        """The plan that was made last, loaded or not."""
        return self._prepared

    async def prepare(self, model: str, wishes: Wishes | None = None) -> Prepared:
        """Measure the devices and plan where the layers of `model` go; nothing is loaded.

        Raises RequestErrors, InfeasiblePlan, and NotReady while a model is loaded: a device that serves
        cannot be measured.
        """
        self._emit(PlanStarted(model))
        wishes = wishes or self._wishes
        return self._keep(await planning.prepare(self._cluster, canonical(model), wishes, self._tell_facts))

    async def prepare_by_hand(
        self,
        model: str,
        windows: Mapping[str, tuple[LayerWindow, ...]],
        num_resident: Mapping[str, int] | None = None,
        wishes: Wishes | None = None,
    ) -> Prepared:
        """Check and predict a placement made by hand: `windows` per device, one per round.

        `num_resident` says for some devices how many of their layers stay in memory; elsewhere it is as many
        as fit. Raises what `prepare` raises, and RequestError when the windows are no plan.
        """
        self._emit(PlanStarted(model))
        prepared = await planning.prepare_by_hand(
            self._cluster,
            canonical(model),
            windows,
            num_resident or {},
            wishes or self._wishes,
            self._tell_facts,
        )
        return self._keep(prepared)

    def forget_measurements(self) -> None:
        """Let the next plan, and the library, measure all devices and links again."""
        self._cluster.forget_measurements()
        self.library.forget()

    async def replan(self, excluded: Collection[str] = (), pins: tuple[Pin, ...] = ()) -> Solution:
        """Plan again from what was measured for the last plan, without `excluded` and around `pins`.

        Nothing changes and nothing is measured: it works while a model is loaded. Raises NotReady when there
        is no plan yet, InfeasiblePlan, RequestError.
        """
        return await asyncio.to_thread(planning.replan, self._facts(), excluded, pins)

    async def predict(
        self, windows: Mapping[str, tuple[LayerWindow, ...]], num_resident: Mapping[str, int] | None = None
    ) -> Solution:
        """Check and predict a placement made by hand, as `replan` plans; arguments of `prepare_by_hand`."""
        return await asyncio.to_thread(planning.predict, self._facts(), windows, num_resident or {})

    def _facts(self) -> Prepared:
        if self._prepared is None:
            raise NotReady("nothing has been planned yet: load a model first")
        return self._prepared

    def _tell_facts(self, request: SolveRequest) -> None:
        self._emit(DevicesMeasured(request))

    def _keep(self, prepared: Prepared) -> Prepared:
        self._prepared = prepared = self._accuracy.remember(prepared)
        self._emit(PlanMade(prepared.solution))
        return prepared

    # ---- load ----

    @property
    def loaded(self) -> LoadedModel | None:
        ring = self._succession.ring
        return ring.loaded if ring else None

    @property
    def is_changing(self) -> bool:
        """Whether a model is being loaded or unloaded right now."""
        return self._succession.is_changing

    async def load(
        self, model: str, plan: RingPlan | Solution | None = None, chunk_tokens: int | None = None
    ) -> LoadedModel:
        """Fetch `model` if need be, place it on the devices and load it; progress is told as events.

        `plan` says where its layers go (None: as `prepare` finds best; a Solution, of `replan` or `predict`,
        becomes the plan made last); `chunk_tokens` how much of a prompt travels in one frame (None: what
        the plan's prediction chose, else by backend). What was loaded before is unloaded. Cancelling the
        wait cancels the load on every shard.
        Raises DnetErrors; nothing is loaded then.
        """
        if self._succession.is_being_replaced:
            raise NotReady("a model is being loaded: wait for it or cancel it")
        async with self._succession.emptied(NotReady("another model is being loaded")):
            begun = time.monotonic()
            try:
                ring = await self._load(canonical(model), plan, chunk_tokens)
            except DnetError as error:
                self._emit(LoadFailed(model, str(error)))
                raise
            self._emit(ModelLoaded(ring.loaded.plan, time.monotonic() - begun))
            return ring.loaded

    async def _load(self, model: str, plan: RingPlan | Solution | None, chunk_tokens: int | None) -> Ring:
        source = await read_source(model, self._emit)
        await self._cluster.usable_peers()
        if isinstance(plan, Solution):
            plan = self._keep(replace(self._facts(), solution=plan)).solution.plan
        elif plan is None:
            plan = (await self.prepare(model)).solution.plan
        facts = self._prepared if self._prepared and self._prepared.model == model else None
        switches = thinking_switches(source.tokenizer.chat_template(with_tools=False))
        loaded = LoadedModel(model, plan, plan.context_tokens, int(time.time()), switches, source.recommended)
        self._emit(LoadStarted(plan))
        self._succession.expect(plan)
        work = await self._serving(plan, source, facts, chunk_tokens)
        await load_shards(self._cluster, plan, work.limits, source, self._emit)
        ring = await open_ring(
            self._cluster, self._tasks, loaded, source, work.pace, self._emit, self._succession.lose
        )
        self._succession.serve(ring, facts)
        return ring

    async def _serving(
        self, plan: RingPlan, source: Source, facts: Prepared | None, chunk_tokens: int | None
    ) -> Serving:
        """How the ring of `plan` is to work, by what is known of its devices."""
        if facts is None:
            return await serving(self._cluster, plan, source.profile, {}, chunk_tokens)
        if chunk_tokens is None and facts.solution.plan == plan:
            chunk_tokens = facts.solution.prediction.chunk_tokens
        return await serving(self._cluster, plan, source.profile, facts.budgets, chunk_tokens)

    async def unload(self) -> None:
        """Free every shard. Nothing happens when nothing is loaded."""
        async with self._succession.emptied(NotReady("the model was unloaded")):
            pass

    # ---- recover ----

    @property
    def offered(self) -> tuple[str, ...]:
        """Devices that the loaded model has lost and that are back: `take_in` lets them take part again."""
        return self._succession.offered

    async def take_in(self) -> LoadedModel:
        """Place the loaded model anew, with the devices that are `offered`; answers pause meanwhile.

        Raises NotReady when there is none, or it cannot be now; DnetErrors when the model is lost over it.
        """
        return await self._succession.take_in()

    # ---- generate ----

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Continue a conversation; ends with GenerationDone. Close the generator to stop every shard.

        When a shard is lost the answer pauses, and goes on without it. Raises NotReady when nothing is
        loaded, RequestErrors, RingErrors, and InfeasiblePlan when what is left cannot hold the model.
        """
        return converse(self._driver(), request, self._emit)

    def generate_from(
        self, tokens: tuple[int, ...], sampling: SamplingParams, shown: Collection[int] = ()
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Like `generate`, for a prompt that is token ids already.

        `shown` are special tokens whose spelling belongs to the text.
        """
        return answer(self._driver(), tokens, sampling, shown, self._emit)

    async def embed(self, tokens: tuple[int, ...]) -> tuple[float, ...]:
        """The mean of the loaded model's hidden states for `tokens`, as they are after its last norm.

        Raises what `generate` raises.
        """
        return await embedding(self._driver(), tokens)

    async def read(self, tokens: tuple[int, ...], seed: int | None) -> int:
        """Read a prompt once for several answers that continue it; returns how much of it was known.

        `seed` is that of the answers, if they have one. Raises what `generate` raises.
        """
        return await reading(self._driver(), tokens, seed)

    @property
    def tokenizer(self) -> Tokenizer:
        """The loaded model's. Raises NotReady when nothing is loaded."""
        return self._driver().tokenizer

    def _driver(self) -> Driver:
        ring = self._succession.ring
        if ring is None:
            raise NotReady(
                "the model is still loading" if self.is_changing else "no model is loaded: load one first"
            )
        return ring.driver


def canonical(model: str) -> str:
    """A path means the same in every process of this machine; ids stay as they are."""
    # Longer than a path can be, no such user's home, a NUL: told where it is read.
    with suppress(OSError, RuntimeError, ValueError):
        path = Path(model).expanduser()
        return str(path.resolve()) if path.exists() else model
    return model
