"""Serve an ASGI application inside an event loop that belongs to somebody else.

uvicorn would install signal handlers, exit the process when a port is taken and write to the terminal; here
the socket is bound first and the server does none of these.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from dnet_core.errors import PortTaken, StartError
from dnet_core.tasks import beside

GRACE_S = 1
PORTS_TRIED = 100
"""How far a free port is looked for behind one that is taken."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to the program, not to one of its parts


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; `port` 0 picks a free one. Raises PortTaken and StartError."""
    try:
        listener = _listen(host, port)
    except (OSError, OverflowError, UnicodeError) as error:  # the latter: no port, no name at all
        why: object = error
        if isinstance(error, OSError):
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(host, port, _free_after(host, port)) from error
            why = error.strerror or error
        raise StartError(
            f"cannot listen on {host} port {port} for HTTP: {why}."
            " Choose another with --http-port (0 picks a free one)"
        ) from error
    listener.setblocking(False)
    return listener


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError, UnicodeError):
        listener.close()
        raise
    return listener


def _free_after(host: str, port: int) -> int | None:
    for candidate in range(port + 1, min(port + 1 + PORTS_TRIED, 65536)):
        try:
            _listen(host, candidate).close()
        except OSError:
            continue
        return candidate
    return None


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
            for connection in tuple(server.server_state.connections):  # of clients that do not read
                connection.transport.abort()
