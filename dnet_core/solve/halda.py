"""HALDA as a mixed integer linear program: for one ring and number of rounds, who holds and streams how much.

Columns: one binary `z` per device and pattern (`cost.patterns`), and the times `T` (TPOT), `Q` (slowest
prefill stage) and, for throughput, `V` (slowest decode stage).

    min  answer * T + sum last_stage * z + (chunks - 1) * Q + hops of the prompt      (or V, see `cost.score`)
    s.t. sum z[d] = 1                   for each d   one pattern
         sum layers * z = L
         T >= sum turns * z + hops                   one turn after the other
         T >= sum disk * z[d]           for each d   no disk is faster than itself
         Q >= sum full_stage * z[d]     for each d

First the linear relaxation: its optimum is a bound for the ring, and with its reduced costs most patterns are
proved to be no part of any plan within a few percent of it. HiGHS decides among the rest, to a gap of zero.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog, milp
from scipy.sparse import csr_array

from dnet_core.solve import cost
from dnet_core.solve.cost import Share
from dnet_core.solve.problem import Bools, Floats, Ints, Problem

OBJECTIVE_SCALE = 1e4
"""HiGHS stops at an absolute gap of 1e-6: with the relaxation's optimum scaled to this, one part in 10^10."""

MARGINS = (0.01, 0.1, 1.0, np.inf)
"""How far above the relaxation the optimum is sought (relative), until it is found there."""

MAX_COLUMNS = 150
"""Programs of this size take HiGHS some 50 ms; of three times the size, when disks are slow, seconds."""

TIE_STREAMING = 1e-9
"""Of plans equally good, the one that streams less: this share of the objective, if all is streamed."""


@dataclass(frozen=True, slots=True)
class Ring:
    """One ring for one number of rounds: a table of patterns per device, and the hops."""

    tables: tuple[cost.Patterns, ...]
    hop_s: float
    prompt_hop_s: float


@dataclass(frozen=True, slots=True)
class _Program:
    """The matrix: a column per pattern (its `owner`, `index` there and `layers`), then T, Q, V."""

    objective: Floats
    constant: float
    equal: csr_array
    equal_to: Floats
    above: csr_array  # rows that must be at least `above_to`
    above_to: Floats
    owner: Ints
    index: Ints
    layers: Ints
    least: Floats
    most: Floats

    @property
    def is_time(self) -> Bools:
        return np.arange(len(self.objective)) >= len(self.owner)


def best_shares(
    problem: Problem, ring: Ring, at_most: float, least_s: float, gap: float = 0.0
) -> tuple[Share, ...] | None:
    """The best shares in ring order, or None when none scores less than `at_most` (infinite: when none fits).

    `least_s` is a TPOT (throughput: a slowest stage) that no plan on this ring can beat. With a `gap`
    (relative) the first plan that close to the optimum is taken, and large programs are not solved at all.
    """
    if any(len(table) == 0 for table in ring.tables):
        return None
    program = _program(problem, ring, at_most, least_s)
    relaxed = linprog(  # type: ignore[call-overload]  # the stubs know no sparse matrices
        program.objective,
        A_ub=-program.above,
        b_ub=-program.above_to,
        A_eq=program.equal,
        b_eq=program.equal_to,
        bounds=np.stack([program.least, program.most], axis=1),
        method="highs",
    )
    if relaxed.x is None:
        return None
    bound = float(relaxed.fun)
    if bound + program.constant >= at_most:
        return None
    reduced = np.where(program.is_time, 0.0, relaxed.lower.marginals)
    for margin in MARGINS:
        limit = min(bound + margin * abs(bound), at_most - program.constant)
        keep = np.nonzero(reduced <= limit - bound)[0]
        if gap and len(keep) > MAX_COLUMNS:
            return None
        solved = _integral(program, keep, OBJECTIVE_SCALE / bound, gap)
        if solved is not None and float(program.objective[keep] @ solved) <= limit + gap * abs(bound):
            return _shares(ring, program, keep, solved)
        if limit < bound + margin * abs(bound):
            return None
    return None


def _integral(program: _Program, keep: Ints, scale: float, gap: float) -> Floats | None:
    """The optimum over the columns `keep`, or None when they hold no plan."""
    if not _adds_up(program, keep):
        return None
    solved: OptimizeResult = milp(
        program.objective[keep] * scale,
        integrality=np.where(program.is_time[keep], 0, 1),
        bounds=Bounds(program.least[keep], program.most[keep]),
        constraints=[
            LinearConstraint(program.equal[:, keep], program.equal_to, program.equal_to),
            LinearConstraint(program.above[:, keep], program.above_to, np.inf),
        ],
        options={"mip_rel_gap": gap},
    )
    assert solved.x is not None, f"HiGHS finds no plan where there is one: {solved.message}"
    return np.asarray(solved.x)


