"""The coordinator: discover -> profile -> solve -> load -> generate, for one head.

It lives in the terminal application or in `dnet-api`; both are thin shells around this object. What happens
is told as events; what is asked for is awaited.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from dnet_core import planning
from dnet_core.accuracy import Accuracy
from dnet_core.cluster import Cluster
from dnet_core.cluster_options import ClusterOptions
from dnet_core.errors import DnetError, LoadError, NotReady, PeerLost
from dnet_core.events import (
    DevicesMeasured,
    Event,
    FetchProgressed,
    LoadFailed,
    LoadProgressed,
    LoadStarted,
    ModelLoaded,
    ModelUnloaded,
    PeerJoined,
    PlanMade,
    PlanStarted,
)
from dnet_core.generate.driver import Driver, drive
from dnet_core.generate.thoughts import thinking_switches
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.library import Library
from dnet_core.planning import Prepared, Wishes
from dnet_core.settings import paths
from dnet_core.store.catalog import resolve
from dnet_core.store.checkpoint import Checkpoint, read_checkpoint
from dnet_core.tasks import Held, TaskScope
from dnet_core.telemetry import Telemetry
from dnet_core.transport.control import Hop, LoadOrder, LoadStep, ShardStatus
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.types.devices import Peer
from dnet_core.types.generation import GenerationEvent, GenerationRequest, SamplingParams
from dnet_core.types.plan import Pin, Solution, SolveRequest
from dnet_core.types.ring import LayerWindow, RingPlan

log = logging.getLogger(__name__)

SUBSCRIBER_EVENTS = 4096
"""A listener that falls this far behind loses the oldest events; it is told in the log."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What is loaded now."""

    model: str
    plan: RingPlan
    context_tokens: int
    loaded_at_unix_s: int
    thinking_switches: tuple[str, ...]  # the template's variables that say whether to think before answering


@dataclass(frozen=True, slots=True)
class _Ring:
    loaded: LoadedModel
    driver: Held[Driver]


