"""The gRPC server of a shard: a thin shell around a `ShardService`."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any, NoReturn

import grpc

from dnet_core.errors import DnetError, StartError
from dnet_core.tasks import beside
from dnet_core.transport import codec, control_codec
from dnet_core.transport.control import Arrival, Hop, ShardService
from dnet_core.transport.failures import code_of, metadata_of
from dnet_core.transport.grpc_link import CALLER_KEY, DRIVER_PREFIX, OPTIONS
from dnet_core.transport.pb import shard_pb2 as pb
from dnet_core.transport.pb.shard_pb2_grpc import ShardServicer, add_ShardServicer_to_server
from dnet_core.types.devices import UNIX, grpc_target

Context = grpc.aio.ServicerContext[Any, Any]


def _caller(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == CALLER_KEY:
            return str(value)
    return "unknown"


async def _abort(context: Context, error: DnetError) -> NoReturn:
    await context.abort(code_of(error), str(error), metadata_of(error))
    raise AssertionError("abort returns never")


class _Servicer(ShardServicer):
    def __init__(self, service: ShardService) -> None:
        self._service = service

    async def Describe(self, _request: pb.DescribeRequest, _context: Context) -> pb.DescribeReply:
        return control_codec.encode_status(self._service.status())

    async def ListModels(self, _request: pb.ListModelsRequest, context: Context) -> pb.ListModelsReply:
        try:
            return pb.ListModelsReply(models=await self._service.models())
        except DnetError as error:
            await _abort(context, error)

    async def Load(self, request: pb.LoadRequest, context: Context) -> None:
        try:
            async with aclosing(self._service.load(control_codec.decode_load(request))) as reports:
                async for report in reports:
                    await context.write(control_codec.encode_report(report))
        except DnetError as error:
            await _abort(context, error)

    async def Profile(self, request: pb.ProfileRequest, context: Context) -> pb.ProfileReply:
        try:
            profile = await self._service.profile(*control_codec.decode_profile_request(request))
        except DnetError as error:
            await _abort(context, error)
        return pb.ProfileReply(profile_json=profile)

    async def MeasureLink(self, request: pb.MeasureLinkRequest, context: Context) -> pb.MeasureLinkReply:
        hop = Hop(request.hop.name, request.hop.target)
        try:
            link = await self._service.measure_link(hop, control_codec.decode_medium(request.medium))
        except DnetError as error:
            await _abort(context, error)
        return pb.MeasureLinkReply(latency_s=link.latency_s, bytes_per_s=link.bytes_per_s)

    async def Echo(self, _requests: AsyncIterator[pb.EchoRequest], context: Context) -> None:
        await self._service.warm_up()
        while await context.read() is not grpc.aio.EOF:
            await context.write(pb.EchoReply())

    async def Unload(self, _request: pb.UnloadRequest, context: Context) -> pb.UnloadReply:
        try:
            await self._service.unload()
        except DnetError as error:
            await _abort(context, error)
        return pb.UnloadReply()

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Context) -> pb.OpenSessionReply:
        try:
            await self._service.open_session(_caller(context), control_codec.decode_session(request))
        except DnetError as error:
            await _abort(context, error)
        return pb.OpenSessionReply()

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Context) -> pb.CloseSessionReply:
        try:
            keep_as = request.keep_as if request.HasField("keep_as") else None
            return control_codec.encode_kept(await self._service.close_session(request.session, keep_as))
        except DnetError as error:
            await _abort(context, error)

    async def DropPrefixes(self, request: pb.DropPrefixesRequest, context: Context) -> pb.DropPrefixesReply:
        try:
            await self._service.drop_prefixes(tuple(request.names))
        except DnetError as error:
            await _abort(context, error)
        return pb.DropPrefixesReply()

    async def Ring(self, _requests: AsyncIterator[pb.ToShard], context: Context) -> None:
        write = asyncio.Lock()  # gRPC allows one write at a time
        caller = _caller(context)
        async with beside(self._tell(caller, context, write)):
            try:
                await self._listen(context, write)
            except DnetError as error:
                await _abort(context, error)

    async def _listen(self, context: Context, write: asyncio.Lock) -> None:
        while True:
            message = await context.read()
            if message is grpc.aio.EOF:
                return
            now = time.monotonic_ns()
            if message.HasField("ping"):
                pong = pb.Pong(ping_sent_ns=message.ping.sent_ns, received_ns=now)
                async with write:
                    await context.write(pb.FromShard(pong=pong))
            # The sender speaks our clock; what is left of the error may make a short hop look negative.
            wire_s = max(0, now - message.sent_ns) / 1e9
            for frame in codec.decode_ring(message):
                self._service.receive(Arrival(frame, now / 1e9, wire_s))

    async def _tell(self, caller: str, context: Context, write: asyncio.Lock) -> None:
        """Carry what the shard has to say to its driver; a neighbour shard is told nothing."""
        if not caller.startswith(DRIVER_PREFIX):
            return
        # Closed here, whatever the write was doing when the driver left: its sessions go with it.
        async with aclosing(self._service.driver_frames(caller)) as told:
            async for frames in told:
                async with write:
                    await context.write(codec.encode_driver(frames))


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a shard listens: TCP with mutual TLS (`port` 0 picks a free one, None: not at all) and, for
    processes of the same user on this machine, a socket file in a folder that nobody else may enter.
    """

    host: str
    port: int | None
    socket: Path | None
    credentials: grpc.ServerCredentials


@asynccontextmanager
async def serve(service: ShardService, endpoints: Endpoints) -> AsyncIterator[int]:
    """Serve until the block ends; yields the bound TCP port (0: none was asked for).

    Raises StartError when an address cannot be bound.
    """
    server = grpc.aio.server(options=OPTIONS)
    add_ShardServicer_to_server(_Servicer(service), server)  # type: ignore[no-untyped-call]
    bound = 0
    if endpoints.socket is not None:
        server.add_insecure_port(f"{UNIX}{endpoints.socket}")
    if endpoints.port is not None:
        bound = _bind(server, endpoints.host, endpoints.port, endpoints.credentials)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(grace=0.2)


def _bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials) -> int:
    address = grpc_target(host, port)
    try:
        # gRPC would write to stderr before it fails: ask first.
        with socket.create_server((host, port), family=AF_INET6 if ":" in host else AF_INET):
            pass
        return server.add_secure_port(address, credentials)
    except (OSError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it cannot be bound"
        raise StartError(
            f"cannot listen on {address} for gRPC: {why}."
            " Choose another port with --grpc-port (0 picks a free one)"
        ) from error
