"""The event-loop side of a shard: control calls, frames in from the links, frames out to next and drivers.

Ring stream -> receive() -> MlxThread inbox -> Runtime -> next link's outbox   (one thread hop each way)
                                                      -> driver's outbox
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
import mlx.core as mx
import psutil

from dnet_core.discover.announcement import Announcement
from dnet_core.discover.mdns import Advertisement
from dnet_core.errors import DnetError, NotReady, PeerLost, RequestError
from dnet_core.memory_option import MemoryLimit
from dnet_core.profile.cache import ProfileCache
from dnet_core.profile.device import profile_to_json
from dnet_core.profile.links import measure_link
from dnet_core.profile.mlx_facts import backend
from dnet_core.settings import TIMEOUTS, paths
from dnet_core.shard.memory import budget_bytes
from dnet_core.shard.mlx_thread import MlxThread
from dnet_core.tasks import TaskScope
from dnet_core.transport.control import (
    Arrival,
    Hop,
    KeptPrefix,
    LoadOrder,
    LoadReport,
    SessionOrder,
    ShardStatus,
)
from dnet_core.transport.frames import Cancel, DriverFrame, Fault
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import OUTBOX_FRAMES, RingLink, open_channel, ring_link
from dnet_core.types.devices import Medium
from dnet_core.types.profiles import DeviceProfile, LinkProfile, ProfileRequest

if TYPE_CHECKING:  # they import mlx-lm, which takes its time: see `warm_up`
    from dnet_core.shard.runtime import NextFrame
    from dnet_core.shard.slot import Loaded, ModelSlot

log = logging.getLogger(__name__)


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
        self._credentials = credentials
        self._tasks = TaskScope()
        self._loop = asyncio.get_running_loop()
        self._changing = asyncio.Lock()
        self._is_warm = False
        self._slot: ModelSlot | None = None  # None until something is to be loaded
        self._opening: set[str] = set()  # sessions whose grammar is being compiled
        self._outboxes: dict[str, asyncio.Queue[DriverFrame]] = {}
        self._unserved = asyncio.Event()  # no driver is there
        self._unserved.set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.__aexit__(kind, error, trace)
        if self._slot is not None:
            self._slot.__exit__(kind, error, trace)

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

    @property
    def _loaded(self) -> Loaded | None:
        return self._slot.loaded if self._slot else None

    async def warm_up(self) -> None:
        """Import what models need, so that the first load need not; meanwhile this shard answers."""
        if not self._is_warm:
            await self._thread.call(_model_slot)
            self._is_warm = True

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

    async def models(self) -> tuple[str, ...]:
        """Raises LoadError when the disk cannot be read."""
        return await asyncio.to_thread(_models)

    async def load(self, order: LoadOrder) -> AsyncGenerator[LoadReport, None]:
        """Replace whatever is loaded by `order`'s windows; leaving the iteration early undoes it."""
        if self._changing.locked():
            raise NotReady(f"{self.name} is already loading a model: wait for it or cancel it")
        async with self._changing:
            await self._leave_drivers()
            slot = self._slot or await self._make_slot()
            async with aclosing(slot.load(order, self.name)) as reports:
                async for report in reports:
                    yield report

    async def _make_slot(self) -> ModelSlot:
        model_slot = await self._thread.call(_model_slot)
        self._slot = model_slot(
            self._thread,
            self._tasks,
            self._memory,
            to_next=lambda frame: self._post(self._send_next, frame),
            to_driver=lambda driver, frame: self._post(self._send_driver, driver, frame),
            connect=self._hop,
        )
        self._slot.__enter__()
        return self._slot

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

    async def unload(self) -> None:
        async with self._changing:
            if self._slot is not None:
                await self._slot.drop()

    async def profile(self, request: ProfileRequest, fresh: bool) -> str:
        """Measure this device. Raises NotReady while it is in use, ProfileError when it fails."""
        if self._loaded is not None:
            raise NotReady(f"{self.name} is serving a model: unload it to measure the device")
        if self._changing.locked():
            raise NotReady(f"{self.name} is loading a model, or being measured: try again when it is done")
        async with self._changing:
            profile = await self._thread.call(partial(_profile, self.name, request, fresh))
            if self._memory is not None:
                budget = self._memory.of(profile.memory_total_bytes)
                profile = replace(profile, memory_budget_bytes=budget)
            return profile_to_json(profile)

    async def measure_link(self, hop: Hop, medium: Medium) -> LinkProfile:
        """Measure the hop from here to another shard, over the address that `hop` names.

        Both have warmed up first: an import takes the interpreter for milliseconds at a time.
        """
        await self.warm_up()
        async with (
            open_channel(hop.target, self._credentials) as channel,
            ShardClient(hop.name, channel).echo() as round_trip,
        ):
            return await measure_link(self.name, hop.name, hop.target, medium, round_trip)

    async def open_session(self, driver: str, order: SessionOrder) -> None:
        """Begin a session of `driver`, unless it is closed or the driver goes while its grammar is made."""
        loaded = self._require()
        self._opening.add(order.session)
        try:
            matcher = await loaded.matcher(order)
            if self._loaded is not loaded or order.session not in self._opening:
                raise NotReady(f"{self.name}: session {order.session} was closed while it was opened")
        finally:
            self._opening.discard(order.session)
        if driver not in self._outboxes:
            raise RequestError(f"{driver} opens a session before its ring stream")
        await self._thread.call(partial(loaded.runtime.open, driver, order, matcher))

    async def close_session(self, session: str, keep_as: str | None) -> KeptPrefix | None:
        self._opening.discard(session)
        if self._loaded is None:
            return None
        self._loaded.runtime.cancel(session)
        # Who asks may have a deadline, and a step may take longer: it is closed all the same.
        return await self._thread.carry_out(partial(self._loaded.runtime.close, session, keep_as))

    async def drop_prefixes(self, names: tuple[str, ...]) -> None:
        if self._loaded is not None:
            await self._thread.carry_out(partial(self._loaded.runtime.drop_prefixes, names))

    def _require(self) -> Loaded:
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
            self._opening.discard(frame.session)
            runtime.cancel(frame.session)
            self._thread.post(partial(runtime.drop, frame.session))
        else:
            self._thread.post(partial(runtime.handle, arrival))

    async def driver_frames(self, driver: str) -> AsyncGenerator[list[DriverFrame], None]:
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
                self._loaded.runtime.cancel_all(driver)  # now: a chunk of a prompt may take a while
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


def _model_slot() -> type[ModelSlot]:
    """For the compute thread: mlx-lm takes its time to import, and the event loop has to answer."""
    from dnet_core.shard.slot import ModelSlot  # noqa: PLC0415

    return ModelSlot


def _models() -> tuple[str, ...]:
    from dnet_core.store.catalog import list_local  # noqa: PLC0415 - it imports the hub's client

    return tuple(model.id for model in list_local())


def _profile(name: str, request: ProfileRequest, fresh: bool) -> DeviceProfile:
    from dnet_core.profile.measure import profile_device  # noqa: PLC0415 - as above

    store, cache = _existing(paths().models), ProfileCache(paths().cache / "profiles")
    return profile_device(name, request, store=store, cache=cache, fresh=fresh)


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there: on the same disk, as far as one can tell."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
