"""How far a model is that is being loaded, on each device."""

from __future__ import annotations

from dataclasses import dataclass

from dnet_tui.work import Transfer


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
