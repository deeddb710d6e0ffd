"""Background work with an owner: one task that lives exactly as long as a block.

Like a TaskGroup, but an exception of the block itself leaves it as it is, not inside an ExceptionGroup: what
a block raises is what its caller catches by type.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from dnet_core.errors import DnetError

log = logging.getLogger(__name__)


class TaskScope(asyncio.TaskGroup):
    """A TaskGroup that cancels its tasks when its block ends and adds nothing to the block's exception."""

    def __init__(self) -> None:
        super().__init__()
        self._started: set[asyncio.Task[Any]] = set()
        self._is_ending = False

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin `work`; if it fails, the block is cancelled and raises the failure in an ExceptionGroup.

        When the block ends already, it is cancelled like all others: tasks that end may still start some.
        """
        task = self.create_task(work)
        if self._is_ending:
            task.cancel()
        self._started.add(task)
        task.add_done_callback(self._started.discard)
        return task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_ending = True
        for task in self._started:
            task.cancel()
        await super().__aexit__(None, None, None)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Run `work` while the block runs; it is cancelled, and waited for, when the block ends."""
    async with TaskScope() as tasks:
        yield tasks.start(work)


Value = TypeVar("Value")


async def to_the_end(work: Coroutine[Any, Any, Value]) -> Value:
    """Await `work` until it has ended, also when the wait is cancelled meanwhile: then the cancel is raised.

    For what must not stay half done. It delays whoever cancels, so `work` has to end by itself.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()


class Held(Generic[Value]):
    """A context manager held open by a task of its own, so that one call may open it and another close it."""

    def __init__(self) -> None:
        self._opened: asyncio.Future[Value] = asyncio.get_running_loop().create_future()
        self._released = asyncio.Event()
        self._closed = asyncio.Event()

    @classmethod
    async def open(cls, tasks: TaskScope, manager: AbstractAsyncContextManager[Value]) -> Held[Value]:
        """Enter `manager` in a task of `tasks`; raises the DnetError that entering it raises."""
        held = cls()
        tasks.start(held._hold(manager)).add_done_callback(held._end)
        try:
            await held._opened
        except BaseException:
            await held.release()
            raise
        return held

    @property
    def value(self) -> Value:
        return self._opened.result()

    async def release(self) -> None:
        """Leave the context manager and wait until it is left. May be called more than once."""
        self._released.set()
        self._opened.cancel()
        await self._closed.wait()

    async def _hold(self, manager: AbstractAsyncContextManager[Value]) -> None:
        try:
            async with manager as value:
                if not self._opened.done():
                    self._opened.set_result(value)
                    await self._released.wait()
        except DnetError as error:
            if self._opened.done():
                log.warning("while closing: %s", error)
            else:
                self._opened.set_exception(error)

    def _end(self, _task: asyncio.Task[None]) -> None:
        """The task is over; one that was cancelled before it had begun never entered the manager."""
        self._opened.cancel()
        self._closed.set()
