"""The solver against exhaustive search: the same score on small random problems of every regime."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnet_core.errors import InfeasiblePlan
from dnet_core.solve import cost, exhaustive
from dnet_core.solve.plan import solve
from dnet_core.solve.problem import build
from dnet_core.types.plan import Objective, SolveRequest
from tests.solver_requests import score_of, small_request

SEEDS = st.integers(0, 10**6)


def assert_optimal(request: SolveRequest) -> str:
    """The solver finds the oracle's score, or both find nothing. Returns the regime."""
    problem = build(request)
    best = exhaustive.best_score(problem)
    if math.isinf(best):
        with pytest.raises(InfeasiblePlan):
            solve(request)
        return "infeasible"
    solution = solve(request)
    assert cost.check(solution.plan, problem) == {}
    assert score_of(problem, solution) == pytest.approx(best, rel=1e-6)
    streaming = sum(1 for a in solution.plan.assignments if a.streamed)
    if not streaming:
        return "resident"
    return "all stream" if streaming == len(solution.plan.assignments) else "some stream"


@settings(max_examples=60)
@given(SEEDS, st.sampled_from([0.2, 0.5, 0.8, 1.1, 1.6]))
def test_latency_equals_exhaustive(seed: int, share: float) -> None:
    assert_optimal(small_request(seed, share))


@settings(max_examples=25)
@given(SEEDS, st.sampled_from([0.3, 0.8, 1.6]))
def test_throughput_equals_exhaustive(seed: int, share: float) -> None:
    assert_optimal(small_request(seed, share, Objective.THROUGHPUT))


def test_every_regime_is_met() -> None:
    """The random problems above are not all of one kind."""
    seen = {assert_optimal(small_request(seed, share)) for seed, share in REGIMES}
    assert seen == {"resident", "some stream", "all stream", "infeasible"}


REGIMES = [(0, 0.01), *((seed, 0.9) for seed in range(10))]
