"""The solver against exhaustive search: the same score on small random problems of every regime."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnet_core.errors import InfeasiblePlan
from dnet_core.solve import cost, exhaustive
from dnet_core.solve.plan import solve
from dnet_core.solve.problem import build
from dnet_core.types.plan import Objective, SolveRequest
from tests.clusters import MIB, layer, model, random_devices, random_links

LAYER = 200 * MIB


def small_request(seed: int, share: float, objective: Objective = Objective.LATENCY) -> SolveRequest:
    """Up to 3 devices and 10 layers; all budgets together hold about `share` of the model."""
    rng = random.Random(seed)
    count, num_layers = rng.randint(1, 3), rng.randint(4, 10)
    total = num_layers * LAYER
    fixed = 200 * MIB  # tables and workspace, roughly
    low, high = int(0.6 * share * total / count) + fixed, int(1.4 * share * total / count) + fixed
    devices = random_devices(rng, count, low, high)
    return SolveRequest(
        model([layer(LAYER)] * num_layers, table_bytes=64 * MIB),
        tuple(devices),
        random_links(rng, devices),
        context_tokens=rng.choice([1024, 8192, 32768]),
        prompt_tokens=rng.choice([200, 1000, 4000]),
        answer_tokens=rng.choice([20, 300]),
        objective=objective,
        max_rounds=4,
    )


def assert_optimal(request: SolveRequest) -> str:
    """The solver finds the oracle's score, or both find nothing. Returns the regime."""
    problem = build(request)
    best = exhaustive.best_score(problem)
    if math.isinf(best):
        with pytest.raises(InfeasiblePlan):
            solve(request)
        return "infeasible"
    solution = solve(request)
    found = solution.prediction
    assert cost.check(solution.plan, problem) == {}
    score = cost.score(problem, found.tpot_s, found.ttft_s, found.slowest_stage_s)
    assert score == pytest.approx(best, rel=1e-6)
    streaming = sum(1 for a in solution.plan.assignments if a.streamed)
    if not streaming:
        return "resident"
    return "all stream" if streaming == len(solution.plan.assignments) else "some stream"


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.8, 1.1, 1.6]))
def test_latency_equals_exhaustive(seed: int, share: float) -> None:
    assert_optimal(small_request(seed, share))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.8, 1.6]))
def test_throughput_equals_exhaustive(seed: int, share: float) -> None:
    assert_optimal(small_request(seed, share, Objective.THROUGHPUT))


def test_every_regime_is_met() -> None:
    """The random problems above are not all of one kind."""
    seen = {
        assert_optimal(small_request(seed, share))
        for seed, share in ((0, 0.01), *((seed, 0.9) for seed in range(8)))
    }
    assert seen == {"resident", "some stream", "all stream", "infeasible"}
