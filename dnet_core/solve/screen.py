"""Good shares fast: a dynamic program over layers under guessed limits, to rank rings before the MILP.

If the slowest disk may take at most `t` and the slowest prefill stage at most `q`, what is left to minimise
is a sum over devices, which is solved exactly. A few guesses of (t, q) are tried at once. The result is a
lawful plan, not a proof: the MILP improves on it or shows that it cannot be improved.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dnet_core.solve import cost
from dnet_core.solve.cost import Share
from dnet_core.solve.halda import Ring
from dnet_core.solve.problem import Bools, Floats, Ints, Problem

TIME_GUESSES = (1.001, 1.05, 1.2, 1.6, 2.5, np.inf)
"""Limits of the slowest disk, relative to the bound of the token's time."""

CLOSER_GUESSES = (0.7, 0.8, 0.87, 0.92, 0.95, 0.98, 0.999)
"""Then relative to the slowest disk of the best plan found."""

STAGE_GUESSES = (1.05, np.inf)
"""Limits of the slowest prefill stage, relative to a perfectly balanced one."""


def quick_shares(
    problem: Problem, ring: Ring, least_s: float, at_most: float
) -> tuple[float, tuple[Share, ...]] | None:
    """Score and shares in ring order, or None when nothing is found that scores less than `at_most`.

    `least_s` is a TPOT (throughput: a slowest stage) that no plan on this ring can beat.
    """
    if any(len(table) == 0 for table in ring.tables):
        return None
    best: list[int] | None = None

    def try_all(guesses: list[float]) -> None:
        nonlocal best, at_most
        for picks in _fill(problem, ring, _allowed(problem, ring, guesses, at_most)):
            value = _score(problem, ring, picks)
            if value < at_most:
                best, at_most = picks, value

    # First all in memory: where that is possible, its score rules out most patterns of the passes that
    # follow.
    try_all([0.0])
    try_all([least_s * time for time in TIME_GUESSES])
    slowest_s = 0.0 if best is None else _slowest_disk(ring, best)
    if slowest_s:
        try_all([slowest_s * time for time in CLOSER_GUESSES])
    if best is None:
        return None
    return at_most, tuple(table.share(i) for table, i in zip(ring.tables, best, strict=True))


def _slowest_disk(ring: Ring, picks: list[int]) -> float:
    return max(float(table.disk_s[i]) for table, i in zip(ring.tables, picks, strict=True))


def _allowed(problem: Problem, ring: Ring, slowest_s: list[float], at_most: float) -> list[Bools]:
    """Per device which patterns keep to each guess of (slowest disk or stage, slowest prefill stage).

    [guesses, patterns]; guesses that allow the same are one.
    """
    guesses = [(seconds, np.inf) for seconds in slowest_s]
    if problem.num_chunks > 1:
        per_layer = np.array([float((t.full_stage_s / t.layers).min()) for t in ring.tables])
        balanced = problem.num_layers / (1 / per_layer).sum()
        guesses = [(slow, balanced * share) for slow, _ in guesses for share in STAGE_GUESSES]
    slow, stage = np.array(guesses).T
    masks = []
    for table in ring.tables:
        speed = table.busy_s if problem.throughput else table.disk_s
        mask = (speed <= slow[:, None]) & (table.full_stage_s <= stage[:, None])
        masks.append(mask & (table.alone_score(problem, ring.hop_s) < at_most))
    first: dict[bytes, int] = {}
    for row, together in enumerate(np.concatenate(masks, axis=1)):
        first.setdefault(together.tobytes(), row)
    return [mask[list(first.values())] for mask in masks]


def _fill(problem: Problem, ring: Ring, allowed: list[Bools]) -> list[list[int]]:
    """For each guess the patterns with the least sum that make up all layers, if there are any."""
    count, guesses = problem.num_layers, np.arange(len(allowed[0]))
    reached = np.full((len(guesses), count + 1), np.inf)
    reached[:, 0] = 0.0
    steps: list[tuple[Ints, Ints]] = []  # per device: layers taken on the way to l, pattern of so many layers
    for table, mask in zip(ring.tables, allowed, strict=True):
        value, pattern = _columns(problem, table, mask)
        most = int(table.layers[mask.any(axis=0)].max(initial=0))
        padded = np.concatenate([np.full((len(guesses), most), np.inf), reached], axis=1)
        # [guess, l, j]: l - (most - j) layers before this device, which takes most - j
        tried = sliding_window_view(padded, most + 1, axis=1) + value[:, None, most::-1]
        chosen = tried.argmin(axis=2)
        reached = np.take_along_axis(tried, chosen[:, :, None], axis=2)[:, :, 0]
        steps.append((most - chosen, pattern))
    complete = guesses[np.isfinite(reached[:, count])]
    left = np.full(len(complete), count)
    picks: list[Ints] = []
    for taken, pattern in reversed(steps):
        layers = taken[complete, left]
        picks.append(pattern[complete, layers])
        left = left - layers
    return [[int(pick[row]) for pick in reversed(picks)] for row in range(len(complete))]


def _columns(problem: Problem, table: cost.Patterns, allowed: Bools) -> tuple[Floats, Ints]:
    """Cheapest pattern per guess and number of layers: value and index [guesses, layers + 1]."""
    value = problem.answer_tokens * table.turns_s + table.last_stage_s
    best = np.full((len(allowed), problem.num_layers + 1), np.inf)
    index = np.zeros(best.shape, dtype=np.int64)
    order = np.argsort(-value, kind="stable")  # the cheapest is written last and stays
    for row in range(len(allowed)):
        chosen = order[allowed[row, order]]
        best[row, table.layers[chosen]] = value[chosen]
        index[row, table.layers[chosen]] = chosen
    return best, index


def _score(problem: Problem, ring: Ring, picks: list[int]) -> float:
    costs = [table.cost(i) for table, i in zip(ring.tables, picks, strict=True)]
    return cost.score(problem, *cost.combine(problem, costs, ring.hop_s, ring.prompt_hop_s))
