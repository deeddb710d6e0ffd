"""The web server inside somebody else's loop."""

from __future__ import annotations

import asyncio
import socket

import psutil
from starlette.types import Receive, Scope, Send

from dnet_core.http_server import bind, serve


async def test_a_client_that_does_not_read_has_no_connection_when_the_server_has_ended() -> None:
    async def endless(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})

    client = socket.socket()
    client.setblocking(False)
    with client:
        async with asyncio.timeout(60), serve(endless, bind("127.0.0.1", 0)) as port:
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
            assert await loop.sock_recv(client, 10) == b"HTTP/1.1 2"
        await asyncio.sleep(0)
        assert port not in [c.laddr.port for c in psutil.Process().net_connections("tcp")]
