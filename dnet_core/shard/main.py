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
from dataclasses import replace
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dnet_core import __version__, http_server
from dnet_core.discover.announcement import MAX_NAME_BYTES, Announcement, new_id
from dnet_core.discover.mdns import Advertisement, check_name
from dnet_core.errors import DnetError, StartError
from dnet_core.memory_option import memory_limit
from dnet_core.option_types import port
from dnet_core.settings import inherited_cluster_key, paths
from dnet_core.shard.mlx_lm_parts import leave_out_texts
from dnet_core.shard.mlx_thread import MlxThread
from dnet_core.shard.server import ShardServer
from dnet_core.store.repack import cached_layers, clear_layers
from dnet_core.tasks import beside
from dnet_core.transport import grpc_server, tls
from dnet_core.types.devices import PROTOCOL_VERSION

DESCRIPTION = """\
Hold layers of a model on this machine and run them when the ring comes round.

A head (dnet-tui or dnet-api) finds this shard on the network, or is told where it is, gives it layers and
drives it. Both must have the same cluster key.
"""

EXAMPLES = """\
examples:
  dnet-shard --show-key             on the head: print the cluster key
  dnet-shard --join KEY             here, once: take that key, then serve
  dnet-shard                        serve on 58081 (gRPC) and 8081 (HTTP /health), announced by mDNS
  dnet-shard --name mini --grpc-port 58082 --http-port 8082
                                    a second one on the same machine
  dnet-shard cache list             what streamed layers take on this disk, by model
  dnet-tui --peer 10.0.0.7:58081    on the head, where multicast is blocked
  dnet-shard doctor                 what is wrong here, and what to do
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dnet-shard",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    host_name = socket.gethostname().split(".")[0][:MAX_NAME_BYTES]
    parser.add_argument("--name", default=host_name, help="what the ring calls it (default: %(default)s)")
    parser.add_argument(
        "--cluster", default="default", metavar="NAME", help="only heads of this cluster see it"
    )
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (default: all)")  # noqa: S104
    parser.add_argument("--grpc-port", type=port, metavar="PORT", help="0 picks a free one (default: 58081)")
    parser.add_argument(
        "--http-port",
        type=port,
        default=8081,
        metavar="PORT",
        help="serves /health; 0 picks a free one (default: 8081)",
    )
    parser.add_argument(
        "--memory",
        type=memory_limit,
        metavar="8GB|60%",
        help="memory that models may take here (default: what is free, less a reserve)",
    )
    parser.add_argument("--no-mdns", action="store_true", help="do not announce; heads need --peer")
    parser.add_argument("--join", metavar="KEY", help="take this cluster key for this machine, then serve")
    parser.add_argument("--show-key", action="store_true", help="print this machine's cluster key and exit")
    parser.add_argument(
        "--log-level",
        default="info",
        choices=["debug", "info", "warning", "error"],
        help="what is written to stderr (default: %(default)s)",
    )
    parser.add_argument("--version", action="version", version=f"dnet-shard {__version__}")
    # A child of a head on this machine: serves on this socket file, and only as long as its stdin is open.
    parser.add_argument("--child-socket", type=Path, help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    cache = commands.add_parser("cache", help="the layer files that streaming keeps on this machine's disk")
    cache.add_argument("action", choices=["list", "clear"], help="show what they take, or remove them")
    return parser.parse_args(arguments)


async def serve(options: argparse.Namespace) -> None:
    """Serve until a signal comes or, for a child, until the parent has gone."""
    if not (options.no_mdns or options.child_socket):
        check_name(options.name)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    certificate = tls.issue(_cluster_key(options), options.name)
    async with AsyncExitStack() as stack:
        listener = None if options.child_socket else http_server.bind(options.host, options.http_port)
        thread = stack.enter_context(MlxThread())
        shard = ShardServer(
            _announcement(options), thread, tls.channel_credentials(certificate), options.memory
        )
        await stack.enter_async_context(shard)
        endpoints = grpc_server.Endpoints(
            options.host, _grpc_port(options), options.child_socket, tls.server_credentials(certificate)
        )
        grpc_port = await stack.enter_async_context(grpc_server.serve(shard, endpoints))
        if listener is None:
            shard.announcement = replace(shard.announcement, grpc_port=grpc_port)
            await _watch_parent(stop)
            print(json.dumps({"grpc_port": grpc_port}), flush=True)
        else:
            http_port = await stack.enter_async_context(http_server.serve(_health_app(shard), listener))
            shard.announcement = replace(shard.announcement, grpc_port=grpc_port, http_port=http_port)
            if not options.no_mdns:
                await stack.enter_async_context(beside(_advertise(shard)))
            print(
                f"dnet-shard {__version__} '{options.name}' is ready: gRPC on {grpc_port},"
                f" http://localhost:{http_port}/health",
                flush=True,
            )
        async with beside(shard.warm_up()):
            await stop.wait()


def _cluster_key(options: argparse.Namespace) -> tls.ClusterKey:
    if options.join is not None:
        tls.save_key(tls.ClusterKey.from_text(options.join), paths().cluster_key)
    return tls.find_key(inherited_cluster_key(), paths().cluster_key)


def _grpc_port(options: argparse.Namespace) -> int | None:
    if options.grpc_port is None and options.child_socket is None:
        return 58081
    port: int | None = options.grpc_port
    return port


def _announcement(options: argparse.Namespace) -> Announcement:
    """What this shard says of itself before its ports are known."""
    try:
        return Announcement(new_id(), options.name, __version__, PROTOCOL_VERSION, 0, 0, options.cluster)
    except ValueError as error:
        raise StartError(
            f"cannot start as '{options.name}' of cluster '{options.cluster}': {error}"
        ) from error


async def _advertise(shard: ShardServer) -> None:
    """Tell the network of this shard; it may get another name, where its own is taken."""
    async with Advertisement(shard.announcement) as advertisement:
        shard.advertise(advertisement)
        await asyncio.Event().wait()


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
        def connection_lost(self, _error: Exception | None) -> None:
            stop.set()

        def eof_received(self) -> bool:
            stop.set()
            return False

    await asyncio.get_running_loop().connect_read_pipe(Watch, sys.stdin)


def _list_cache() -> str:
    found = cached_layers()
    if not found:
        return "no layer files are kept here"
    return "\n".join(f"{c.size_bytes / 1e9:8.2f} GB  {c.num_layers:4} layers  {c.model}" for c in found)


def _clear_cache() -> str:
    removed = clear_layers()
    return (
        f"removed {removed / 1e9:.2f} GB of layer files" if removed else "there are no layer files to remove"
    )


def main(arguments: list[str] | None = None) -> None:
    """Run `dnet-shard`. Exits with 1 and one line when it cannot start as asked."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["doctor"]:
        from dnet_core.doctor.main import main as examine  # noqa: PLC0415 - rarely wanted

        examine("dnet-shard", words[1:])
    options = parse(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    code = 0
    try:
        if options.show_key:
            print(_cluster_key(options).text)
        elif options.command == "cache":
            print(_list_cache() if options.action == "list" else _clear_cache())
        else:
            leave_out_texts()
            asyncio.run(serve(options))
    except DnetError as error:
        print(f"dnet-shard: {error}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # A step may still be computing; waiting for it could take seconds, and tearing MLX down under it crashes.
    os._exit(code)


if __name__ == "__main__":
    main()
