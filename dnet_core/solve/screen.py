"""Good shares fast: a dynamic program over layers under guessed limits, to rank rings before the MILP.

If the slowest disk may take at most `t` and the slowest prefill stage at most `q`, what is left to minimise
is a sum over devices, which is solved exactly. A few guesses of (t, q) are tried at once. The result is a
lawful plan, not a proof: the MILP improves on it or shows that it cannot be improved.
"""

from __future__ import annotations

import numpy as np

from dnet_core.solve import cost
from dnet_core.solve.halda import Ring, Share
from dnet_core.solve.problem import Floats, Problem

TIME_GUESSES = (1.001, 1.02, 1.05, 1.1, 1.2, 1.4, 2.0, np.inf)
"""Limits of the slowest disk, relative to the bound of the token's time."""

STAGE_GUESSES = (1.02, 1.2, np.inf)
"""Limits of the slowest prefill stage, relative to a perfectly balanced one."""


def quick_shares(problem: Problem, ring: Ring, least_s: float) -> tuple[float, tuple[Share, ...]] | None:
    """Score and shares in ring order, or None when nothing fits; `least_s` bounds the TPOT."""
    if any(len(table) == 0 for table in ring.tables):
        return None
    limits = _limits(problem, ring, least_s)
    best: tuple[float, tuple[Share, ...]] | None = None
    for picks in _fill(problem, ring, limits):
        value = _score(problem, ring, picks)
        if best is None or value < best[0]:
            shares = tuple(
                Share(int(t.layers[i]), int(t.streamed[i]), int(t.buffers[i]))
                for t, i in zip(ring.tables, picks, strict=True)
            )
            best = value, shares
    return best


def _limits(problem: Problem, ring: Ring, least_s: float) -> list[tuple[float, float]]:
    """Guesses of (slowest disk or stage in decode, slowest prefill stage)."""
    slow = [least_s * share for share in TIME_GUESSES]
    if problem.num_chunks == 1:
        return [(t, np.inf) for t in slow]
    per_layer = np.array([float((t.full_stage_s / t.layers).min()) for t in ring.tables])
    balanced = problem.num_layers / (1 / per_layer).sum()
    return [(t, balanced * share) for t in slow for share in STAGE_GUESSES]


def _fill(problem: Problem, ring: Ring, limits: list[tuple[float, float]]) -> list[list[int]]:
    """For each pair of limits the patterns with the least sum that make up all layers, if there are any."""
    count = problem.num_layers
    slow, stage = np.array(limits).T
    reached = np.full((len(limits), count + 1), np.inf)
    reached[:, 0] = 0.0
    steps: list[tuple[np.ndarray, np.ndarray]] = []  # per device: layers taken on the way to l, pattern of W
    for table in ring.tables:
        value, pattern = _columns(problem, table, slow, stage)
        after = np.full_like(reached, np.inf)
        taken = np.zeros(reached.shape, dtype=np.int64)
        for w in np.nonzero(np.isfinite(value).any(axis=0))[0].tolist():
            tried = reached[:, : count + 1 - w] + value[:, w : w + 1]
            better = tried < after[:, w:]
            after[:, w:][better] = tried[better]
            taken[:, w:][better] = w
        steps.append((taken, pattern))
        reached = after
    picks = []
    for a in np.nonzero(np.isfinite(reached[:, count]))[0].tolist():
        left, chosen = count, []
        for taken, pattern in reversed(steps):
            layers = int(taken[a, left])
            chosen.append(int(pattern[a, layers]))
            left -= layers
        picks.append(chosen[::-1])
    return picks


def _columns(
    problem: Problem, table: cost.Patterns, slow: Floats, stage: Floats
) -> tuple[Floats, np.ndarray]:
    """Cheapest pattern per pair of limits and number of layers: value and index [limits, layers + 1]."""
    value = problem.answer_tokens * table.turns_s + table.last_stage_s
    speed = table.busy_s if problem.throughput else table.disk_s
    allowed = (speed[None, :] <= slow[:, None]) & (table.full_stage_s[None, :] <= stage[:, None])
    best = np.full((len(slow), problem.num_layers + 1), np.inf)
    index = np.zeros(best.shape, dtype=np.int64)
    order = np.argsort(-value, kind="stable")  # the cheapest is written last and stays
    for row in range(len(slow)):
        chosen = order[allowed[row, order]]
        best[row, table.layers[chosen]] = value[chosen]
        index[row, table.layers[chosen]] = chosen
    return best, index


def _score(problem: Problem, ring: Ring, picks: list[int]) -> float:
    costs = [
        cost.DeviceCost(
            float(t.turns_s[i]),
            float(t.compute_s[i]),
            float(t.disk_s[i]),
            float(t.last_stage_s[i]),
            float(t.full_stage_s[i]),
        )
        for t, i in zip(ring.tables, picks, strict=True)
    ]
    return cost.score(problem, *cost.combine(problem, costs, ring.hop_s, ring.prompt_hop_s))
