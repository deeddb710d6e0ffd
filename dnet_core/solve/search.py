"""The search: bounds say where to look, the dynamic program looks, the MILP decides.

    subsets x rounds --time bound--> rings --time and price bounds--> screened --> programs, best bound first

A ring whose bound is no better than the best plan is never looked at again, so with up to `PROVED_DEVICES`
devices the answer is the optimum; with more, the number of programs is limited and the answer is the best
that was found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dnet_core.solve import bounds, cost, halda, layout, ring_order, screen
from dnet_core.solve.problem import Bools, Floats, Ints, Problem
from dnet_core.solve.ring_order import Rings
from dnet_core.types.plan import Prediction
from dnet_core.types.ring import RingPlan

NUM_SCREENED = 8
"""Rings that the dynamic program looks at, twice: the most promising first."""

NUM_GLANCED = 2

MAX_PROGRAMS = 2
GAP = 0.005
"""Programs that HiGHS solves for more than `PROVED_DEVICES` devices, and the gap that ends each."""

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


class Space:
    """What is searched: the rings of a problem, with what several searches share, made when first asked for.

    Owned by one call of `solve`. `rings` None: all that are worth a look.
    """

    def __init__(self, problem: Problem, rings: Rings | None = None) -> None:
        self.problem = problem
        self.rings = ring_order.rings(problem) if rings is None else rings
        self._tables: dict[tuple[int, int, bool, bool], cost.Patterns] = {}

    def table(self, d: int, rounds: int, head: bool, tail: bool) -> cost.Patterns:
        """The patterns of device `d` in one role."""
        key = d, rounds, head, tail
        if key not in self._tables:
            self._tables[key] = cost.patterns(self.problem, *key)
        return self._tables[key]

    @cached_property
    def subsets(self) -> Ints:
        """Of each ring its devices, as a number."""
        return self.rings.subsets

    @cached_property
    def coarse(self) -> tuple[Ints, Ints, Floats]:
        """For each subset of devices (its first ring) and number of rounds a bound over all of its rings."""
        return _subset_rows(self.problem, self.rings)


class _Search:
    """The state of one search: the best so far. Owned by `candidates` or `glance`."""

    def __init__(self, space: Space) -> None:
        self.space, self._problem, self._rings = space, space.problem, space.rings
        self.best: Candidate | None = None
        self.by_rounds: dict[int, Candidate] = {}

    @property
    def limit(self) -> float:
        """A plan must score less than this to be better."""
        return np.inf if self.best is None else self.best.score * (1 - SAME)

    def ring(self, ring: int, rounds: int) -> halda.Ring:
        """The program's view of one ring: its devices' patterns in their roles, and its hops."""
        order, one = self._rings.order(ring), self._rings.take(np.array([ring]))
        return halda.Ring(
            tuple(self.space.table(d, rounds, d == order[0], d == order[-1]) for d in order),
            float(one.hop_s(rounds)[0]),
            float(one.prompt_hop_s(rounds)[0]),
        )

    def offer(self, ring: int, rounds: int, shares: tuple[cost.Share, ...]) -> None:
        """Make a plan of `shares` and keep it if it is the best so far."""
        if rounds > 1 and not any(share.streamed for share in shares):
            rounds = 1  # several rounds without streaming only cost hops
        order = self._rings.order(ring)
        found = _settled(self._problem, order, rounds, shares)
        if found is None:
            return
        if found.score < self.limit:
            self.best = found
        if rounds not in self.by_rounds or found.score < self.by_rounds[rounds].score * (1 - SAME):
            self.by_rounds[rounds] = found


def search(space: Space) -> Candidate | None:
    """The best plan over all rings and numbers of rounds; None if none fits."""
    return min(candidates(space), key=lambda found: found.score, default=None)


def candidates(space: Space) -> list[Candidate]:
    """The best plan found for each number of rounds that was looked at; empty if none fits."""
    state, problem = _Search(space), space.problem
    first = _sharpen(state, _rows(space, space.coarse, np.inf, NUM_SCREENED))
    _screen(state, first[:NUM_SCREENED])
    rows = _sharpen(state, _rows(space, space.coarse, state.limit, len(space.coarse[0])))
    done = {row[:2] for row in first[:NUM_SCREENED]}
    _screen(state, [row for row in rows[:NUM_SCREENED] if row[:2] not in done])
    proved = problem.num_devices <= PROVED_DEVICES
    for index, k, bound, least_s in rows if proved else rows[:MAX_PROGRAMS]:
        if bound >= state.limit:
            break
        shares = halda.best_shares(
            problem, state.ring(index, k), state.limit, least_s, 0.0 if proved else GAP
        )
        if shares is not None:
            state.offer(index, k, shares)
    return list(state.by_rounds.values())


def glance(space: Space, among: Bools) -> Candidate | None:
    """A good plan on some subsets of the devices in a few milliseconds: nothing is proved.

    `among` [rings] is the same for all rings of a subset. The most promising of them are screened.
    """
    state = _Search(space)
    ring, rounds, bound = space.coarse
    chosen = among[ring]
    rows = _rows(space, (ring[chosen], rounds[chosen], bound[chosen]), np.inf, NUM_GLANCED)
    _screen(state, _sharpen(state, rows)[:NUM_GLANCED])
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
    rounds = np.arange(1, min(problem.request.max_rounds, problem.num_layers) + 1)
    sizes = rings.sizes[:, None]
    usable = (sizes * rounds <= problem.num_layers) & ((rounds == 1) | (sizes > 1))
    usable &= (rounds == 1) | np.isfinite(rings.closing_s)[:, None]
    which, column = np.nonzero(usable)
    return which, rounds[column]


def _rows(
    space: Space, coarse: tuple[Ints, Ints, Floats], limit: float, most: int
) -> tuple[Ints, Ints, Floats, Floats]:
    """The rings of the `most` best subset rows below `limit`: index, rounds, TPOT bound, score bound."""
    ring, rounds, bound = coarse
    alive = np.nonzero(np.isfinite(bound) & (bound < limit))[0]
    alive = alive[np.argsort(bound[alive], kind="stable")][:most]
    which, column = np.nonzero(space.subsets[:, None] == space.subsets[ring[alive]][None, :])
    k = rounds[alive][column]
    kept = (k == 1) | np.isfinite(space.rings.closing_s[which])
    which, k = which[kept], k[kept]
    seconds, score = bounds.time_bounds(space.problem, space.rings.take(which), k)
    return which, k, seconds, score


def _sharpen(state: _Search, rows: tuple[Ints, Ints, Floats, Floats]) -> list[Row]:
    """Those of `rows` that can beat the best, by the price bound too; the most promising first."""
    space = state.space
    which, rounds, seconds, score = rows
    score = score.copy()
    for k in np.unique(rounds):
        here = np.nonzero((rounds == k) & (score < state.limit))[0]
        if len(here):
            rings = space.rings.take(which[here])
            price = bounds.price_bounds(space.problem, rings, int(k), space.table)
            score[here] = np.maximum(score[here], price)
    alive = np.nonzero(score < state.limit)[0]
    alive = alive[np.lexsort((which[alive], rounds[alive], score[alive]))]
    return [(int(which[i]), int(rounds[i]), float(score[i]), float(seconds[i])) for i in alive]


def _screen(state: _Search, rows: list[Row]) -> None:
    problem = state.space.problem
    for index, k, bound, least_s in rows:
        # On mean layers a plan that looks worse may be better: only the score of the real one counts.
        limit = state.limit if problem.uniform else np.inf
        if bound >= limit:
            break
        found = screen.quick_shares(problem, state.ring(index, k), least_s, limit)
        if found is not None:
            state.offer(index, k, found[1])


def _settled(
    problem: Problem, order: tuple[int, ...], rounds: int, shares: tuple[cost.Share, ...]
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
