"""Plans made by hand: predicted as the simulator runs them, however uneven; refused when they do not fit."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dnet_core.demo.rings import decode_ring
from dnet_core.demo.simulator import seconds_per_token
from dnet_core.solve import cost
from dnet_core.solve.layout import ring_plan
from dnet_core.solve.problem import Problem, build
from dnet_core.types.ring import Assignment, LayerWindow, RingPlan
from tests.solver_requests import cluster_request


def uneven_plan(problem: Problem, rng: random.Random) -> RingPlan:
    """Random windows over up to 4 rounds, random layers streamed through a random number of buffers."""
    rounds = rng.randint(1, 4)
    stops = sorted(rng.sample(range(1, problem.num_layers), problem.num_devices * rounds - 1))
    edges = [0, *stops, problem.num_layers]
    windows = [LayerWindow(a, b) for a, b in itertools.pairwise(edges)]
    assignments = []
    for d, peer in enumerate(problem.peers):
        own = tuple(windows[d :: problem.num_devices])
        layers = [layer for window in own for layer in window.layers]
        late = tuple(sorted(rng.sample(layers, rng.randint(0, len(layers)))))
        assignments.append(Assignment(peer, own, late, rng.randint(1, len(late)) if late else 0))
    return ring_plan(problem, assignments)


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_uneven_plans_agree_with_the_simulator(seed: int) -> None:
    problem = build(cluster_request(seed))
    assume(problem.num_devices * 4 <= problem.num_layers)
    plan = uneven_plan(problem, random.Random(seed))
    measured = seconds_per_token(decode_ring(plan, problem))
    assert cost.predict(plan, problem).tpot_s == pytest.approx(measured, rel=0.02)
