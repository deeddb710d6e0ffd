"""Responses that run or have run: each writes its events into a list that any number of readers follow."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Coroutine, Iterable

from dnet_core.api.errors import ApiError
from dnet_core.api.response_writer import JsonDict, ResponseWriter
from dnet_core.api.steps import Usage
from dnet_core.tasks import TaskScope

KEPT = 256
"""Finished responses that are kept for `previous_response_id` and for GET."""


class Run:
    """One response. Its task writes, through `tell`; others follow and stop it."""

    def __init__(self, writer: ResponseWriter, messages: list[JsonDict], usage: Usage) -> None:
        """`messages` are the conversation that it answers, without instructions."""
        self.writer = writer
        self.messages = messages
        self.usage = usage
        self.failure: ApiError | None = None
        self._events: list[JsonDict] = []
        self._is_done = False
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_done(self) -> bool:
        return self._is_done

    def start(self, tasks: TaskScope, work: Coroutine[object, object, None]) -> None:
        self._task = tasks.start(work)
        self._task.add_done_callback(lambda task: self._end(cancelled=task.cancelled()))
        if self._is_done:
            self._task.cancel()

    def stop(self) -> None:
        """End it as it is; nothing happens when it has ended."""
        if self._task is not None:
            self._task.cancel()
        elif not self._is_done:
            self._end(cancelled=True)

    def tell(self, events: Iterable[JsonDict]) -> None:
        for event in events:
            self._events.append({**event, "sequence_number": len(self._events)})
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: int = -1) -> AsyncGenerator[JsonDict, None]:
        """Yield the events after number `after`, as they come, until the last one."""
        place = after + 1
        while True:
            while place < len(self._events):
                yield self._events[place]
                place += 1
            if self._is_done:
                return
            await self._news.wait()

    def _end(self, *, cancelled: bool) -> None:
        self._is_done = True
        self.tell(self.writer.cancel(self.usage) if cancelled else ())


class Runs:
    """The responses of this process by id: all that run, and the last `KEPT` others."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Run] = OrderedDict()

    def add(self, run: Run) -> None:
        finished = [name for name, old in self._runs.items() if old.is_done]
        for name in finished[: max(0, len(finished) - KEPT + 1)]:
            del self._runs[name]
        self._runs[run.writer.id] = run

    def get(self, name: str, param: str | None = None) -> Run:
        """Raises ApiError 404."""
        run = self._runs.get(name)
        if run is None:
            message = f"response '{name}' is not known: this process keeps the last {KEPT}"
            raise ApiError(404, message, param=param, code="response_not_found")
        return run

    def remove(self, run: Run) -> None:
        self._runs.pop(run.writer.id, None)
