"""Turns: how many run, who is next, and what giving up leaves behind."""

from __future__ import annotations

import asyncio
import random

import pytest

from dnet_core.api.errors import ApiError
from dnet_core.api.turns import QueuePolicy, Turns
from dnet_core.tasks import TaskScope


class Clients:
    """Sessions that begin when their turn comes and end when the test says so."""

    def __init__(self, turns: Turns, tasks: TaskScope) -> None:
        self._turns = turns
        self._tasks = tasks
        self.running: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def arrive(self, *names: str) -> None:
        for name in names:
            self.tasks[name] = self._tasks.start(self._session(name))
        await settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await settle()

    async def _session(self, name: str) -> None:
        async with self._turns.turn(name[0], name.partition(".")[0]):
            self.running.append(name)
            self._ends[name] = asyncio.Event()
            await self._ends[name].wait()
            self.running.remove(name)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_clients_take_turns() -> None:
    turns = Turns(2, 10)
    async with TaskScope() as tasks:
        clients = Clients(turns, tasks)
        await clients.arrive("a1", "a2", "a3", "a4", "a5", "b1", "c1")
        assert clients.running == ["a1", "a2"]
        order = []
        for name in ("a1", "a2", "a3", "b1", "c1"):
            await clients.end(name)
            order.append(clients.running[-1])
        assert order == ["a3", "b1", "c1", "a4", "a5"]
        assert (turns.num_running, turns.num_waiting) == (2, 0)


async def test_first_in_first_out() -> None:
    async with TaskScope() as tasks:
        clients = Clients(Turns(1, 10, QueuePolicy.FIFO), tasks)
        await clients.arrive("a1", "a2", "a3", "b1")
        for name, following in (("a1", "a2"), ("a2", "a3"), ("a3", "b1")):
            await clients.end(name)
            assert clients.running == [following]


async def test_no_more_may_wait_than_the_bound() -> None:
    turns = Turns(1, 2)
    async with TaskScope() as tasks:
        clients = Clients(turns, tasks)
        for name in ("a1", "a2", "b1"):
            turns.check_room()
            await clients.arrive(name)
        with pytest.raises(ApiError) as caught:
            turns.check_room()
        assert (caught.value.status, caught.value.code) == (429, "queue_full")
        assert int(caught.value.headers["retry-after"]) >= 1
        await clients.end("a1")
        turns.check_room()


async def test_a_request_of_many_sessions_waits_as_one() -> None:
    turns = Turns(1, 2)
    async with TaskScope() as tasks:
        clients = Clients(turns, tasks)
        await clients.arrive("a1", *(f"a2.{place}" for place in range(100)))
        assert turns.num_waiting == 100
        turns.check_room()
        await clients.arrive("b1")
        with pytest.raises(ApiError, match="2 requests are waiting"):
            turns.check_room()
        for name, following in (("a1", "a2.0"), ("a2.0", "b1"), ("b1", "a2.1")):
            await clients.end(name)
            assert clients.running == [following]
        turns.check_room()


async def test_giving_up_at_any_moment_loses_no_slot() -> None:
    chance = random.Random(5)
    turns = Turns(3, 1000)
    async with TaskScope() as tasks:
        clients = Clients(turns, tasks)
        for number in range(200):
            await clients.arrive(f"{chance.choice('abc')}{number}")
            if clients.running and chance.random() < 0.5:
                clients._ends[clients.running[0]].set()
            if chance.random() < 0.6:
                chance.choice(list(clients.tasks.values())).cancel()
        for task in clients.tasks.values():
            task.cancel()
        await settle()
        assert (turns.num_running, turns.num_waiting) == (0, 0)
