"""Background work with an owner: one task that lives exactly as long as a block.

Like a TaskGroup, but an exception of the block itself leaves it as it is, not inside an ExceptionGroup: what
a block raises is what its caller catches by type.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self


class TaskScope(asyncio.TaskGroup):
    """A TaskGroup that cancels its tasks when its block ends and adds nothing to the block's exception."""

    def __init__(self) -> None:
        super().__init__()
        self._started: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Begin `work`; if it fails, the block is cancelled and raises the failure in an ExceptionGroup."""
        task = self.create_task(work)
        self._started.add(task)
        task.add_done_callback(self._started.discard)
        return task

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._started:
            task.cancel()
        await super().__aexit__(None, None, None)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Run `work` while the block runs; it is cancelled, and waited for, when the block ends."""
    async with TaskScope() as tasks:
        yield tasks.start(work)
