"""`dnet-shard`: the process that holds layers on one machine."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dnet_core import __version__, http_server
from dnet_core.errors import StartError
from dnet_core.shard.mlx_thread import MlxThread
from dnet_core.shard.server import Identity, ShardServer
from dnet_core.transport import grpc_server

DESCRIPTION = """\
Hold layers of a model on this machine and run them when the ring comes round.

A head (dnet-tui or dnet-api) finds or is told this shard, gives it layers, and drives it.
"""

EXAMPLES = """\
examples:
  dnet-shard                                       listen on 58081 (gRPC) and 8081 (HTTP /health)
  dnet-shard --name mini --grpc-port 58082         another name and port
  dnet-tui --peer mini.local:58081                 on the head: use that shard
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dnet-shard",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--name", default=socket.gethostname().split(".")[0], help="how the ring calls it")
    parser.add_argument("--cluster", default="default", help="only heads of the same cluster use it")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")  # noqa: S104
    parser.add_argument("--grpc-port", type=int, default=58081, help="0 picks a free one (default: 58081)")
    parser.add_argument("--http-port", type=int, default=8081, help="serves /health (default: 8081)")
    parser.add_argument("--no-http", action="store_true", help="serve no HTTP at all")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.add_argument("--version", action="version", version=f"dnet-shard {__version__}")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> None:
    """Serve until a signal comes or, for a child, until the parent has gone."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        listener = None if options.no_http else http_server.bind(options.host, options.http_port)
        http_port = listener.getsockname()[1] if listener else 0
        thread = stack.enter_context(MlxThread())
        identity = Identity(options.name, options.cluster, options.grpc_port, http_port)
        shard = await stack.enter_async_context(ShardServer(identity, thread, None))
        grpc_port = await stack.enter_async_context(
            grpc_server.serve(shard, options.host, options.grpc_port, None)
        )
        shard.identity = Identity(options.name, options.cluster, grpc_port, http_port)
        if listener is not None:
            await stack.enter_async_context(http_server.serve(_health_app(shard), listener))
        if options.child:
            await _watch_parent(stop)
            print(json.dumps({"grpc_port": grpc_port}), flush=True)
        else:
            where = f"gRPC {grpc_port}" + (f", http://localhost:{http_port}/health" if listener else "")
            print(f"dnet-shard {__version__} '{options.name}' is ready on {where}", flush=True)
        await stop.wait()


def _health_app(shard: ShardServer) -> Starlette:
    async def health(_request: Request) -> JSONResponse:
        status = shard.status()
        return JSONResponse(
            {
                "status": "ok",
                "name": status.name,
                "version": status.version,
                "backend": status.backend,
                "model": status.model,
                "sessions": len(status.sessions),
                "active_bytes": status.active_bytes,
            }
        )

    return Starlette(routes=[Route("/health", health)])


async def _watch_parent(stop: asyncio.Event) -> None:
    """Set `stop` when standard input ends: the parent holds its other end for as long as it lives."""

    class Watch(asyncio.Protocol):
        def connection_lost(self, error: Exception | None) -> None:
            stop.set()

        def eof_received(self) -> bool:
            stop.set()
            return False

    await asyncio.get_running_loop().connect_read_pipe(Watch, sys.stdin)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        asyncio.run(serve(options))
    except StartError as error:
        print(f"dnet-shard: {error}", file=sys.stderr)
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    # A step may still be computing; waiting for it could take seconds, and tearing MLX down under it crashes.
    os._exit(code)


if __name__ == "__main__":
    main()
