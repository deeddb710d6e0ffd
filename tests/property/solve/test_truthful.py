"""The cost model against the event simulator, which knows none of its formulas."""

from __future__ import annotations

import pytest

from dnet_core.errors import InfeasiblePlan
from dnet_core.solve.plan import solve
from dnet_core.solve.problem import build
from tests.simulated_plans import decode_ring, prompt_ring
from tests.simulator import Layer, SimulatedRing, Simulator, Visit, seconds_per_token
from tests.solver_requests import cluster_request

NUM_CLUSTERS = 200


def test_predictions_agree_with_the_simulator() -> None:
    """ms per token within 5 % on 200 random clusters, of which some stream and some take several rounds."""
    seen: dict[tuple[bool, bool], int] = {}
    num, seed = 0, 0
    while num < NUM_CLUSTERS:
        request, seed = cluster_request(seed), seed + 1
        try:
            solution = solve(request)
        except InfeasiblePlan:
            continue
        num += 1
        measured = seconds_per_token(decode_ring(solution.plan, build(request)))
        assert solution.prediction.tpot_s == pytest.approx(measured, rel=0.05), f"cluster {seed - 1}"
        kind = solution.prediction.streamed_bytes_per_token > 0, solution.plan.rounds > 1
        seen[kind] = seen.get(kind, 0) + 1
    assert min(seen.get(kind, 0) for kind in ((False, False), (True, False), (True, True))) >= 10, seen