class Coordinator:
    """One head. `async with` owns its tasks and its local shards, which start in the background."""

    def __init__(self, options: ClusterOptions, wishes: Wishes | None = None) -> None:
        """`wishes` are for plans that nobody asks for in particular. Raises TrustError for a bad key."""
        self._wishes = wishes or Wishes()
        self._tasks = TaskScope()
        self._cluster = Cluster(options, self._tasks, self._hear)
        self._telemetry = Telemetry(self._cluster, self._tasks, self._emit)
        self._subscribers: set[asyncio.Queue[Event]] = set()
        self._changing = asyncio.Lock()
        self._ring: _Ring | None = None
        self._prepared: Prepared | None = None
        self.library = Library(
            self._cluster,
            self._tasks,
            self._emit,
            planned=lambda: self._prepared,
            loaded=lambda: self._ring.loaded.model if self._ring else None,
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
        await self._tasks.__aexit__(kind, error, trace)

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
        """Take what the cluster tells."""
        self._emit(event)
        if isinstance(event, PeerJoined) and event.peer.cannot_join is None:
            self._telemetry.watch(event.peer)

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
        return self._ring.loaded if self._ring else None

    @property
    def is_changing(self) -> bool:
        """Whether a model is being loaded or unloaded right now."""
        return self._changing.locked()

    async def load(
        self, model: str, plan: RingPlan | Solution | None = None, chunk_tokens: int | None = None
    ) -> LoadedModel:
        """Fetch `model` if need be, place it on the devices and load it; progress is told as events.

        `plan` says where its layers go (None: as `prepare` finds best; a Solution, of `replan` or `predict`,
        becomes the plan made last); `chunk_tokens` how much of a prompt travels in one frame (None: by
        backend). What was loaded before is unloaded. Cancelling the
        wait cancels the load on every shard.
        Raises DnetErrors; nothing is loaded then.
        """
        if self._changing.locked():
            raise NotReady("a model is being loaded: wait for it or cancel it")
        async with self._changing:
            await self._drop()
            begun = time.monotonic()
            try:
                loaded = await self._load(canonical(model), plan, chunk_tokens)
            except DnetError as error:
                self._emit(LoadFailed(model, str(error)))
                raise
            self._emit(ModelLoaded(loaded.plan, time.monotonic() - begun))
            return loaded

    async def _load(
        self, model: str, plan: RingPlan | Solution | None, chunk_tokens: int | None
    ) -> LoadedModel:
        directory = await resolve(model, lambda done, total: self._emit(FetchProgressed(model, done, total)))
        checkpoint = read_checkpoint(directory)
        tokenizer = Tokenizer.load(directory)
        await self._cluster.usable_peers()
        if isinstance(plan, Solution):
            plan = self._keep(replace(self._facts(), solution=plan)).solution.plan
        elif plan is None:
            plan = (await self.prepare(model)).solution.plan
        orders = self._orders(plan)
        self._emit(LoadStarted(plan))
        async with AsyncExitStack() as stack:
            shards = {
                a.peer: await stack.enter_async_context(self._cluster.client(a.peer))
                for a in plan.assignments
            }
            await self._load_shards(orders, shards, checkpoint)
            chunk_tokens = chunk_tokens or await planning.chunk_tokens_of(
                self._cluster, tuple(self._cluster.peer(name) for name in shards)
            )
            path = tuple(shards[a.peer] for a in plan.assignments)
            driving = drive(path, tokenizer, plan.context_tokens, chunk_tokens, self._emit, self._lose_ring)
            held = await Held.open(self._tasks, _with_channels(driving, stack.pop_all()))
        switches = thinking_switches(tokenizer.chat_template(with_tools=False))
        loaded = LoadedModel(model, plan, plan.context_tokens, int(time.time()), switches)
        self._ring = _Ring(loaded, held)
        return loaded

    async def _load_shards(
        self, orders: dict[str, LoadOrder], shards: dict[str, ShardClient], checkpoint: Checkpoint
    ) -> None:
        loading = asyncio.gather(*(self._load_shard(shards[name], orders[name]) for name in shards))
        try:
            prints = await loading
        except BaseException:  # a failure here and a cancel from outside undo the same
            loading.cancel()
            with suppress(asyncio.CancelledError, DnetError):
                await loading
            await asyncio.gather(*(s.unload() for s in shards.values()), return_exceptions=True)
            raise
        for name, fingerprint in zip(shards, prints, strict=True):
            if fingerprint != checkpoint.fingerprint:
                await asyncio.gather(*(s.unload() for s in shards.values()), return_exceptions=True)
                raise LoadError(
                    f"{name} has other files under the name '{orders[name].model}' than this machine:"
                    " delete that copy there, or load a revision by name (owner/name@revision)"
                )

    def _orders(self, plan: RingPlan) -> dict[str, LoadOrder]:
        """What each device is told; the ring closes from the last assignment to the first."""
        ring = [self._cluster.peer(assignment.peer) for assignment in plan.assignments]
        hops = zip(ring, (*ring[1:], ring[0]), strict=True)
        return {
            assignment.peer: LoadOrder(
                model=plan.model,
                num_layers=plan.num_layers,
                windows=assignment.windows,
                streamed=assignment.streamed,
                num_buffers=assignment.num_buffers,
                context_tokens=plan.context_tokens,
                kv_bits=plan.kv_bits,
                next=None if source == target else Hop(target.name, self._cluster.target(source, target)),
            )
            for assignment, (source, target) in zip(plan.assignments, hops, strict=True)
        }

    async def _load_shard(self, shard: ShardClient, order: LoadOrder) -> str:
        """Load one shard; returns the fingerprint of the files it read."""
        fingerprint = ""
        async with aclosing(shard.load(order)) as reports:
            async for report in reports:
                match report.step:
                    case LoadStep.FETCH:
                        self._emit(FetchProgressed(order.model, report.done_bytes, report.total_bytes))
                    case LoadStep.READ:
                        self._emit(LoadProgressed(shard.peer, report.done_bytes, report.total_bytes))
                    case LoadStep.WARM:
                        pass
                    case LoadStep.READY:
                        fingerprint = report.fingerprint
        return fingerprint

    async def unload(self) -> None:
        """Free every shard. Nothing happens when nothing is loaded."""
        async with self._changing:
            await self._drop()

    async def _drop(self) -> None:
        ring, self._ring = self._ring, None
        if ring is None:
            return
        await ring.driver.value.unload()
        await ring.driver.release()
        self._emit(ModelUnloaded(ring.loaded.model))

    def _lose_ring(self, error: DnetError) -> None:
        """A shard of the loaded ring is gone: what is loaded on the others is of no use any more."""
        log.error("%s", error)
        if isinstance(error, PeerLost):
            self._cluster.lose(error.peer, str(error))
        if self._ring is not None:
            self._emit(LoadFailed(self._ring.loaded.model, str(error)))
            self._tasks.start(self._unload_lost(self._ring))

    async def _unload_lost(self, ring: _Ring) -> None:
        async with self._changing:
            if self._ring is ring:  # else another model has been loaded meanwhile
                await self._drop()

    # ---- generate ----

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Continue a conversation; ends with GenerationDone. Close the generator to stop every shard.

        Raises NotReady when nothing is loaded, RequestErrors, RingErrors.
        """
        return self._driver().generate(request)

    def generate_from(
        self, tokens: tuple[int, ...], sampling: SamplingParams, shown: Collection[int] = ()
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Like `generate`, for a prompt that is token ids already.

        `shown` are special tokens whose spelling belongs to the text.
        """
        return self._driver().generate_from(tokens, sampling, shown)

    async def embed(self, tokens: tuple[int, ...]) -> tuple[float, ...]:
        """The mean of the loaded model's hidden states for `tokens`, as they are after its last norm.

        Raises NotReady when nothing is loaded, RequestErrors, RingErrors.
        """
        return await self._driver().embed(tokens)

    @property
    def tokenizer(self) -> Tokenizer:
        """The loaded model's. Raises NotReady when nothing is loaded."""
        return self._driver().tokenizer

    def _driver(self) -> Driver:
        if self._ring is None:
            loading = self._changing.locked()
            raise NotReady("the model is still loading" if loading else "no model is loaded: load one first")
        return self._ring.driver.value


@asynccontextmanager
async def _with_channels(
    driving: AbstractAsyncContextManager[Driver], channels: AsyncExitStack
) -> AsyncIterator[Driver]:
    async with channels, driving as driver:
        yield driver


def canonical(model: str) -> str:
    """A path means the same in every process of this machine; ids stay as they are."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.exists() else model
