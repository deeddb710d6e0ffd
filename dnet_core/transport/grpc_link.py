"""The client end of a ring stream: one long-lived bidirectional gRPC stream to one shard.

The driver holds one to every shard, each shard one to the next. Frames that wait together travel in one
message. Pings on the same stream tell the round trip, the difference of the clocks (so that a frame's time on
the wire is known on arrival) and whether the other side is alive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from dnet_core.errors import DeadlineExceeded, DnetError, PeerLost, RingError
from dnet_core.tasks import beside
from dnet_core.transport import codec
from dnet_core.transport.failures import from_rpc
from dnet_core.transport.frames import DriverFrame, RingFrame
from dnet_core.transport.pb import shard_pb2 as pb
from dnet_core.transport.pb.shard_pb2_grpc import ShardStub
from dnet_core.transport.tls import CHANNEL_OPTIONS
from dnet_core.types.devices import UNIX

CALLER_KEY = "dnet-caller"
DRIVER_PREFIX = "driver:"

OPTIONS = (
    # Prefill chunks of wide models are tens of MB; a frame is bounded by the chunk, not by gRPC.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it
    ("grpc.enable_http_proxy", 0),  # peers are neighbours
)

OUTBOX_FRAMES = 4096
"""Far above sessions x chunks in flight: reaching it means the peer has stopped reading."""

CLOSED = "it closed the stream"

PING_INTERVAL_S = 2.0
PING_DEADLINE_S = 10.0
FIRST_PINGS = 5


def open_channel(target: str, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
    """A channel to a shard: TLS over a network; a socket file is guarded by its folder's permissions."""
    if target.startswith(UNIX):
        return grpc.aio.insecure_channel(target, options=OPTIONS)
    return grpc.aio.secure_channel(target, credentials, options=(*OPTIONS, *CHANNEL_OPTIONS))


@dataclass(frozen=True, slots=True)
class Clock:
    """The other side's monotonic clock: `theirs = ours + offset_ns`, good to half of `round_trip_ns`."""

    offset_ns: int
    round_trip_ns: int


class RingLink:
    """One hop. Made by `ring_link`; `send` may be called from the loop's thread only."""

    def __init__(self, peer: str, call: grpc.aio.StreamStreamCall[pb.ToShard, pb.FromShard]) -> None:
        self.peer = peer
        self._call = call
        self._outbox: asyncio.Queue[RingFrame] = asyncio.Queue(OUTBOX_FRAMES)
        self._write = asyncio.Lock()  # gRPC allows one write at a time
        self._pong: asyncio.Queue[Clock] = asyncio.Queue()
        self._failure: DnetError | None = None
        self._closed = False
        self.clock = Clock(offset_ns=0, round_trip_ns=0)

    def send(self, frame: RingFrame) -> None:
        """Put `frame` on its way. Raises PeerLost when the hop is broken, RingError when nobody reads it."""
        if self._failure is not None:
            raise self._failure
        try:
            self._outbox.put_nowait(frame)
        except asyncio.QueueFull:
            raise RingError(f"{self.peer} has stopped reading: {OUTBOX_FRAMES} frames wait for it") from None

    async def _sender(self) -> None:
        while True:
            frames = [await self._outbox.get()]
            while not self._outbox.empty():
                frames.append(self._outbox.get_nowait())
            message = codec.encode_ring(frames, time.monotonic_ns() + self.clock.offset_ns)
            async with self._write:
                await self._call.write(message)

    async def _reader(self, on_frame: Callable[[DriverFrame], None]) -> None:
        while True:
            message = await self._call.read()
            if not isinstance(message, pb.FromShard):  # grpc.aio.EOF
                raise PeerLost(self.peer, CLOSED)
            if message.HasField("pong"):
                now = time.monotonic_ns()
                round_trip = now - message.pong.ping_sent_ns
                offset = message.pong.received_ns - (message.pong.ping_sent_ns + round_trip // 2)
                # Clocks that agree to within the exchange are one clock: both processes run on one machine.
                self._pong.put_nowait(Clock(offset if abs(offset) > round_trip else 0, round_trip))
            for frame in codec.decode_driver(message):
                on_frame(frame)

    async def _ping(self) -> Clock:
        async with self._write:
            await self._call.write(pb.ToShard(ping=pb.Ping(sent_ns=time.monotonic_ns())))
        try:
            async with asyncio.timeout(PING_DEADLINE_S):
                return await self._pong.get()
        except TimeoutError:
            raise DeadlineExceeded(self.peer, "answer a ping", PING_DEADLINE_S) from None

    async def _heartbeat(self, ready: asyncio.Event) -> None:
        clocks = [await self._ping() for _ in range(FIRST_PINGS)]
        self.clock = min(clocks, key=lambda clock: clock.round_trip_ns)
        ready.set()
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            latest = await self._ping()
            # A slow exchange knows little of the offset; clocks drift slowly, so the best one is kept.
            if latest.round_trip_ns <= 2 * self.clock.round_trip_ns:
                self.clock = latest

    async def run(
        self,
        ready: asyncio.Event,
        on_frame: Callable[[DriverFrame], None],
        on_lost: Callable[[DnetError], None],
    ) -> None:
        """Keep the hop alive until closed, or until it breaks: then `on_lost` hears why, once."""
        found: list[BaseException] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sender())
                tasks.create_task(self._reader(on_frame))
                tasks.create_task(self._heartbeat(ready))
        except* (grpc.aio.AioRpcError, DnetError, asyncio.InvalidStateError) as group:
            found.extend(_leaves(group))
        failure = await self._reason(found)
        if ready.is_set() and not isinstance(failure, PeerLost):
            failure = PeerLost(self.peer, str(failure))  # whatever it is, this hop is gone
        if not self._closed:  # else a frame that was still to be sent found the stream closed
            self._failure = failure
            ready.set()
            on_lost(self._failure)

    def close(self) -> None:
        """End the stream from this side; what happens to it from now on is no failure of the peer."""
        self._closed = True
        self._call.cancel()

    async def _reason(self, found: list[BaseException]) -> DnetError:
        """The one reason behind all that failed: the peer's own error before the noise it makes."""
        for error in found:
            if isinstance(error, grpc.aio.AioRpcError):
                return from_rpc(error, self.peer)
        for error in found:
            if isinstance(error, DnetError):
                return error
        # A write was the first to notice: it finds that the call has ended, and only the call knows why.
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            return PeerLost(self.peer, CLOSED)
        trailing, details = await self._call.trailing_metadata(), await self._call.details()
        return from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details), self.peer)

    def check(self) -> None:
        """Raise the reason if the hop is broken."""
        if self._failure is not None:
            raise self._failure


def _leaves(group: BaseExceptionGroup) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found


@asynccontextmanager
async def ring_link(
    channel: grpc.aio.Channel,
    peer: str,
    caller: str,
    connect_s: float,
    on_frame: Callable[[DriverFrame], None],
    on_lost: Callable[[DnetError], None],
) -> AsyncIterator[RingLink]:
    """Open the ring stream to `peer` and wait until it has answered.

    Raises PeerLost, TrustError or DeadlineExceeded when it does not.
    """
    stub = ShardStub(channel)  # type: ignore[no-untyped-call]
    call = stub.Ring(metadata=((CALLER_KEY, caller),))
    link = RingLink(peer, call)
    ready = asyncio.Event()
    async with beside(link.run(ready, on_frame, on_lost)):
        try:
            try:
                async with asyncio.timeout(connect_s):
                    await ready.wait()
            except TimeoutError:
                raise DeadlineExceeded(peer, "answer", connect_s) from None
            link.check()
            yield link
        finally:
            link.close()
