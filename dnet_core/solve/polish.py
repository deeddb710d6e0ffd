"""Layers that differ: move boundaries until no single move makes the plan better, on exact numbers.

The search works on the mean layer; what it finds is here settled on the real ones.
"""

from __future__ import annotations

from dnet_core.solve import layout
from dnet_core.solve.problem import Problem
from dnet_core.solve.search import Candidate

MAX_MOVES = 40
"""Each move makes the plan better; more than a few are rare."""


def polish(problem: Problem, best: Candidate) -> Candidate:
    """The best plan that single moves reach from `best`: a layer from one device to another."""
    counts = [len(a.layers) for a in best.plan.assignments]
    rounds = best.plan.rounds
    for _ in range(MAX_MOVES):
        better = best
        for giver in range(len(counts)):
            for taker in range(len(counts)):
                if giver == taker or counts[giver] <= rounds:
                    continue
                tried = list(counts)
                tried[giver] -= 1
                tried[taker] += 1
                plan = layout.settle_ring(problem, best.order, layout.windows(tried, rounds))
                if plan is None:
                    continue
                found = Candidate.of(problem, best.order, plan)
                if found.score < better.score * (1 - 1e-9):
                    better = found
        if better is best:
            break
        best, counts = better, [len(a.layers) for a in better.plan.assignments]
    return best
