"""Bytes to the client: JSON, server-sent events, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.responses import Response
from starlette.types import Receive

from dnet_core.tasks import beside

DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


def json_bytes(value: object) -> bytes:
    """Compact JSON. Half a surrogate pair, which UTF-8 cannot carry, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def data(value: object) -> bytes:
    """One unnamed event."""
    return b"data: " + json_bytes(value) + b"\n\n"


def reply(value: object, status: int = 200) -> Response:
    return Response(json_bytes(value), status, media_type="application/json")


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Run the block until the client goes away: then it is cancelled, and ClientGone is raised.

    The request's body must have been read.
    """

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        deadline.reschedule(asyncio.get_running_loop().time())

    try:
        # A deadline that only a disconnect sets: asyncio.timeout cancels the block and takes it back cleanly.
        async with asyncio.timeout(None) as deadline, beside(watch()):
            yield
    except TimeoutError:
        if deadline.expired():
            raise ClientGone from None
        raise
