"""How often the screen may be redrawn, so that drawing never starves the ring that shares its loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Protocol

from textual.timer import Timer

COST_SHARE = 4
"""A flush that took c seconds is followed by none before 4 c: drawing gets a quarter of the time at most."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How often things are drawn, in seconds; tests take a clock of their own and let nothing tick."""

    stream_s: float = 1 / 15
    view_s: float = 1 / 4
    panels_s: float = 1 / 2
    tick_s: float | None = 1 / 8  # None: the spinner stands still
    blink: bool = True
    sets_aside: bool = True
    """Whether what stands once the screen, a model, an answer is there is left out of garbage collections."""
    clock: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = datetime.now  # of the day, for people
    animates: bool = True
    """Whether what moves is shown on its way, and slow devices blink."""


OVER_SSH = Timing(view_s=1.0, panels_s=1.0, tick_s=1.0, blink=False, animates=False)
"""Where every cell that changes is sent over a network; the text of an answer flows as ever."""


class SetTimer(Protocol):
    def __call__(self, delay: float, callback: Callable[[], None]) -> Timer: ...


class AfterPaint(Protocol):
    def __call__(self, callback: Callable[[], None]) -> object: ...


class Pace:
    """Run `flush` when asked, but at most every `interval_s` and within its share of time; none is lost.

    The first call after a rest flushes at once; calls that come too early are answered by one flush later.
    What a flush costs is the time until it is on the screen, layout and painting included: `after_paint`
    calls back then. With `interval_s` 0 every call flushes at once. Owned by the screen's loop.
    """

    def __init__(
        self,
        flush: Callable[[], None],
        interval_s: float,
        clock: Callable[[], float],
        set_timer: SetTimer,
        after_paint: AfterPaint,
    ) -> None:
        self._flush = flush
        self._interval_s = interval_s
        self._clock = clock
        self._set_timer = set_timer
        self._after_paint = after_paint
        self._due_s = 0.0
        self._timer: Timer | None = None

    def ask(self) -> None:
        """Flush now if it is due, else once when it is."""
        if self._timer is not None:
            return
        wait_s = self._due_s - self._clock()
        if wait_s <= 0:
            self.flush_now()
        else:
            self._timer = self._set_timer(wait_s, self.flush_now)

    def flush_now(self) -> None:
        """Flush whatever is due or not, and start a new interval."""
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        started_s = self._clock()
        self._flush()
        if self._interval_s:
            self._due_s = started_s + self._interval_s
            self._after_paint(partial(self._painted, started_s))

    def _painted(self, started_s: float) -> None:
        cost_s = self._clock() - started_s
        self._due_s = max(self._due_s, started_s + COST_SHARE * cost_s)
