"""The loaded ring and those that follow it, as devices leave and come back.

load -> ring -> a device leaves, or one that is back is taken in -> the next ring -> ...
                                                                 -> no ring: it fits nowhere any more
another model is loaded, or none -> no ring
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dnet_core.cluster import Cluster
from dnet_core.errors import DnetError, NotReady, PeerLost, PeerReturned
from dnet_core.events import LoadFailed, ModelUnloaded, PeerOffered, Recovered, RingLost
from dnet_core.generate.driver import Driver
from dnet_core.loading import Emit, LoadedModel, Ring, unload_shards
from dnet_core.planning import Prepared, Wishes
from dnet_core.recovery import Recovery
from dnet_core.tasks import TaskScope, to_the_end
from dnet_core.types.ring import RingPlan

log = logging.getLogger(__name__)


class Succession:
    """What is loaded on one head; nobody else changes it. Owned by the coordinator, whose tasks it uses."""

    def __init__(
        self,
        cluster: Cluster,
        tasks: TaskScope,
        emit: Emit,
        keep: Callable[[Prepared], Prepared],
        wishes: Wishes,
    ) -> None:
        """`keep` hears of every plan that is made; `wishes` are for plans that have to be made afresh."""
        self._cluster = cluster
        self._tasks = tasks
        self._emit = emit
        self._keep = keep
        self._wishes = wishes
        self._changing = asyncio.Lock()
        self._num_changes = 0  # that somebody has asked for, and that are not over
        self._ring: Ring | None = None
        self._facts: Prepared | None = None  # with which it was placed, every device then there
        self._recovery: asyncio.Task[None] | None = None
        self._lost: set[str] = set()  # by the loaded ring, and those before it since the model was loaded
        self._back: dict[str, bool] = {}  # those of them that are back, and whether that has been told
        self._holders: set[str] = set()  # devices that may hold weights

    @property
    def ring(self) -> Ring | None:
        """What is loaded. It may have ended, and wait for the one that follows."""
        return self._ring

    @property
    def is_changing(self) -> bool:
        """Whether a model is being loaded or unloaded, or layers move."""
        return self.is_being_replaced or self._changing.locked()

    @property
    def is_being_replaced(self) -> bool:
        """Whether a block of `emptied` runs, or waits to."""
        return self._num_changes > 0

    @asynccontextmanager
    async def emptied(self, why: DnetError) -> AsyncIterator[None]:
        """End what is loaded, with all that its answers are told `why`; nothing else is loaded in the block.

        When the block fails, the devices that it has loaded (see `expect`) are freed.
        """
        self._num_changes += 1
        try:
            if self._stop_recovery(why):
                await to_the_end(self._clear(why))  # whoever cancels it: no ring that has ended may stay
            async with self._changing:
                try:
                    await to_the_end(self._drop(why))
                    yield
                except BaseException:  # a failure and a cancel undo the same
                    await to_the_end(self._free())
                    raise
        finally:
            self._num_changes -= 1

    async def _clear(self, why: DnetError) -> None:
        async with self._changing:
            await self._drop(why)

    def _stop_recovery(self, why: DnetError) -> bool:
        """Let no recovery go on; one that gives up already (there is no ring) frees the shards first."""
        if self._recovery is None or self._recovery.done() or self._ring is None:
            return False
        self._ring.driver.give_up(why)
        self._recovery.cancel()
        return True

    def expect(self, plan: RingPlan) -> None:
        """From now on the devices of `plan` may hold weights."""
        self._holders.update(assignment.peer for assignment in plan.assignments)

    def serve(self, ring: Ring, facts: Prepared | None) -> None:
        """From now on `ring`, which was placed with `facts`, is what is loaded."""
        self._ring, self._facts = ring, facts
        if ring.driver.end is not None:  # it has been lost meanwhile
            self._recovery = self._tasks.start(self._recover(ring))

    def give_up(self, why: DnetError) -> None:
        """No ring follows the loaded one: answers are told `why`."""
        if self._ring is not None:
            self._ring.driver.give_up(why)

    async def _drop(self, why: DnetError) -> None:
        """End the loaded ring, if there is one, for good: its answers are told `why`."""
        ring, self._ring = self._ring, None
        self._lost.clear()
        self._back.clear()
        if ring is None:
            return
        ring.driver.give_up(why)
        await ring.held.release()
        await self._free()
        self._emit(ModelUnloaded(ring.loaded.model))

    async def _free(self) -> None:
        """Unload every device that may hold weights."""
        holders, self._holders = self._holders, set()
        await unload_shards(self._cluster, holders)

    # ---- devices leave ----

    def lose(self, driver: Driver, lost: PeerLost) -> None:
        """A shard is gone: the answers of its ring wait while the others take over its layers."""
        log.error("%s", lost)
        self._cluster.lose(lost.peer, str(lost))
        self._lost.add(lost.peer)
        if self._ring is not None:
            self._emit(RingLost(self._ring.loaded.model, lost.peer, str(lost)))
            if self._ring.driver is driver and driver.end is lost:
                self._recovery = self._tasks.start(self._recover(self._ring))

    async def _recover(self, ring: Ring) -> None:
        """Replace `ring`, which has ended, by one on the devices that are there, or drop it."""
        begun = time.monotonic()
        async with self._changing:
            if self._ring is not ring:  # another model has been loaded meanwhile
                return
            recovery = Recovery(
                self._cluster,
                self._tasks,
                ring,
                self._lost,
                self._holders,
                self._emit,
                self._keep,
                self.lose,
            )
            try:
                found = await recovery.run(self._facts, self._wishes)
            except DnetError as error:
                log.error("%s", error)  # noqa: TRY400 - what happened, not where in the code
                self._emit(LoadFailed(ring.loaded.model, str(error)))
                await to_the_end(self._drop(error))
                return
            plan, seconds = found.ring.loaded.plan, time.monotonic() - begun
            self._emit(Recovered(plan, seconds, found.solve_s, found.load_s))
            ring.driver.successor.set_result(found.ring.driver)
            self.serve(found.ring, found.facts)
        self._offer()

    # ---- and come back ----

    def left(self, name: str) -> None:
        """The device `name` is not there any more."""
        self._back.pop(name, None)

    def joined(self, name: str) -> None:
        """The device `name` is there; one that the loaded model has lost is offered."""
        if name in self._lost:
            self._back.setdefault(name, False)
            self._offer()

    @property
    def offered(self) -> tuple[str, ...]:
        """Devices that the loaded model has lost and that are back."""
        return tuple(self._back)

    def _offer(self) -> None:
        """Tell of devices that are back, of each once; while layers move nobody could be taken in."""
        if self._ring is None or self.is_changing:
            return
        for name in [name for name, is_told in self._back.items() if not is_told]:
            self._back[name] = True
            self._emit(PeerOffered(name, self._ring.loaded.model))

    async def take_in(self) -> LoadedModel:
        """Place the loaded model anew, with the devices that are `offered`; answers pause meanwhile.

        Raises NotReady when there is none, or it cannot be now; DnetErrors when the model is lost over it.
        """
        ring = self._ring
        if ring is None or self.is_changing or ring.driver.end is not None:
            raise NotReady(
                "no model is loaded" if ring is None else "layers are moving just now: wait a moment"
            )
        if not self.offered:
            raise NotReady("no device is back that the loaded model had lost")
        returned = self.offered
        self._lost.difference_update(returned)
        self._back.clear()
        ring.driver.finish(PeerReturned(returned))
        self._recovery = self._tasks.start(self._recover(ring))
        await asyncio.shield(ring.driver.successor)
        return self._ring.loaded if self._ring else ring.loaded
