"""The search: bounds say where to look, the dynamic program looks, the MILP decides.

    subsets x rounds --time bound--> rings --time and price bounds--> screened --> programs, best bound first

A ring whose bound is no better than the best plan is never looked at again, so with up to `PROVED_DEVICES`
devices the answer is the optimum; with more, the number of programs is limited and the answer is the best
that was found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dnet_core.solve import bounds, cost, halda, layout, screen
from dnet_core.solve.problem import Floats, Ints, Problem
from dnet_core.solve.ring_order import Rings
from dnet_core.types.plan import Prediction
from dnet_core.types.ring import RingPlan

NUM_SCREENED = 12
"""Rings that the dynamic program looks at, twice: the most promising first."""

NUM_GLANCED = 3

MAX_PROGRAMS = 4
"""Programs that HiGHS solves in a search over more than `PROVED_DEVICES` devices."""

PROVED_DEVICES = 3
"""Up to so many devices every ring that could be better is solved to the end."""

SAME = 1e-9
"""Two scores this close (relative) are one: then the plan found first stays."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan with its exact prediction."""

    score: float
    order: tuple[int, ...]
    plan: RingPlan
    prediction: Prediction

    @classmethod
    def of(cls, problem: Problem, order: tuple[int, ...], plan: RingPlan) -> Candidate:
        """Predict and score `plan`, whose devices in ring order are `order`."""
        prediction = cost.predict(plan, problem)
        value = cost.score(problem, prediction.tpot_s, prediction.ttft_s, prediction.slowest_stage_s)
        return cls(value, order, plan, prediction)


class _Search:
    """The state of one search: the best so far and the tables made until now. Owned by `search`."""

    def __init__(self, problem: Problem, rings: Rings) -> None:
        self._problem, self._rings = problem, rings
        self._tables: dict[tuple[int, int, bool, bool], cost.Patterns] = {}
        self.best: Candidate | None = None

    @property
    def limit(self) -> float:
        """A plan must score less than this to be better."""
        return np.inf if self.best is None else self.best.score * (1 - SAME)

    def table(self, d: int, rounds: int, head: bool, tail: bool) -> cost.Patterns:
        key = d, rounds, head, tail
        if key not in self._tables:
            self._tables[key] = cost.patterns(self._problem, d, rounds, head, tail)
        return self._tables[key]

    def ring(self, ring: int, rounds: int) -> halda.Ring:
        """The program's view of one ring: its devices' patterns in their roles, and its hops."""
        order, one = self._rings.order(ring), self._rings.take(np.array([ring]))
        return halda.Ring(
            tuple(self.table(d, rounds, d == order[0], d == order[-1]) for d in order),
            float(one.hop_s(rounds)[0]),
            float(one.prompt_hop_s(rounds)[0]),
        )

    def offer(self, ring: int, rounds: int, shares: tuple[halda.Share, ...]) -> None:
        """Make a plan of `shares` and keep it if it is the best so far."""
        order = self._rings.order(ring)
        found = _settled(self._problem, order, rounds, shares)
        if found is not None and found.score < self.limit:
            self.best = found


def search(problem: Problem, rings: Rings) -> Candidate | None:
    """The best plan on `rings` over all numbers of rounds; None if none fits."""
    state = _Search(problem, rings)
    coarse = _subset_rows(problem, rings)
    first = _sharpen(state, problem, rings, _rows(problem, rings, coarse, np.inf, NUM_SCREENED))
    _screen(state, problem, first[:NUM_SCREENED])
    rows = _sharpen(state, problem, rings, _rows(problem, rings, coarse, state.limit, len(coarse[0])))
    _screen(state, problem, rows[:NUM_SCREENED])
    most = MAX_PROGRAMS if problem.num_devices > PROVED_DEVICES else len(rows)
    for index, k, bound, least_s in rows[:most]:
        if bound >= state.limit:
            break
        shares = halda.best_shares(problem, state.ring(index, k), state.limit, least_s)
        if shares is not None:
            state.offer(index, k, shares)
    return state.best


def glance(problem: Problem, rings: Rings) -> Candidate | None:
    """A good plan on `rings` in a few milliseconds: the most promising are screened, nothing is proved."""
    state = _Search(problem, rings)
    rows = _rows(problem, rings, _subset_rows(problem, rings), np.inf, NUM_GLANCED)
    _screen(state, problem, _sharpen(state, problem, rings, rows)[:NUM_GLANCED])
    return state.best


def possible(problem: Problem, rings: Rings) -> bool:
    """Whether any of `rings` has room for all layers (for layers alike; else nearly so)."""
    if not len(rings):
        return False
    _, score = bounds.time_bounds(problem, rings, np.ones(len(rings), dtype=np.int64))
    return bool(np.isfinite(score).any())


