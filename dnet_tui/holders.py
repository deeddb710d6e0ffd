"""Which device has which model: what loads have told since the start, and how far a load is on each device.

A device tells of its files only when it is to load them; before that nothing is known of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dnet_core.events import Event, FetchProgressed, LoadProgressed, ModelLoaded, Recovered
from dnet_tui.work import Transfer

Holders = Mapping[str, frozenset[str]]
"""Of each model the devices that are known to have its files."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one device does for a load: it fetches files, then reads its layers; both None: it waits."""

    letter: str
    device: str
    fetch: Transfer | None
    read: Transfer | None


@dataclass(frozen=True, slots=True)
class Arrival:
    """A model that is being loaded: `transfer` counts the bytes of its step on all devices."""

    model: str
    step: str
    transfer: Transfer | None
    parts: tuple[Part, ...] = ()

    @property
    def fetching(self) -> tuple[Part, ...]:
        """The devices that still fetch, the one that will be last first."""
        parts = (part for part in self.parts if part.fetch is not None)
        return tuple(sorted(parts, key=lambda part: -part.fetch.missing if part.fetch is not None else 0))

    @property
    def moving(self) -> Transfer | None:
        """What the end is waited for with: the slowest fetch, else all that is read."""
        return self.fetching[0].fetch if self.fetching else self.transfer

    @property
    def verb(self) -> str:
        return "fetched" if self.fetching or self.step == "fetching" else "loaded"


def hold(holders: Holders, event: Event, loading: str | None) -> Holders:
    """Return `holders` after `event`; `loading` is the model that is being loaded."""
    match event:
        case FetchProgressed(model=model, peer=str(peer), done_bytes=done, total_bytes=total):
            own = holders.get(model, frozenset())
            return {**holders, model: own | {peer} if done >= total else own - {peer}}
        case LoadProgressed(peer=peer) if loading is not None:
            return {**holders, loading: holders.get(loading, frozenset()) | {peer}}
        case ModelLoaded(plan=plan) | Recovered(plan=plan):
            ring = frozenset(assignment.peer for assignment in plan.assignments)
            return {**holders, plan.model: holders.get(plan.model, frozenset()) | ring}
        case _:
            return holders
