"""A reply that is a stream of server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dnet_core.api import sse
from dnet_core.api.errors import ApiError, reply_for
from dnet_core.api.in_flight import ClientGone, InFlight
from dnet_core.tasks import beside

HEARTBEAT_S = 10.0
"""A comment is sent this often: proxies and clients give up on a stream that says nothing for long."""
FAREWELL_S = 1.0
"""So long a client may take to read why its stream ends when the endpoint stops."""


class EventStream(Response):
    """Sends headers at once, then `events`; whatever ends the stream, `events` is closed.

    An error on the way becomes the last event, and `on_error` hears it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_error: Callable[[ApiError], None],
        in_flight: InFlight,
        heartbeat_s: float,
    ) -> None:
        self._events = events
        self._on_error = on_error
        self._in_flight = in_flight
        self._heartbeat_s = heartbeat_s
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with self._in_flight.attended(receive), beside(self._heart(send)):
                    await self._write(send)
            except ClientGone:
                return
            except ApiError as error:  # the endpoint stops, and does not wait for who does not read
                with suppress(TimeoutError):
                    async with asyncio.timeout(FAREWELL_S):
                        await self._tell(send, error)
                        await _send_body(send, b"", more=False)
            else:
                await _send_body(send, b"", more=False)

    async def _write(self, send: Send) -> None:
        try:
            async for event in self._events:
                await _send_body(send, event, more=True)
        except Exception as error:  # noqa: BLE001 - the border: the headers are gone, so the stream tells
            await self._tell(send, reply_for(error, "a stream"))

    async def _tell(self, send: Send, error: ApiError) -> None:
        self._on_error(error)
        await _send_body(send, sse.data(error.body()), more=True)

    async def _heart(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            await _send_body(send, b": still working\n\n", more=True)


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
