"""From a plan to a ring that is driven: what each shard is told, and the loads, told as events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from dnet_core.cluster import Cluster
from dnet_core.errors import LoadError, PeerLost, UnsupportedModel
from dnet_core.events import Event, FetchProgressed, LoadProgressed
from dnet_core.generate.driver import Driver, OnLost, Pace, drive
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.profile.model import profile_model
from dnet_core.store.catalog import resolve
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.store.recommended import recommended_sampling
from dnet_core.tasks import Held, TaskScope
from dnet_core.transport.control import Hop, Limits, LoadOrder, LoadStep
from dnet_core.types.generation import SamplingParams
from dnet_core.types.profiles import ModelProfile
from dnet_core.types.ring import RingPlan

Emit = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What is loaded now."""

    model: str
    plan: RingPlan
    context_tokens: int
    loaded_at_unix_s: int
    thinking_switches: tuple[str, ...]  # the template's variables that say whether to think before answering
    recommended: SamplingParams  # what its authors recommend


@dataclass(frozen=True, slots=True)
class Source:
    """A model as this head has it: what every ring that runs it shares."""

    model: str
    fingerprint: str
    tokenizer: Tokenizer
    profile: ModelProfile | None  # None: it runs only whole, and nothing can be planned for it
    recommended: SamplingParams


@dataclass(frozen=True, slots=True)
class Ring:
    """A loaded ring and the driver of it; when it ends, the driver tells which ring follows."""

    loaded: LoadedModel
    source: Source
    pace: Pace
    held: Held[Driver]

    @property
    def driver(self) -> Driver:
        return self.held.value


async def read_source(model: str, emit: Emit) -> Source:
    """Bring the files of `model` here and read what the head needs of them. Raises what `resolve` raises."""
    directory = await resolve(model, lambda done, total: emit(FetchProgressed(model, done, total)))
    # Beside the event loop: a large header, or a tokenizer that is converted first, takes seconds.
    return await asyncio.to_thread(_read_source, model, directory)


def _read_source(model: str, directory: Path) -> Source:
    checkpoint = read_checkpoint(directory)
    try:
        profile = profile_model(checkpoint)
    except UnsupportedModel:
        profile = None
    tokenizer = Tokenizer.load(directory)
    return Source(model, checkpoint.fingerprint, tokenizer, profile, recommended_sampling(directory))


async def load_shards(
    cluster: Cluster, plan: RingPlan, limits: Mapping[str, Limits], source: Source, emit: Emit
) -> None:
    """Load all shards of `plan`; the first failure cancels the other loads. Raises DnetErrors.

    What has been loaded by then stays so: the caller unloads.
    """
    orders = _orders(cluster, plan, limits)
    try:
        async with asyncio.TaskGroup() as loads:
            for name, order in orders.items():
                loads.create_task(_load_shard(cluster, name, order, source, emit))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def reload_shards(
    cluster: Cluster, plan: RingPlan, limits: Mapping[str, Limits], source: Source, emit: Emit
) -> None:
    """Load all shards of `plan`, which keep what they hold of it; every load is let end.

    Raises DnetErrors, PeerLost before others: what the other shards have loaded is of use to the next plan.
    """
    orders = _orders(cluster, plan, limits)
    results = await asyncio.gather(
        *(_load_shard(cluster, name, orders[name], source, emit) for name in orders), return_exceptions=True
    )
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in sorted(failures, key=lambda failure: not isinstance(failure, PeerLost)):
        raise failure


async def unload_shards(cluster: Cluster, names: Iterable[str]) -> None:
    """Free these shards; those that are gone are free already."""

    async def unload(name: str) -> None:
        async with cluster.client(name) as shard:
            await shard.unload()

    await asyncio.gather(*map(unload, names), return_exceptions=True)


async def open_ring(
    cluster: Cluster,
    tasks: TaskScope,
    loaded: LoadedModel,
    source: Source,
    pace: Pace,
    emit: Emit,
    on_lost: OnLost,
) -> Ring:
    """Open the streams of a ring that is loaded, for as long as it is held. Raises RingErrors."""
    async with AsyncExitStack() as stack:
        names = [assignment.peer for assignment in loaded.plan.assignments]
        shards = [await stack.enter_async_context(cluster.client(name)) for name in names]
        driving = drive(tuple(shards), source.tokenizer, loaded.context_tokens, pace, emit, on_lost)
        return Ring(loaded, source, pace, await Held.open(tasks, _with_channels(driving, stack.pop_all())))


@asynccontextmanager
async def _with_channels(
    driving: AbstractAsyncContextManager[Driver], channels: AsyncExitStack
) -> AsyncIterator[Driver]:
    async with channels, driving as driver:
        yield driver


def _orders(cluster: Cluster, plan: RingPlan, limits: Mapping[str, Limits]) -> dict[str, LoadOrder]:
    """What each device is told; the ring closes from the last assignment to the first."""
    ring = [cluster.peer(assignment.peer) for assignment in plan.assignments]
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
            next=None if source == target else Hop(target.name, cluster.target(source, target)),
            limits=limits[assignment.peer],
        )
        for assignment, (source, target) in zip(plan.assignments, hops, strict=True)
    }


async def _load_shard(cluster: Cluster, name: str, order: LoadOrder, source: Source, emit: Emit) -> None:
    """Load one shard. Raises LoadError when it has read other files than this head knows."""
    fingerprint = ""
    async with cluster.client(name) as shard, aclosing(shard.load(order)) as reports:
        async for report in reports:
            match report.step:
                case LoadStep.FETCH:
                    emit(FetchProgressed(order.model, report.done_bytes, report.total_bytes, name))
                case LoadStep.READ:
                    emit(LoadProgressed(name, report.done_bytes, report.total_bytes))
                case LoadStep.WARM:
                    pass
                case LoadStep.READY:
                    fingerprint = report.fingerprint
    if fingerprint != source.fingerprint:
        raise LoadError(
            f"{name} has other files under the name '{order.model}' than this machine:"
            " delete that copy there, or load a revision by name (owner/name@revision)"
        )
