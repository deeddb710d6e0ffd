"""Serve an ASGI application inside an event loop that belongs to somebody else.

uvicorn would install signal handlers, exit the process when a port is taken and write to the terminal; here
the socket is bound first and the server does none of these.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from dnet_core.errors import StartError
from dnet_core.tasks import beside

GRACE_S = 1


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to the program, not to one of its parts


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; `port` 0 picks a free one. Raises StartError when the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {host} port {port} for HTTP: {error.strerror or error}."
            " Choose another with --http-port (0 picks a free one)"
        ) from error
    listener.setblocking(False)
    return listener


@asynccontextmanager
async def serve(app: ASGIApp, listener: socket.socket) -> AsyncIterator[int]:
    """Serve `app` on `listener` until the block ends; yields the port. Requests in flight get a second."""
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    server = _Server(config)
    async with beside(server.serve(sockets=[listener])) as serving:
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            await asyncio.wait([serving], timeout=2 * GRACE_S)
            listener.close()
