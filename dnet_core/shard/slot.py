"""The one model that a shard may hold: an order becomes layers in memory, and memory becomes free again.

    empty -> fetch -> check -> read -> warm -> connect -> loaded -> (what stays) -> fetch -> ...

A load that fails or is left leaves the slot empty.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import mlx.core as mx

from dnet_core.errors import DnetError, GrammarError, LoadError
from dnet_core.grammar.matcher import GrammarTokenizer, Matcher
from dnet_core.memory_option import MemoryLimit
from dnet_core.profile.mlx_facts import mlx_facts
from dnet_core.shard.kept import Kept, keep
from dnet_core.shard.loader import LayerStream
from dnet_core.shard.memory import MlxLimits, budget_bytes, mlx_limits, set_limits
from dnet_core.shard.mlx_thread import MlxThread
from dnet_core.shard.runtime import NextFrame, Outputs, Runtime
from dnet_core.slices.layers import StreamedLayer, find_layers, make_streamed
from dnet_core.slices.weights import open_model, parameter_bytes, read_parameters
from dnet_core.slices.window import WindowedModel
from dnet_core.store.catalog import resolve
from dnet_core.store.checkpoint import Checkpoint, read_checkpoint
from dnet_core.tasks import Held, TaskScope, to_the_end
from dnet_core.transport.control import Hop, LoadOrder, LoadReport, LoadStep, SessionOrder
from dnet_core.transport.frames import DriverFrame
from dnet_core.transport.grpc_link import RingLink

log = logging.getLogger(__name__)

Connect = Callable[[Hop], AbstractAsyncContextManager[RingLink]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a slot holds: the model's windows, what runs them, and the way to the next shard."""

    order: LoadOrder
    fingerprint: str
    budget_bytes: int
    model: WindowedModel
    runtime: Runtime
    hop: Held[RingLink] | None  # None: a ring of one
    undo: AsyncExitStack
    grammars: GrammarTokenizer | GrammarError | None  # of the tail; the error says why there is none

    async def matcher(self, order: SessionOrder) -> Matcher | None:
        """What follows the grammar of `order`, if it has one and this is the tail. Raises GrammarError."""
        if order.sampling.grammar is None or self.grammars is None:
            return None
        if isinstance(self.grammars, GrammarError):
            raise self.grammars
        # It may take a second: neither the event loop nor what is being computed waits for it.
        return await asyncio.to_thread(self.grammars.matcher, order.sampling.grammar, order.answered_tokens)


