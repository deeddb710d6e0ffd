"""How often discovery asks, and how long it waits: the bounds of "noticed in seconds".

A peer that says goodbye is gone at once. One that falls silent is reported lost after at most `vanish_s`,
one that is back after at most `return_s` (plus what its machine needs to get its addresses).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between questions, and how long an answer may take."""

    probe_s: float = 1.5
    lost_after_s: float = 5.0  # silence on multicast, which Wi-Fi loses now and then: three questions
    answer_s: float = 1.5  # for one unicast `describe`
    retry_max_s: float = 4.0  # between attempts to reach a static peer that is away
    network_poll_s: float = 2.0

    @property
    def vanish_s(self) -> float:
        """Upper bound: silence and one last unicast question; `probe_s` more for a busy machine."""
        return self.lost_after_s + self.probe_s + self.answer_s

    @property
    def return_s(self) -> float:
        """Upper bound after the network is back: interfaces are noticed, then one question is answered."""
        return self.network_poll_s + max(self.probe_s, self.retry_max_s) + self.answer_s


PACE = Pace()
