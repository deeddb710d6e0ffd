"""The control calls, from the coordinator's side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

import grpc

from dnet_core.errors import DeadlineExceeded, PeerLost
from dnet_core.settings import TIMEOUTS
from dnet_core.transport import codec
from dnet_core.transport.control import LoadOrder, LoadReport, LoadStep, SessionOrder, ShardStatus
from dnet_core.transport.failures import from_rpc
from dnet_core.transport.grpc_link import CALLER_KEY
from dnet_core.transport.pb import shard_pb2 as pb
from dnet_core.transport.pb.shard_pb2_grpc import ShardStub

Reply = TypeVar("Reply")


class ShardClient:
    """Calls one shard over `channel`. Every call has a deadline and raises DnetErrors only."""

    def __init__(self, peer: str, channel: grpc.aio.Channel) -> None:
        self.peer = peer
        self.channel = channel
        self._stub = ShardStub(channel)  # type: ignore[no-untyped-call]

    async def describe(self) -> ShardStatus:
        call = self._stub.Describe(pb.DescribeRequest(), timeout=TIMEOUTS.describe_s)
        return codec.decode_status(await self._reply(call, "describe itself", TIMEOUTS.describe_s))

    async def load(self, order: LoadOrder) -> AsyncIterator[LoadReport]:
        """Yield progress until the shard is READY; leaving early cancels the load there."""
        call = self._stub.Load(codec.encode_load(order))
        ready = False
        try:
            while True:
                async with asyncio.timeout(TIMEOUTS.load_silence_s):
                    message = await call.read()
                if message is grpc.aio.EOF:
                    break
                report = codec.decode_report(message)
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

    async def unload(self) -> None:
        call = self._stub.Unload(pb.UnloadRequest(), timeout=TIMEOUTS.unload_s)
        await self._reply(call, "unload", TIMEOUTS.unload_s)

    async def open_session(self, driver: str, order: SessionOrder) -> None:
        call = self._stub.OpenSession(
            codec.encode_session(order),
            timeout=TIMEOUTS.open_session_s,
            metadata=((CALLER_KEY, driver),),
        )
        await self._reply(call, "open a session", TIMEOUTS.open_session_s)

    async def close_session(self, session: str) -> None:
        call = self._stub.CloseSession(
            pb.CloseSessionRequest(session=session), timeout=TIMEOUTS.close_session_s
        )
        await self._reply(call, "close a session", TIMEOUTS.close_session_s)

    async def _reply(self, call: Awaitable[Reply], what: str, seconds: float) -> Reply:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceeded(self.peer, what, seconds) from None
            raise from_rpc(error, self.peer) from None