class ModelSlot:
    """Owned by the server, which lets one load or drop run at a time. `with` runs its loader thread."""

    def __init__(
        self,
        thread: MlxThread,
        tasks: TaskScope,
        memory: MemoryLimit | None,
        *,
        to_next: Callable[[NextFrame], None],
        to_driver: Callable[[str, DriverFrame], None],
        connect: Connect,
    ) -> None:
        """`to_next` and `to_driver` take what the windows compute, on its thread; `connect` opens the hop."""
        self._thread = thread
        self._loader = MlxThread("loader")
        self._tasks = tasks
        self._memory = memory
        self._outputs = Outputs(to_next, to_driver, again=thread.post)
        self._connect = connect
        self._unlimited: MlxLimits | None = None  # what MLX had before the load
        self._loaded: Loaded | None = None

    def __enter__(self) -> Self:
        self._loader.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loader.__exit__(kind, error, trace)

    @property
    def loaded(self) -> Loaded | None:
        return self._loaded

    async def load(self, order: LoadOrder, name: str) -> AsyncGenerator[LoadReport, None]:
        """Replace whatever is loaded by `order`'s windows; `name` is what the ring calls this shard.

        Layers that stay in memory, of the same model, are not read again: a ring that is made anew moves few.
        """
        try:
            loading = self._load(order, name, await to_the_end(self._take_out(order)))
            mx.reset_peak_memory()
            # Closed here, not by the garbage collector: its frame holds the model.
            async with aclosing(loading) as reports:
                async for report in reports:
                    yield report
        except BaseException as error:
            # Its traceback keeps frames, and they keep the model, while the memory is to be given back.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            if self._loaded is None:
                await self._collect()

    async def drop(self) -> None:
        """Free what is loaded."""
        await to_the_end(self._take_out(None))

    async def _take_out(self, following: LoadOrder | None) -> Kept | None:
        """Free what is loaded, but for the weights that `following` needs as well."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return None
        loaded.runtime.end()
        if loaded.hop is not None:
            await loaded.hop.release()
        await loaded.undo.aclose()
        kept = None
        if following is not None and following.model == loaded.order.model:
            kept = await self._thread.call(
                partial(keep, loaded.model, loaded.fingerprint, loaded.order, following)
            )
        del loaded
        await self._collect()
        return kept

    async def _collect(self) -> None:
        """Give the memory back, and its limits; models hold themselves in cycles."""

        def collect() -> None:
            gc.collect()
            mx.clear_cache()
            if self._unlimited is not None:
                set_limits(self._unlimited)
                self._unlimited = None

        await self._thread.carry_out(collect)

    def _limit(self, budget: int, workspace: int) -> None:
        """Let MLX stay within `budget` until the memory is given back. On the compute thread."""
        assert self._unlimited is None, "limits are set once per load"
        limits = mlx_limits(budget, workspace, mlx_facts().recommended_working_set_bytes)
        self._unlimited = set_limits(limits)

    async def _load(self, order: LoadOrder, name: str, kept: Kept | None) -> AsyncGenerator[LoadReport, None]:
        """Fetch, check, read, warm, connect: each step tells its progress."""
        own = order.limits.budget_bytes
        budget = budget_bytes(self._memory) if own is None else own
        await self._thread.call(partial(self._limit, budget, order.limits.workspace_bytes))
        found: list[Path] = []
        async with aclosing(self._fetch(order.model, found)) as reports:
            async for report in reports:
                yield report
        checkpoint = await self._thread.call(partial(read_checkpoint, found[0]))
        model = await self._thread.call(partial(open_model, found[0], order.model))
        if model.num_layers != order.num_layers:
            raise LoadError(
                f"'{order.model}' has {model.num_layers} layers on {name}, but the plan has"
                f" {order.num_layers}: the two machines have different models under this name"
            )
        await self._thread.call(partial(model.check_windows, order.windows))
        if kept is not None:
            await self._thread.call(partial(kept.put_into, model, checkpoint.fingerprint))
        del kept  # what the model has not taken is not needed
        streamed: dict[int, StreamedLayer] = {}
        async with aclosing(self._read(order, model, checkpoint, streamed)) as reports:
            async for report in reports:
                yield report
        async with AsyncExitStack() as undo:
            stream = await self._stream(model, streamed, order.num_buffers, undo) if streamed else None
            runtime = Runtime(name, order, model, self._outputs, stream)
            for window in order.windows:
                yield LoadReport(LoadStep.WARM, 0, 0, "")
                await self._thread.call(partial(runtime.warm, window))
            await self._thread.call(partial(runtime.set_budget, budget, order.limits))
            grammars = await self._thread.call(partial(_grammars, found[0])) if order.is_last else None
            hop = await Held.open(self._tasks, self._connect(order.next)) if order.next else None
            files = checkpoint.fingerprint
            self._loaded = Loaded(order, files, budget, model, runtime, hop, undo.pop_all(), grammars)
        log.info("loaded %s: layers %s", order.model, ", ".join(map(str, order.windows)))
        yield LoadReport(LoadStep.READY, 0, 0, checkpoint.fingerprint)

    async def _fetch(self, model: str, found: list[Path]) -> AsyncGenerator[LoadReport, None]:
        """Bring the model's files here, telling progress; puts their directory into `found`."""
        reports: asyncio.Queue[LoadReport | None] = asyncio.Queue()

        def progress(done_bytes: int, total_bytes: int) -> None:
            reports.put_nowait(LoadReport(LoadStep.FETCH, done_bytes, total_bytes, ""))

        async def bring() -> None:
            try:
                found.append(await resolve(model, progress))
            finally:
                reports.put_nowait(None)

        bringing = self._tasks.start(_outcome(bring()))
        try:
            while (report := await reports.get()) is not None:
                yield report
        finally:
            bringing.cancel()
        failure = await bringing
        if failure is not None:
            raise failure

    async def _read(
        self,
        order: LoadOrder,
        model: WindowedModel,
        checkpoint: Checkpoint,
        streamed: dict[int, StreamedLayer],
    ) -> AsyncGenerator[LoadReport, None]:
        """See to the files of the streamed layers, put these into `streamed`, then read the others."""
        layers = [index for window in order.windows for index in window.layers]
        sizes = {index: parameter_bytes(model.layers[index]) for index in layers}
        places = await self._thread.call(partial(find_layers, model, checkpoint, order.streamed, order.model))
        done, total = 0, sum(sizes.values())
        for index in sorted(layers, key=lambda index: index not in places):  # writing takes memory
            yield LoadReport(LoadStep.READ, done, total, "")
            layer = model.layers[index]
            if index in places:
                streamed[index] = await self._thread.call(partial(make_streamed, layer, places[index]))
            else:
                await self._thread.call(partial(read_parameters, layer, order.model))
            done += sizes[index]
        yield LoadReport(LoadStep.READ, done, total, "")

    async def _stream(
        self, model: WindowedModel, streamed: dict[int, StreamedLayer], num_buffers: int, undo: AsyncExitStack
    ) -> LayerStream:
        """Begin to read streamed layers; `undo` ends it."""
        make = partial(LayerStream, model, streamed, num_buffers, self._loader)
        stream = await self._thread.call(make)
        undo.push_async_callback(self._thread.carry_out, stream.close)
        await self._thread.call(stream.begin)
        return stream


async def _outcome(work: Awaitable[None]) -> DnetError | None:
    """Await `work`; a DnetError becomes the result, so that the task group it runs in lives on."""
    try:
        await work
    except DnetError as error:
        return error
    return None


def _grammars(directory: Path) -> GrammarTokenizer | GrammarError:
    """What grammars need of the model. One whose tokenizer cannot be used answers freely all the same."""
    try:
        return GrammarTokenizer(directory)
    except GrammarError as error:
        return error
    except LoadError as error:
        return GrammarError(f"no answer of this model can be bound: {error}")
