"""Which sessions a ring has room for: opened on every shard or on none, in order of arrival.

    shard A   room for 3   [s1][s2]     s3: A and B are asked, B refuses, A forgets it again; it waits until
    shard B   room for 2   [s1][s2]     one of the others has gone, and so does s4 behind it

A shard refuses with NoRoom while others use its KV memory, and with a RequestError what could never fit. Both
come before anything is computed. What a session begins with is chosen when it is let in, not when it comes:
while it waits, prefixes are replaced by others.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from dnet_core.errors import DnetError, NoRoom, PrefixGone
from dnet_core.generate.keeping import Keeper
from dnet_core.generate.prefixes import Beginning
from dnet_core.transport.control import SessionOrder
from dnet_core.transport.grpc_client import ShardClient


class Admission:
    """The sessions of one driver on its shards. Owned by the event loop."""

    def __init__(self, driver: str, shards: tuple[ShardClient, ...], keeper: Keeper) -> None:
        self._driver = driver
        self._shards = shards
        self._keeper = keeper
        self._door = asyncio.Lock()  # two that open at once could each take what the other needs
        self._inside: set[str] = set()
        self._changed = asyncio.Event()
        self._end: DnetError | None = None

    async def open(self, order: SessionOrder, tokens: tuple[int, ...]) -> Beginning | None:
        """Open a session that reads `tokens` on every shard as soon as there is room.

        Returns what it begins with of others (None: nothing); the order's own `reuse` is not looked at.
        Raises NoRoom when others than this driver's sessions use the room, and what the shards raise. Whoever
        calls it closes the session on every shard afterwards, opened or not, and then says `left`.
        """
        async with self._door:
            while True:
                self._changed.clear()
                if self._end is not None:
                    raise self._end
                self._inside.add(order.session)  # from now on it may have room, until it has `left`
                begun = self._keeper.find(tokens, order)
                try:
                    await self._open_everywhere(replace(order, reuse=begun.reuse if begun else None))
                except PrefixGone:
                    assert begun is not None, "only who asks for a prefix is told that it is gone"
                    await self.close(order.session)
                    await self._keeper.lose(begun.reuse)
                    continue  # with the next best; what is gone is not found again
                except NoRoom:
                    await self.close(order.session)
                    self._inside.discard(order.session)
                    if (
                        not self._inside and not self._changed.is_set()
                    ):  # else somebody has left since it asked
                        raise
                else:
                    return begun
                await self._changed.wait()

    async def _open_everywhere(self, order: SessionOrder) -> None:
        """Let every call end; a lasting reason is raised before one that passes."""
        calls = (shard.open_session(self._driver, order) for shard in self._shards)
        results = await asyncio.gather(*calls, return_exceptions=True)
        if self._end is not None:
            raise self._end  # the ring has closed its channels, which cancels the calls under way
        failures = [result for result in results if isinstance(result, BaseException)]
        for failure in sorted(failures, key=lambda failure: isinstance(failure, NoRoom)):
            raise failure

    async def close(self, session: str) -> None:
        """Let every shard free what it has of `session`; those that are gone have."""
        await asyncio.gather(*(s.close_session(session) for s in self._shards), return_exceptions=True)

    def left(self, session: str) -> None:
        """A session is closed on every shard: the next one may have its room."""
        self._inside.discard(session)
        self._changed.set()

    def end(self, error: DnetError) -> None:
        """Let nobody in any more; those that wait are told `error`."""
        self._end = error
        self._changed.set()
