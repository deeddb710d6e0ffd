"""Random requests for the property tests, by seed: what hypothesis varies is the seed and the regime."""

from __future__ import annotations

import random

from dnet_core.solve import cost
from dnet_core.solve.problem import Problem
from dnet_core.types.plan import Objective, Solution, SolveRequest
from tests.clusters import MIB, layer, model, random_devices, random_links

LAYER_BYTES = 200 * MIB


def small_request(
    seed: int, share: float, objective: Objective = Objective.LATENCY, most_devices: int = 3
) -> SolveRequest:
    """Up to `most_devices` devices and 10 layers; all budgets together hold about `share` of the model."""
    rng = random.Random(seed)
    count, num_layers = rng.randint(1, most_devices), rng.randint(4, 10)
    mean = int(share * num_layers * LAYER_BYTES / count)
    fixed = 200 * MIB  # tables and workspace, roughly
    devices = random_devices(rng, count, int(0.6 * mean) + fixed, int(1.4 * mean) + fixed)
    return SolveRequest(
        model([layer(LAYER_BYTES)] * num_layers, table_bytes=64 * MIB),
        tuple(devices),
        random_links(rng, devices),
        context_tokens=rng.choice([1024, 8192, 32768]),
        prompt_tokens=rng.choice([200, 1000, 4000]),
        answer_tokens=rng.choice([20, 300]),
        objective=objective,
        max_rounds=4,
    )


def cluster_request(seed: int) -> SolveRequest:
    """A cluster as people have them: up to 5 Macs, 16 to 80 layers, dense or MoE, fitting or far from it."""
    rng = random.Random(seed)
    count, num_layers = rng.randint(1, 5), rng.choice([16, 24, 32, 48, 80])
    layer_bytes = rng.choice([30, 100, 200, 400]) * MIB
    share = rng.choice([0.3, 0.5, 0.8, 1.0, 1.3, 2.0])
    active = rng.choice([1.0, 1.0, 1.0, 0.1])
    mean = int(layer_bytes * num_layers / count * share) + 300 * MIB
    devices = random_devices(rng, count, int(0.6 * mean), int(1.4 * mean))
    return SolveRequest(
        model([layer(layer_bytes, active_share=active)] * num_layers),
        tuple(devices),
        random_links(rng, devices),
        context_tokens=rng.choice([1024, 8192]),
    )


def score_of(problem: Problem, solution: Solution) -> float:
    """What the solver minimises, of its answer."""
    found = solution.prediction
    return cost.score(problem, found.tpot_s, found.ttft_s, found.slowest_stage_s)