def _adds_up(program: _Program, keep: Ints) -> bool:
    """Whether one pattern of each device can make up all layers.

    The times have no upper bound, so this is all that feasibility takes. HiGHS must not be asked: of a small
    program without a solution its presolve makes a "solve error" and a line on stdout, in the middle of the
    screen.
    """
    usable = keep[~program.is_time[keep] & (program.most[keep] > 0)]
    sums = 1  # bit n: n layers can be made up
    for d in range(int(program.owner.max()) + 1):
        layers = set(program.layers[usable[program.owner[usable] == d]].tolist())
        sums = functools.reduce(operator.or_, (sums << n for n in layers), 0)
    return bool(sums >> int(program.equal_to[-1]) & 1)


def _shares(ring: Ring, program: _Program, keep: Ints, solved: Floats) -> tuple[Share, ...]:
    chosen = keep[(solved > 0.5) & ~program.is_time[keep]]
    owners, indices = program.owner[chosen].tolist(), program.index[chosen].tolist()
    shares = {d: ring.tables[d].share(i) for d, i in zip(owners, indices, strict=True)}
    return tuple(shares[d] for d in range(len(ring.tables)))


def _program(problem: Problem, ring: Ring, at_most: float, least_s: float) -> _Program:
    """Lay out the matrix: equalities (one pattern each, all layers), then what T, Q, V must not be below."""
    tables, count = ring.tables, len(ring.tables)
    sizes = [len(table) for table in tables]
    width = sum(sizes)
    owner = np.repeat(np.arange(count), sizes)
    columns = np.arange(width)
    turns, disk, full, busy, last = (
        np.concatenate([np.asarray(getattr(table, name)) for table in tables])
        for name in ("turns_s", "disk_s", "full_stage_s", "busy_s", "last_stage_s")
    )
    layers = np.concatenate([table.layers for table in tables]).astype(np.float64)
    streamed = np.concatenate([table.streamed for table in tables])
    ones = np.ones(width)
    equal = csr_array(
        (
            np.concatenate([ones, layers]),
            (np.concatenate([owner, np.full(width, count)]), np.concatenate([columns, columns])),
        ),
        shape=(count + 1, width + 3),
    )
    lowest = np.arange(count)
    # Rows: 0 the lap, then per device its disk, its prefill stage and its decode stage.
    rows = [np.zeros(width, dtype=np.int64), owner + 1, owner + 1 + count, owner + 1 + 2 * count]
    rows += [np.zeros(1, dtype=np.int64), lowest + 1, lowest + 1 + count, lowest + 1 + 2 * count]
    across = [columns] * 4 + [np.array([width])] + [np.full(count, width + i) for i in range(3)]
    values = [-turns, -disk, -full, -busy, np.ones(1), np.ones(count), np.ones(count), np.ones(count)]
    above = csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(across))),
        shape=(1 + 3 * count, width + 3),
    )
    above_to = np.zeros(1 + 3 * count)
    above_to[0] = ring.hop_s
    request = np.concatenate([last, [float(problem.answer_tokens), float(problem.num_chunks - 1), 0.0]])
    objective = request * (cost.THROUGHPUT_TIE if problem.throughput else 1.0)
    constant = ring.prompt_hop_s * (cost.THROUGHPUT_TIE if problem.throughput else 1.0)
    if problem.throughput:
        objective[-1] = 1.0
    least = cost.score(problem, float(turns.min()), 0.0, float(busy.min()))
    objective[:width] += least * TIE_STREAMING * streamed / problem.num_layers
    least_x = np.zeros(width + 3)
    least_x[width + (2 if problem.throughput else 0)] = least_s
    alone = np.concatenate([table.alone_score(problem, ring.hop_s) for table in tables])
    most_x = np.append(np.where(alone < at_most, 1.0, 0.0), [np.inf] * 3)
    return _Program(
        least=least_x,
        most=most_x,
        objective=objective,
        constant=constant,
        equal=equal,
        equal_to=np.append(np.ones(count), float(problem.num_layers)),
        above=above,
        above_to=above_to,
        owner=owner,
        index=np.concatenate([np.arange(size) for size in sizes]),
        layers=layers.astype(np.int64),
    )
