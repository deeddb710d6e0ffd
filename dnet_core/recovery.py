"""A ring made anew on the devices that are there: from the plan to the streams.

a ring that has ended -> plan on the others -> load what moved -> open streams -> the next ring
                           ^                            |
                           +--- another one is lost ----+
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from dnet_core import planning
from dnet_core.chunks import serving
from dnet_core.cluster import Cluster
from dnet_core.errors import (
    DeadlineExceeded,
    DnetError,
    InfeasiblePlan,
    PeerAbsent,
    PeerLost,
    PeerReturned,
)
from dnet_core.events import DevicesMeasured, LoadStarted, RecoveryStarted, RingLost
from dnet_core.generate.driver import OnLost
from dnet_core.loading import Emit, Ring, open_ring, reload_shards, unload_shards
from dnet_core.planning import Prepared, Wishes
from dnet_core.tasks import TaskScope
from dnet_core.types.devices import Peer
from dnet_core.types.plan import SolveRequest


@dataclass(frozen=True, slots=True)
class NextRing:
    """A ring that follows another one, how it was planned, what is known, and where the time went."""

    ring: Ring
    prepared: Prepared
    facts: Prepared
    solve_s: float
    load_s: float


class Recovery:
    """Makes the successor of `ring`. Owned by the task that awaits `run`.

    `out` are the names of devices that do not take part; those that are lost on the way are added. `holders`
    are the devices that may hold weights; those that are given some are added. `keep` hears of every plan.
    """

    def __init__(
        self,
        cluster: Cluster,
        tasks: TaskScope,
        ring: Ring,
        out: set[str],
        holders: set[str],
        emit: Emit,
        keep: Callable[[Prepared], Prepared],
        on_lost: OnLost,
    ) -> None:
        self._cluster = cluster
        self._tasks = tasks
        self._old = ring
        self._out = out
        self._holders = holders
        self._emit = emit
        self._keep = keep
        self._on_lost = on_lost

    async def run(self, facts: Prepared | None, wishes: Wishes) -> NextRing:
        """Plan with `facts` (None, or not enough: the devices are unloaded and measured) and load.

        A device that is lost meanwhile is left out, too. Raises InfeasiblePlan with what is missing, PeerLost
        when nobody is left, and the errors of a load.
        """
        await self._old.held.release()  # shards let go of the sessions that its streams opened
        while True:
            begun_s = time.monotonic()
            peers = await self._peers()
            if facts is not None and not self._are_enough(facts, peers):
                facts = None
            try:
                prepared = await self._plan(peers, facts, wishes)
                facts = facts or prepared
                solved_s = time.monotonic()
                prepared = self._keep(prepared)
                ring = await self._load(prepared)
            except InfeasiblePlan as error:
                summary = f"{self._old.driver.end}; on the others {str(error).splitlines()[0]}"
                raise InfeasiblePlan(summary, error.reasons, error.missing_bytes, error.advice) from error
            except (PeerLost, PeerAbsent, DeadlineExceeded) as error:
                if error.peer not in (peer.name for peer in peers):
                    raise  # nothing would change
                self._leave_out(error.peer, error)
                continue
            return NextRing(ring, prepared, facts, solved_s - begun_s, time.monotonic() - solved_s)

    async def _peers(self) -> tuple[Peer, ...]:
        """The devices that may take part and answer: what took one away may have taken others, too.

        Raises PeerLost when there are none.
        """
        there = [p for p in self._cluster.peers if p.cannot_join is None and p.name not in self._out]
        statuses = await asyncio.gather(
            *(self._cluster.status(peer.name) for peer in there), return_exceptions=True
        )
        for peer, status in zip(there, statuses, strict=True):
            if isinstance(status, DnetError):
                self._leave_out(peer.name, status)
            elif isinstance(status, BaseException):
                raise status
        peers = tuple(peer for peer in there if peer.name not in self._out)
        if not peers:
            model = self._old.source.model
            raise PeerLost(self._about, f"no other device is there to go on with '{model}'")
        return peers

    def _are_enough(self, facts: Prepared, peers: tuple[Peer, ...]) -> bool:
        """Whether `facts` know all of `peers` that were in the ring or are to join it, and one at least."""
        names = {peer.name for peer in peers}
        ring = {assignment.peer for assignment in self._old.loaded.plan.assignments}
        why = self._old.driver.end
        joining = set(why.peers) if isinstance(why, PeerReturned) else set()
        return bool(names & facts.known) and names & (ring | joining) <= facts.known

    @property
    def _about(self) -> str:
        """Who left, or is back."""
        why = self._old.driver.end
        assert isinstance(why, PeerLost | PeerReturned), "a ring is made anew when somebody left or is back"
        return why.peer

    async def _plan(self, peers: tuple[Peer, ...], facts: Prepared | None, wishes: Wishes) -> Prepared:
        model, plan = self._old.source.model, self._old.loaded.plan
        if facts is not None:
            names = tuple(peer.name for peer in peers if peer.name in facts.known)
            self._emit(RecoveryStarted(model, names))
            return await asyncio.to_thread(planning.plan_on, facts, names, plan)
        self._emit(RecoveryStarted(model, tuple(peer.name for peer in peers)))
        await unload_shards(self._cluster, [peer.name for peer in peers])
        wishes = replace(wishes, context_tokens=plan.context_tokens, kv_bits=plan.kv_bits)
        return await planning.prepare(self._cluster, model, wishes, self._tell_facts, self._out)

    def _tell_facts(self, request: SolveRequest) -> None:
        self._emit(DevicesMeasured(request))

    async def _load(self, prepared: Prepared) -> Ring:
        plan, source = prepared.solution.plan, self._old.source
        self._emit(LoadStarted(plan))
        names = {assignment.peer for assignment in plan.assignments}
        there = {peer.name for peer in self._cluster.peers} - self._out
        spare = (self._holders & there) - names
        await unload_shards(self._cluster, spare)  # first, because it may be the memory that others need
        self._holders.difference_update(spare)
        self._holders.update(names)
        chunk_tokens = self._old.pace.chunk_tokens  # as before, for the same bits
        work = await serving(self._cluster, plan, source.profile, prepared.budgets, chunk_tokens)
        await reload_shards(self._cluster, plan, work.limits, source, self._emit)
        loaded = replace(self._old.loaded, plan=plan)
        return await open_ring(
            self._cluster, self._tasks, loaded, source, work.pace, self._emit, self._on_lost
        )

    def _leave_out(self, name: str, error: DnetError) -> None:
        """Go on without the device `name`."""
        self._out.add(name)
        self._cluster.lose(name, str(error))
        self._emit(RingLost(self._old.source.model, name, str(error)))
