"""TPOT of plans that are not of the solver's family: the ring's own recurrence, token after token.

A plan made by hand may stream more in one round than in another, or all at one end of a window. Then the
disks of several devices wait for one another in ways that no short formula says.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from dnet_core.solve.problem import Problem
from dnet_core.types.ring import RingPlan

TOKENS = 32
"""The second half of them is taken as the steady state."""


@dataclass(slots=True)
class _Disk:
    """One device's loader: when its last read ended, and when the buffers in use were freed, oldest first."""

    read_ended_s: float = 0.0
    freed_s: deque[float] = field(default_factory=deque)


def steady_tpot_s(plan: RingPlan, problem: Problem) -> float:
    """Seconds per token of one stream: compute waits for bytes, reads for buffers and for the read before."""
    disks = {a.peer: _Disk(freed_s=deque([0.0] * a.num_buffers)) for a in plan.assignments}
    streamed = {a.peer: set(a.streamed) for a in plan.assignments}
    steps = [(problem.peers.index(peer), peer, window) for window, peer in plan.path]
    tail, head = steps[-1][0], steps[0][0]
    now, sampled = 0.0, []
    for _ in range(TOKENS):
        before = head
        for d, peer, window in steps:
            now += float(problem.hop_s[before, d])
            before = d
            for layer in window.layers:
                if layer not in streamed[peer]:
                    now += float(problem.compute_s[d, layer])
                    continue
                disk = disks[peer]
                started = max(disk.read_ended_s, disk.freed_s.popleft())
                disk.read_ended_s = started + float(problem.read_s[d, layer])
                now = max(now, disk.read_ended_s) + float(problem.compute_s[d, layer])
                disk.freed_s.append(now)
        now += float(problem.head_s[tail])
        sampled.append(now)
        now += float(problem.token_hop_s[tail, head])
    half = TOKENS // 2
    return (sampled[-1] - sampled[half - 1]) / (TOKENS - half)
