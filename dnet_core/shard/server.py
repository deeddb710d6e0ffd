"""The event-loop side of a shard: control calls, frames in from the links, frames out to next and drivers.

Ring stream -> receive() -> MlxThread inbox -> Runtime -> next link's outbox   (one thread hop each way)
                                                      -> driver's outbox
"""

from __future__ import annotations

import asyncio
import gc
import logging
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import mlx.core as mx
import psutil

from dnet_core.discover.announcement import Announcement
from dnet_core.discover.mdns import Advertisement
from dnet_core.errors import DnetError, GrammarError, LoadError, NotReady, PeerLost, RequestError
from dnet_core.grammar.matcher import GrammarTokenizer, Matcher
from dnet_core.memory_option import MemoryLimit
from dnet_core.profile.cache import ProfileCache
from dnet_core.profile.device import profile_to_json
from dnet_core.profile.links import measure_link
from dnet_core.profile.measure import profile_device
from dnet_core.profile.microbench import mlx_facts
from dnet_core.settings import TIMEOUTS, paths
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
from dnet_core.tasks import Held, TaskScope
from dnet_core.transport.control import (
    Arrival,
    Hop,
    KeptPrefix,
    LoadOrder,
    LoadReport,
    LoadStep,
    SessionOrder,
    ShardStatus,
)
from dnet_core.transport.frames import Cancel, DriverFrame, Fault
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import OUTBOX_FRAMES, RingLink, open_channel, ring_link
from dnet_core.types.devices import Medium
from dnet_core.types.profiles import LinkProfile, ProfileRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
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


