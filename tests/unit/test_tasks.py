"""Tasks with an owner: when it ends all of them end, and what must not stay half done does not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from dnet_core.tasks import Held, TaskScope, to_the_end


async def test_what_is_started_while_the_scope_ends_is_cancelled_too() -> None:
    started: list[asyncio.Task[bool]] = []
    async with asyncio.timeout(10):
        async with TaskScope() as tasks:

            async def first() -> None:
                try:
                    await asyncio.Event().wait()
                finally:
                    started.append(tasks.start(asyncio.Event().wait()))

            tasks.start(first())
            await asyncio.sleep(0)
    assert [task.cancelled() for task in started] == [True]


async def test_what_is_held_lets_go_when_its_scope_ends_before_it_is_entered() -> None:
    entered: list[int] = []

    @asynccontextmanager
    async def manager() -> AsyncIterator[int]:
        entered.append(1)
        yield 1

    async with asyncio.timeout(10):
        async with TaskScope() as tasks:
            opening = tasks.start(Held.open(tasks, manager()))
            await asyncio.sleep(0)  # it has started the task that is to hold
    assert opening.cancelled()
    assert entered == []


@pytest.mark.parametrize("times", [0, 1, 3])
async def test_to_the_end_delays_a_cancel(times: int) -> None:
    go_on, ended = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        await go_on.wait()
        ended.set()
        return 7

    waiting = asyncio.create_task(to_the_end(work()))
    for _ in range(times):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    go_on.set()
    if times:
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        assert await waiting == 7
    assert ended.is_set()


async def test_to_the_end_raises_what_the_work_raises() -> None:
    async def work() -> None:
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        await to_the_end(work())
