"""What a simulated cluster has loaded, and what becomes of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from dnet_core.demo.worlds import Placed
from dnet_core.errors import DnetError
from dnet_core.types.generation import SamplingParams
from dnet_core.types.ring import RingPlan


@dataclass(frozen=True, slots=True)
class DemoModel:
    """What is "loaded"."""

    model: str
    plan: RingPlan
    context_tokens: int
    loaded_at_unix_s: int
    thinking_switches: tuple[str, ...] = ()
    recommended: SamplingParams = field(default_factory=SamplingParams)


class DemoRing:
    """A plan that serves until it ends, for the reason `end`. `successor` is what follows, or why nothing."""

    def __init__(self, placed: Placed) -> None:
        self.placed = placed
        self.end: DnetError | None = None
        self.successor: asyncio.Future[DemoRing] = asyncio.get_running_loop().create_future()

    @property
    def peers(self) -> tuple[str, ...]:
        """The devices that take part, in ring order."""
        return tuple(assignment.peer for assignment in self.placed.plan.assignments)

    def give_up(self, why: DnetError) -> None:
        """Nothing follows: answers are told `why`."""
        self.end = self.end or why
        if not self.successor.done():
            self.successor.set_exception(why)
            self.successor.exception()  # it need not be anybody's concern
