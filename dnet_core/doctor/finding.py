"""What a check finds, and the rule that no check hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from dnet_core.errors import DnetError


class Level(StrEnum):
    GOOD = "good"
    WARNING = "warning"  # works, but not as well as it could
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `advice` is what to do next."""

    check: str
    level: Level
    text: str
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """`look` finds any number of things within `deadline_s`."""

    name: str
    look: Callable[[], Awaitable[list[Finding]]]
    deadline_s: float = 10.0


async def findings_of(check: Check) -> list[Finding]:
    """Run one check. What stops it is a finding too: it is late, or fails in a way it did not foresee."""
    try:
        async with asyncio.timeout(check.deadline_s):
            return await check.look()
    except TimeoutError:
        text = f"this check did not finish within {check.deadline_s:g} s"
        return [Finding(check.name, Level.BROKEN, text, "look for a disk or a network that does not answer")]
    except (DnetError, OSError) as error:
        return [Finding(check.name, Level.BROKEN, str(error))]


def in_thread(name: str, look: Callable[[], list[Finding]]) -> Check:
    """A check that blocks. One that never returns keeps its thread: see `main`."""
    return Check(name, lambda: asyncio.to_thread(look))
