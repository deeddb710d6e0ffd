"""Layers that differ: what the search found on mean layers is settled on the real ones.

With one round, windows are a path through the layer boundaries and the cheapest path is found exactly (as
far as the cost is a sum over devices); with more rounds single layers are moved between neighbours while
that helps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from dnet_core.solve import cost, layout
from dnet_core.solve.problem import Problem
from dnet_core.solve.ring_order import Rings
from dnet_core.solve.search import Candidate
from dnet_core.types.ring import Assignment, LayerWindow

FEW_RINGS = 16
"""So many rings are all tried when there are no more; of more, the best one's."""

FEW_LAYERS = 16
"""Up to so many layers boundaries may lie anywhere; of more, within `REACH` of where the search put them."""

REACH = 4
MAX_MOVES = 6
"""Moves of the hill climb with several rounds."""

Priced = tuple[float, Assignment] | None


def polish(problem: Problem, rings: Rings, found: list[Candidate]) -> Candidate | None:
    """The best of `found` after moving boundaries; if it is empty, a plan on any of a few rings, or None."""
    memo: dict[tuple[int, LayerWindow, bool, bool], Priced] = {}
    best = min(found, key=lambda candidate: candidate.score, default=None)
    orders = [] if best is None else [best.order]
    if len(rings) <= FEW_RINGS or best is None:
        orders += [rings.order(i) for i in reversed(range(len(rings)))][:FEW_RINGS]
    polished = [_cheapest_path(problem, order, _near(problem, order, best), memo) for order in orders]
    polished += [_climb(problem, candidate) for candidate in found]
    return min((c for c in polished if c is not None), key=lambda c: c.score, default=None)


def _near(problem: Problem, order: tuple[int, ...], best: Candidate | None) -> list[range]:
    """For each device but the last, where its window may stop."""
    count = problem.num_layers
    if best is not None and best.order == order:
        weights = [len(a.layers) for a in best.plan.assignments]
    else:
        weights = [int(problem.budget_bytes[d]) for d in order]
    reach = count if count <= FEW_LAYERS else REACH
    middles = [round(count * part / sum(weights)) for part in itertools.accumulate(weights)][:-1]
    return [
        range(max(i + 1, middle - reach), min(count - len(order) + i + 2, middle + reach + 1))
        for i, middle in enumerate(middles)
    ]


def _cheapest_path(
    problem: Problem,
    order: tuple[int, ...],
    stops: Sequence[range],
    memo: dict[tuple[int, LayerWindow, bool, bool], Priced],
) -> Candidate | None:
    """The windows of one round with the least sum of token and prompt times."""
    reached: dict[int, tuple[float, tuple[Assignment, ...]]] = {0: (0.0, ())}
    for place, d in enumerate(order):
        head, tail = place == 0, place == len(order) - 1
        after: dict[int, tuple[float, tuple[Assignment, ...]]] = {}
        for start, (spent, before) in reached.items():
            for stop in [problem.num_layers] if tail else stops[place]:
                if stop <= start:
                    continue
                key = d, LayerWindow(start, stop), head, tail
                if key not in memo:
                    memo[key] = _price(problem, *key)
                priced = memo[key]
                if priced is not None and (stop not in after or spent + priced[0] < after[stop][0]):
                    after[stop] = spent + priced[0], (*before, priced[1])
        reached = after
    if problem.num_layers not in reached:
        return None
    assignments = reached[problem.num_layers][1]
    return Candidate.of(problem, order, layout.ring_plan(problem, assignments))


def _price(problem: Problem, d: int, window: LayerWindow, head: bool, tail: bool) -> Priced:
    settled = layout.settle(problem, d, (window,), head, tail)
    if settled is None:
        return None
    price = cost.device_cost(problem, settled, tail)
    if problem.throughput:
        return price.busy_s, settled
    return problem.answer_tokens * max(price.turns_s, price.disk_s) + price.last_stage_s, settled


def _climb(problem: Problem, best: Candidate) -> Candidate:
    """Move single layers between neighbours in the ring while the plan gets better."""
    rounds = best.plan.rounds
    for _ in range(MAX_MOVES):
        counts = [len(a.layers) for a in best.plan.assignments]
        better = best
        for left in range(len(counts) - 1):
            for giver, taker in ((left, left + 1), (left + 1, left)):
                if counts[giver] <= rounds:
                    continue
                tried = [n - (i == giver) + (i == taker) for i, n in enumerate(counts)]
                plan = layout.settle_ring(problem, best.order, layout.windows(tried, rounds))
                if plan is not None:
                    found = Candidate.of(problem, best.order, plan)
                    better = found if found.score < better.score * (1 - 1e-9) else better
        if better is best:
            break
        best = better
    return best
