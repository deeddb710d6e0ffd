"""What the shards hold, asked of each about once a second while somebody listens, told when it has changed.

Nothing waits for these figures: they are for eyes. A shard that does not answer is silent here; whether it is
gone is for discovery and the ring to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from dnet_core.cluster import Cluster
from dnet_core.errors import DnetError
from dnet_core.events import Event, MemoryReported
from dnet_core.tasks import TaskScope
from dnet_core.types.devices import Peer

REPORT_S = 1.0


class Telemetry:
    """One task and one channel per watched peer. Owned by the coordinator, whose tasks it uses."""

    def __init__(self, cluster: Cluster, tasks: TaskScope, emit: Callable[[Event], None]) -> None:
        self._cluster = cluster
        self._tasks = tasks
        self._emit = emit
        self._listened = asyncio.Event()
        self._told: dict[str, MemoryReported] = {}
        self._watched: set[Peer] = set()

    def listen(self, is_listened: bool) -> None:
        """Say whether anybody hears what is told; who is new hears everything once."""
        self._told.clear()
        if is_listened:
            self._listened.set()
        else:
            self._listened.clear()

    def watch(self, peer: Peer) -> None:
        """Ask `peer` from now on, as long as it is there."""
        if peer not in self._watched:
            self._watched.add(peer)
            self._tasks.start(self._watch(peer))

    async def _watch(self, peer: Peer) -> None:
        try:
            async with self._cluster.client(peer.name) as shard:
                while peer in self._cluster.peers:
                    await self._listened.wait()
                    with suppress(DnetError):
                        status = await shard.describe()
                        report = MemoryReported(
                            peer.name,
                            status.active_bytes,
                            status.peak_bytes,
                            status.budget_bytes,
                            status.memory_total_bytes,
                        )
                        if self._told.get(peer.name) != report:
                            self._told[peer.name] = report
                            self._emit(report)
                    await asyncio.sleep(REPORT_S)
        finally:
            self._watched.discard(peer)