class ShardServer:
    """Serves one model's windows. `async with` owns its tasks; it is a `ShardService`."""

    def __init__(
        self,
        announcement: Announcement,
        thread: MlxThread,
        credentials: grpc.ChannelCredentials,
        memory: MemoryLimit | None,
    ) -> None:
        """`announcement` is what this shard says of itself; it may be replaced while it serves."""
        self._announcement = announcement
        self._advertisement: Advertisement | None = None
        self._thread = thread
        self._memory = memory
        self._unlimited: MlxLimits | None = None  # what MLX had before the load
        self._loader = MlxThread("loader")
        self._credentials = credentials
        self._tasks = TaskScope()
        self._loop = asyncio.get_running_loop()
        self._changing = asyncio.Lock()
        self._loaded: _Loaded | None = None
        self._outboxes: dict[str, asyncio.Queue[DriverFrame]] = {}
        self._unserved = asyncio.Event()  # no driver is there
        self._unserved.set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._loader.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)
        self._loader.__exit__(kind, error, trace)

    @property
    def announcement(self) -> Announcement:
        """What this shard says of itself: name, addresses and Thunderbolt ports as they are now."""
        return self._advertisement.announcement if self._advertisement else self._announcement

    @announcement.setter
    def announcement(self, announcement: Announcement) -> None:
        self._announcement = announcement

    def advertise(self, advertisement: Advertisement) -> None:
        """From now on say what `advertisement` tells the network."""
        self._advertisement = advertisement

    @property
    def name(self) -> str:
        return self.announcement.name

    # ---- control ----

    def status(self) -> ShardStatus:
        loaded = self._loaded
        return ShardStatus(
            id=self.announcement.id,
            name=self.name,
            version=self.announcement.version,
            protocol_version=self.announcement.protocol_version,
            cluster=self.announcement.cluster,
            grpc_port=self.announcement.grpc_port,
            http_port=self.announcement.http_port,
            addresses=self.announcement.addresses,
            thunderbolt=self.announcement.thunderbolt,
            backend=backend(),
            active_bytes=mx.get_active_memory(),
            peak_bytes=mx.get_peak_memory(),
            memory_total_bytes=psutil.virtual_memory().total,
            budget_bytes=loaded.budget_bytes if loaded else budget_bytes(self._memory),
            model=loaded.order.model if loaded else None,
            num_resident=loaded.order.num_layers_here - len(loaded.order.streamed) if loaded else 0,
            num_streamed=len(loaded.order.streamed) if loaded else 0,
            sessions=loaded.runtime.sessions if loaded else (),
            prefixes=loaded.runtime.prefixes.names if loaded else (),
            prefix_bytes=loaded.runtime.prefixes.num_bytes if loaded else 0,
            steps=loaded.runtime.steps if loaded else 0,
            read_bytes=loaded.runtime.read.num_bytes if loaded else 0,
            read_s=loaded.runtime.read.seconds if loaded else 0.0,
            kv_room_bytes=loaded.runtime.room.room_bytes if loaded else 0,
            kv_taken_bytes=loaded.runtime.room.taken_bytes if loaded else 0,
        )

    async def load(self, order: LoadOrder) -> AsyncGenerator[LoadReport, None]:
        """Replace whatever is loaded by `order`'s windows; leaving the iteration early undoes it.

        Layers that stay in memory, of the same model, are not read again: a ring that is made anew moves few.
        """
        if self._changing.locked():
            raise NotReady(f"{self.name} is already loading a model: wait for it or cancel it")
        async with self._changing:
            await self._leave_drivers()
            loading = self._load(order, await self._drop(order))
            mx.reset_peak_memory()
            try:
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

    async def _leave_drivers(self) -> None:
        """Return when no driver is served. Raises NotReady when one stays."""
        if self._loaded is None:
            return
        try:
            async with asyncio.timeout(TIMEOUTS.driver_gone_s):
                await self._unserved.wait()
        except TimeoutError:
            raise NotReady(
                f"{self.name} serves '{self._loaded.order.model}' to a head: unload it there first"
            ) from None

    async def _load(self, order: LoadOrder, kept: Kept | None) -> AsyncGenerator[LoadReport, None]:
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
                f"'{order.model}' has {model.num_layers} layers on {self.name}, but the plan has"
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
        outputs = Outputs(
            to_next=lambda frame: self._post(self._send_next, frame),
            to_driver=lambda driver, frame: self._post(self._send_driver, driver, frame),
            again=self._thread.post,
        )
        async with AsyncExitStack() as undo:
            stream = await self._stream(model, streamed, order.num_buffers, undo) if streamed else None
            runtime = Runtime(self.name, order, model, outputs, stream)
            for window in order.windows:
                yield LoadReport(LoadStep.WARM, 0, 0, "")
                await self._thread.call(partial(runtime.warm, window))
            await self._thread.call(partial(runtime.set_budget, budget, order.limits))
            grammars = await self._thread.call(partial(_grammars, found[0])) if order.is_last else None
            hop = await Held.open(self._tasks, self._hop(order.next)) if order.next else None
            files = checkpoint.fingerprint
            self._loaded = _Loaded(order, files, budget, model, runtime, hop, undo.pop_all(), grammars)
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
        undo.push_async_callback(self._thread.call, stream.close)
        await self._thread.call(stream.begin)
        return stream

    async def unload(self) -> None:
        async with self._changing:
            await self._drop()

    async def _drop(self, following: LoadOrder | None = None) -> Kept | None:
        """Free what is loaded, but for the weights that `following` needs as well."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return None
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

        await self._thread.call(collect)

    def _limit(self, budget: int, workspace: int) -> None:
        """Let MLX stay within `budget` until the memory is given back. On the compute thread."""
        assert self._unlimited is None, "limits are set once per load"
        limits = mlx_limits(budget, workspace, mlx_facts().recommended_working_set_bytes)
        self._unlimited = set_limits(limits)

    async def profile(self, request: ProfileRequest, fresh: bool) -> str:
        """Measure this device. Raises NotReady while a model is loaded, ProfileError when it fails."""
        if self._loaded is not None or self._changing.locked():
            raise NotReady(f"{self.name} is serving a model: unload it to measure the device")
        async with self._changing:
            measure = partial(
                profile_device,
                self.name,
                request,
                store=_existing(paths().models),
                cache=ProfileCache(paths().cache / "profiles"),
                fresh=fresh,
            )
            profile = await self._thread.call(measure)
            if self._memory is not None:
                budget = self._memory.of(profile.memory_total_bytes)
                profile = replace(profile, memory_budget_bytes=budget)
            return profile_to_json(profile)

    async def measure_link(self, hop: Hop, medium: Medium) -> LinkProfile:
        """Measure the hop from here to another shard, over the address that `hop` names."""
        async with (
            open_channel(hop.target, self._credentials) as channel,
            ShardClient(hop.name, channel).echo() as round_trip,
        ):
            return await measure_link(self.name, hop.name, hop.target, medium, round_trip)

    async def open_session(self, driver: str, order: SessionOrder) -> None:
        if driver not in self._outboxes:
            raise RequestError(f"{driver} opens a session before its ring stream")
        loaded = self._require()
        matcher = await loaded.matcher(order)
        await self._thread.call(partial(loaded.runtime.open, driver, order, matcher))

    async def close_session(self, session: str, keep_as: str | None) -> KeptPrefix | None:
        if self._loaded is None:
            return None
        self._loaded.runtime.cancel(session)
        return await self._thread.call(partial(self._loaded.runtime.close, session, keep_as))

    async def drop_prefixes(self, names: tuple[str, ...]) -> None:
        if self._loaded is not None:
            await self._thread.call(partial(self._loaded.runtime.drop_prefixes, names))

    def _require(self) -> _Loaded:
        if self._loaded is None:
            raise NotReady(f"{self.name} has no model loaded")
        return self._loaded

    # ---- ring ----

    def receive(self, arrival: Arrival) -> None:
        """Take a frame off a link: at once for Cancel, in order on the compute thread for all else."""
        frame = arrival.frame
        if self._loaded is None:
            fault = NotReady(f"{self.name} has no model loaded")
            self._tell_all(Fault(frame.session, self.name, type(fault).__name__, str(fault)))
            return
        runtime = self._loaded.runtime
        if isinstance(frame, Cancel):
            runtime.cancel(frame.session)
            self._thread.post(partial(runtime.drop, frame.session))
        else:
            self._thread.post(partial(runtime.handle, arrival))

    async def driver_frames(self, driver: str) -> AsyncIterator[list[DriverFrame]]:
        """What this shard has to tell `driver`. When the driver goes, its sessions go."""
        outbox: asyncio.Queue[DriverFrame] = asyncio.Queue(OUTBOX_FRAMES)
        self._outboxes[driver] = outbox
        self._unserved.clear()
        try:
            while True:
                frames = [await outbox.get()]
                while not outbox.empty():
                    frames.append(outbox.get_nowait())
                yield frames
        finally:
            self._outboxes.pop(driver, None)
            if not self._outboxes:
                self._unserved.set()
            if self._loaded is not None:
                self._thread.post(partial(self._loaded.runtime.close_all, driver))

    def _post(self, function: Callable[..., None], *arguments: object) -> None:
        """Call `function` on the event loop, from the compute thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _send_driver(self, driver: str, frame: DriverFrame) -> None:
        outbox = self._outboxes.get(driver)
        if outbox is None:
            return  # it has left; its sessions are being closed
        if outbox.full():
            log.error("%s has stopped reading: dropping it", driver)
            del self._outboxes[driver]
            return
        outbox.put_nowait(frame)

    def _tell_all(self, frame: DriverFrame) -> None:
        for driver in list(self._outboxes):
            self._send_driver(driver, frame)

    def _send_next(self, frame: NextFrame) -> None:
        hop = self._loaded.hop if self._loaded else None
        if hop is None:
            return  # unloaded while the frame was computed; its session is gone
        try:
            hop.value.send(frame)
        except DnetError as error:
            self._tell_all(Fault(frame.session, hop.value.peer, type(error).__name__, str(error)))

    @asynccontextmanager
    async def _hop(self, hop: Hop) -> AsyncIterator[RingLink]:
        async with (
            open_channel(hop.target, self._credentials) as channel,
            ring_link(
                channel,
                hop.name,
                self.name,
                TIMEOUTS.connect_s,
                on_frame=lambda _frame: None,  # a neighbour says nothing but pongs
                on_lost=partial(self._lost_next, hop.name),
            ) as link,
        ):
            yield link

    def _lost_next(self, peer: str, error: DnetError) -> None:
        """The next shard is gone: every session that lives here hears it within this lap."""
        lost = error if isinstance(error, PeerLost) else PeerLost(peer, str(error))
        log.error("%s", lost)
        if self._loaded is not None:
            for session in self._loaded.runtime.sessions:
                self._loaded.runtime.cancel(session)
                self._tell_all(Fault(session, peer, PeerLost.__name__, str(lost)))


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


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there: on the same disk, as far as one can tell."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def backend() -> str:
    """What MLX computes on here: "metal", "cuda" or "cpu"."""
    if mx.default_device() != mx.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"
