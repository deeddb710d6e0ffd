"""The control calls, from the coordinator's side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import grpc

from dnet_core.errors import DeadlineExceeded, PeerLost
from dnet_core.settings import TIMEOUTS
from dnet_core.transport import control_codec
from dnet_core.transport.control import (
    Hop,
    KeptPrefix,
    LoadOrder,
    LoadReport,
    LoadStep,
    SessionOrder,
    ShardStatus,
)
from dnet_core.transport.failures import from_rpc
from dnet_core.transport.grpc_link import CALLER_KEY
from dnet_core.transport.pb import shard_pb2 as pb
from dnet_core.transport.pb.shard_pb2_grpc import ShardStub
from dnet_core.types.devices import Medium
from dnet_core.types.profiles import LinkProfile, ProfileRequest

Reply = TypeVar("Reply")


class ShardClient:
    """Calls one shard over `channel`. Every call has a deadline and raises DnetErrors only."""

    def __init__(self, peer: str, channel: grpc.aio.Channel) -> None:
        self.peer = peer
        self.channel = channel
        self._stub = ShardStub(channel)  # type: ignore[no-untyped-call]

    async def describe(self) -> ShardStatus:
        call = self._stub.Describe(pb.DescribeRequest(), timeout=TIMEOUTS.describe_s)
        return control_codec.decode_status(await self._reply(call, "describe itself", TIMEOUTS.describe_s))

    async def models(self) -> tuple[str, ...]:
        """The models whose files are whole on the shard's machine, as a load names them."""
        call = self._stub.ListModels(pb.ListModelsRequest(), timeout=TIMEOUTS.list_models_s)
        reply = await self._reply(call, "list its models", TIMEOUTS.list_models_s)
        return tuple(reply.models)

    async def load(self, order: LoadOrder) -> AsyncGenerator[LoadReport, None]:
        """Yield progress until the shard is READY; leaving early cancels the load there."""
        call = self._stub.Load(control_codec.encode_load(order))
        ready = False
        try:
            while True:
                async with asyncio.timeout(TIMEOUTS.load_silence_s):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    break
                report = control_codec.decode_report(message)
                ready = report.step is LoadStep.READY
                yield report
        except TimeoutError:
            raise DeadlineExceeded(
                self.peer, "report progress of the load", TIMEOUTS.load_silence_s
            ) from None
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self.peer) from None
        finally:
            call.cancel()
        if not ready:
            raise PeerLost(self.peer, "the load ended without a word")

    async def profile(self, request: ProfileRequest, fresh: bool) -> str:
        """Measure this shard's device (`fresh`: even if it has been); the profile in its JSON form."""
        message = control_codec.encode_profile_request(request, fresh)
        call = self._stub.Profile(message, timeout=TIMEOUTS.profile_s)
        reply = await self._reply(call, "profile itself", TIMEOUTS.profile_s)
        profile: str = reply.profile_json
        return profile

    async def measure_link(self, hop: Hop, medium: Medium) -> LinkProfile:
        """The hop from this shard to another, measured by it."""
        request = pb.MeasureLinkRequest(hop=pb.Hop(name=hop.name, target=hop.target), medium=medium)
        call = self._stub.MeasureLink(request, timeout=TIMEOUTS.measure_link_s)
        reply = await self._reply(call, f"measure the link to {hop.name}", TIMEOUTS.measure_link_s)
        return LinkProfile(self.peer, hop.name, hop.target, medium, reply.latency_s, reply.bytes_per_s)

    @asynccontextmanager
    async def echo(self) -> AsyncIterator[Callable[[int], Awaitable[float]]]:
        """One stream; each trip sends so many bytes and waits for the empty answer.

        Yields when the shard has warmed up. The deadline of a trip is the caller's.
        """
        call = self._stub.Echo()

        async def round_trip(payload_bytes: int) -> float:
            begun = time.perf_counter()
            try:
                await call.write(pb.EchoRequest(payload=bytes(payload_bytes)))
                if await call.read() is grpc.aio.EOF:
                    raise PeerLost(self.peer, "it closed the stream")
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error, self.peer) from None
            return time.perf_counter() - begun

        try:
            what, wait_s = "answer", TIMEOUTS.connect_s
            try:
                async with asyncio.timeout(wait_s):
                    await call.wait_for_connection()
                what, wait_s = "warm up", TIMEOUTS.warm_up_s
                async with asyncio.timeout(wait_s):
                    await round_trip(0)
            except TimeoutError:
                raise DeadlineExceeded(self.peer, what, wait_s) from None
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error, self.peer) from None
            yield round_trip
        finally:
            call.cancel()

    async def unload(self) -> None:
        call = self._stub.Unload(pb.UnloadRequest(), timeout=TIMEOUTS.unload_s)
        await self._reply(call, "unload", TIMEOUTS.unload_s)

    async def open_session(self, driver: str, order: SessionOrder) -> None:
        call = self._stub.OpenSession(
            control_codec.encode_session(order),
            timeout=TIMEOUTS.open_session_s,
            metadata=((CALLER_KEY, driver),),
        )
        await self._reply(call, "open a session", TIMEOUTS.open_session_s)

    async def close_session(self, session: str, keep_as: str | None = None) -> KeptPrefix | None:
        """Free the session's memory, or keep its KV under the name `keep_as`; returns what was kept."""
        call = self._stub.CloseSession(
            pb.CloseSessionRequest(session=session, keep_as=keep_as), timeout=TIMEOUTS.close_session_s
        )
        return control_codec.decode_kept(await self._reply(call, "close a session", TIMEOUTS.close_session_s))

    async def drop_prefixes(self, names: Sequence[str]) -> None:
        call = self._stub.DropPrefixes(pb.DropPrefixesRequest(names=names), timeout=TIMEOUTS.close_session_s)
        await self._reply(call, "drop prefixes", TIMEOUTS.close_session_s)

    async def _reply(self, call: Awaitable[Reply], what: str, seconds: float) -> Reply:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceeded(self.peer, what, seconds) from None
            raise from_rpc(error, self.peer) from None
