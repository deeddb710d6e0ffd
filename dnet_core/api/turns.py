"""Whose turn it is: a bounded number of sessions at once, and clients that wait take turns.

    slots = 2     running  A1 A2        waiting  A: A3 A4 A5   B: B1   ->  next: A3, B1, A4, A5

One client with many requests does not keep another one waiting for all of them. A request may be many
sessions (`n`, several prompts): each has its turn, but among those that wait it counts as one.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from dnet_core.api.errors import ApiError

MAX_RETRY_AFTER_S = 60


class QueuePolicy(StrEnum):
    FAIR = "fair"  # clients take turns
    FIFO = "fifo"  # in order of arrival, whoever sent them


@dataclass(frozen=True, slots=True)
class _Waiter:
    """A session in line; `request` is whose it is."""

    request: object
    turn: asyncio.Future[None]


class Turns:
    """Lets at most `slots` sessions run, and at most `bound` requests wait. Owned by the event loop."""

    def __init__(self, slots: int, bound: int, policy: QueuePolicy = QueuePolicy.FAIR) -> None:
        self._free = slots
        self._slots = slots
        self._bound = bound
        self._policy = policy
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()  # by client
        self._requests: Counter[object] = Counter()  # that wait, and with how many sessions
        self._mean_s = 1.0  # how long a session has taken lately

    @property
    def num_running(self) -> int:
        return self._slots - self._free

    @property
    def num_waiting(self) -> int:
        """How many sessions wait."""
        return self._requests.total()

    def check_room(self) -> None:
        """Raise ApiError 429 when no more may wait. Asked before a reply begins, while that can be said."""
        waiting = len(self._requests)
        if waiting < self._bound or self._free:
            return
        after_s = min(math.ceil(self._mean_s * self.num_waiting / self._slots) or 1, MAX_RETRY_AFTER_S)
        raise ApiError(
            429,
            f"{waiting} requests are waiting already: try again in {after_s} s",
            kind="rate_limit_error",
            code="queue_full",
            retry=True,
            headers={"retry-after": str(after_s)},
        )

    @asynccontextmanager
    async def turn(self, client: str, request: object) -> AsyncIterator[None]:
        """Wait until `client` may run a session of its `request`; the block is that session."""
        await self._wait(client if self._policy is QueuePolicy.FAIR else "", request)
        begun_s = time.monotonic()
        try:
            yield
        finally:
            self._mean_s += 0.2 * (time.monotonic() - begun_s - self._mean_s)
            self._pass_on()

    async def _wait(self, client: str, request: object) -> None:
        if self._free:
            self._free -= 1
            return
        mine = _Waiter(request, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(client, deque()).append(mine)
        self._requests[request] += 1
        try:
            await mine.turn
        except asyncio.CancelledError:
            if not mine.turn.cancelled():
                self._pass_on()  # the turn had come at the moment of giving up
            elif mine in self._waiting.get(client, ()):
                self._forget(client, mine)
            raise

    def _pass_on(self) -> None:
        """Give a slot that is free now to the next client in turn."""
        while self._waiting:
            client, line = next(iter(self._waiting.items()))
            waiter = line.popleft()
            self._leave(waiter)
            if line:
                self._waiting.move_to_end(client)
            else:
                del self._waiting[client]
            if not waiter.turn.done():  # else given up a moment ago
                waiter.turn.set_result(None)
                return
        self._free += 1

    def _forget(self, client: str, waiter: _Waiter) -> None:
        line = self._waiting[client]
        line.remove(waiter)
        self._leave(waiter)
        if not line:
            del self._waiting[client]

    def _leave(self, waiter: _Waiter) -> None:
        self._requests[waiter.request] -= 1
        if not self._requests[waiter.request]:
            del self._requests[waiter.request]
