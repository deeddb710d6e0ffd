"""The requests being served: seen by the screen, ended when their client goes or the endpoint stops."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from starlette.types import Receive

from dnet_core.api.errors import SERVER, ApiError
from dnet_core.tasks import beside

LAST_ERRORS = 20


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """A request that is being served; `number` counts all of them from 1."""

    number: int
    method: str
    path: str
    client: str  # its address
    begun_unix_s: float


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request that was answered with an error."""

    at_unix_s: float
    method: str
    path: str
    status: int
    message: str


@dataclass(frozen=True, slots=True)
class Activity:
    """What an endpoint is doing and what went wrong lately, newest last."""

    requests: tuple[OpenRequest, ...]
    requests_total: int
    last_errors: tuple[FailedRequest, ...]


class InFlight:
    """Owned by the endpoint, on the event loop."""

    def __init__(self) -> None:
        self._requests: dict[int, OpenRequest] = {}
        self._total = 0
        self._errors: deque[FailedRequest] = deque(maxlen=LAST_ERRORS)
        self._deadlines: set[asyncio.Timeout] = set()
        self._is_stopping = False
        self._news = asyncio.Event()

    @property
    def activity(self) -> Activity:
        return Activity(tuple(self._requests.values()), self._total, tuple(self._errors))

    async def watch(self) -> AsyncGenerator[Activity, None]:
        """Yield what is so now, and again after every change; what changes meanwhile comes at once."""
        while True:
            news = self._news
            yield self.activity
            await news.wait()

    @contextmanager
    def request(self, method: str, path: str, client: str) -> Iterator[None]:
        """The block serves this request."""
        self._total += 1
        number = self._total
        self._requests[number] = OpenRequest(number, method, path, client, time.time())
        self._tell()
        try:
            yield
        finally:
            del self._requests[number]
            self._tell()

    def note_failure(self, method: str, path: str, error: ApiError) -> None:
        self._errors.append(FailedRequest(time.time(), method, path, error.status, error.message))
        self._tell()

    @asynccontextmanager
    async def attended(self, receive: Receive) -> AsyncIterator[None]:
        """Run the block until the client goes away or `stop`: then it is cancelled.

        The request's body must have been read. Raises ClientGone, and ApiError 503 when the endpoint stops.
        """
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            deadline.reschedule(asyncio.get_running_loop().time())

        self.check_open()
        try:
            # A deadline that nothing but these two sets: asyncio.timeout cancels the block and takes it back
            # cleanly.
            async with asyncio.timeout(None) as deadline, beside(watch()):
                self._deadlines.add(deadline)
                try:
                    yield
                finally:
                    self._deadlines.discard(deadline)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise (ClientGone() if gone else _stopped()) from None

    def check_open(self) -> None:
        """Raise ApiError 503 when the endpoint stops."""
        if self._is_stopping:
            raise _stopped()

    def stop(self) -> None:
        """End every attended request now, and those that still come."""
        self._is_stopping = True
        for deadline in self._deadlines:
            deadline.reschedule(asyncio.get_running_loop().time())

    async def ended(self) -> None:
        """Return when no request is being served."""
        while self._requests:
            await self._news.wait()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _stopped() -> ApiError:
    return ApiError(503, "the endpoint was switched off", kind=SERVER, code="endpoint_stopped")