Row = tuple[int, int, float, float]
"""A ring (index), a number of rounds, a bound of its score, a bound of its TPOT or slowest stage."""


def _subset_rows(problem: Problem, rings: Rings) -> tuple[Ints, Ints, Floats]:
    """For each subset of devices (its first ring) and number of rounds a bound over all of its rings."""
    if not len(rings):
        none = np.zeros(0, dtype=np.int64)
        return none, none, np.zeros(0)
    subsets, first, inverse = np.unique(rings.subsets, return_index=True, return_inverse=True)

    def least(values: Floats) -> Floats:
        result = np.full(len(subsets), np.inf)
        np.minimum.at(result, inverse, values)
        return result

    loose = replace(
        rings.take(first),
        forward_s=least(rings.forward_s),
        closing_s=least(rings.closing_s),
        token_s=least(rings.token_s),
        chunk_forward_s=least(rings.chunk_forward_s),
        chunk_closing_s=least(rings.chunk_closing_s),
    )
    free = replace(
        problem, embedding_bytes=0, head_bytes=0, head_s=np.full_like(problem.head_s, problem.head_s.min())
    )
    which, rounds = _pairs(problem, loose)
    _, bound = bounds.time_bounds(free, loose.take(which), rounds)
    return first[which], rounds, bound


def _pairs(problem: Problem, rings: Rings) -> tuple[Ints, Ints]:
    """All (ring, rounds) that can be: a layer per device and round, several rounds for several devices."""
    rounds = np.arange(1, problem.request.max_rounds + 1)
    sizes = rings.sizes[:, None]
    usable = (sizes * rounds <= problem.num_layers) & ((rounds == 1) | (sizes > 1))
    usable &= (rounds == 1) | np.isfinite(rings.closing_s)[:, None]
    which, column = np.nonzero(usable)
    return which, rounds[column]


def _rows(
    problem: Problem, rings: Rings, coarse: tuple[Ints, Ints, Floats], limit: float, most: int
) -> tuple[Ints, Ints, Floats, Floats]:
    """The rings of the `most` best subset rows below `limit`: index, rounds, TPOT bound, score bound."""
    ring, rounds, bound = coarse
    alive = np.nonzero(np.isfinite(bound) & (bound < limit))[0]
    alive = alive[np.argsort(bound[alive], kind="stable")][:most]
    subsets = rings.subsets if len(alive) else np.zeros(0)
    which, column = np.nonzero(subsets[:, None] == subsets[ring[alive]][None, :])
    k = rounds[alive][column]
    kept = (k == 1) | np.isfinite(rings.closing_s[which])
    which, k = which[kept], k[kept]
    seconds, score = bounds.time_bounds(problem, rings.take(which), k)
    return which, k, seconds, score


def _sharpen(
    state: _Search, problem: Problem, rings: Rings, rows: tuple[Ints, Ints, Floats, Floats]
) -> list[Row]:
    """Those of `rows` that can beat the best, by the price bound too; the most promising first."""
    which, rounds, seconds, score = rows
    score = score.copy()
    for k in np.unique(rounds):
        here = np.nonzero((rounds == k) & (score < state.limit))[0]
        if len(here):
            price = bounds.price_bounds(problem, rings.take(which[here]), int(k), state.table)
            score[here] = np.maximum(score[here], price)
    alive = np.nonzero(score < state.limit)[0]
    alive = alive[np.lexsort((which[alive], rounds[alive], score[alive]))]
    return [(int(which[i]), int(rounds[i]), float(score[i]), float(seconds[i])) for i in alive]


def _screen(state: _Search, problem: Problem, rows: list[Row]) -> None:
    for index, k, bound, least_s in rows:
        if bound >= state.limit:
            break
        found = screen.quick_shares(problem, state.ring(index, k), least_s)
        if found is not None:
            state.offer(index, k, found[1])


def _settled(
    problem: Problem, order: tuple[int, ...], rounds: int, shares: tuple[halda.Share, ...]
) -> Candidate | None:
    """The plan of `shares`, on real layers; None when it does not fit them."""
    own = layout.windows([share.layers for share in shares], rounds)
    if problem.uniform:
        plan = layout.ring_plan(
            problem,
            [
                layout.assign(problem.peers[d], mine, share.streamed, share.buffers)
                for d, mine, share in zip(order, own, shares, strict=True)
            ],
        )
        return Candidate.of(problem, order, plan)
    settled = layout.settle_ring(problem, order, own)
    return None if settled is None else Candidate.of(problem, order, settled)
