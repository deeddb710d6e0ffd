"""More memory, a faster disk, a faster link or one more device never makes the plan worse."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnet_core.errors import InfeasiblePlan
from dnet_core.solve.plan import solve
from dnet_core.solve.problem import build
from dnet_core.types.plan import SolveRequest
from tests.clusters import device, link
from tests.solver_requests import score_of, small_request

LESS = 1e-6

Improve = Callable[[SolveRequest, random.Random], SolveRequest]


def best(request: SolveRequest) -> float:
    try:
        solution = solve(request)
    except InfeasiblePlan:
        return math.inf
    return score_of(build(request), solution)


def more_memory(request: SolveRequest, rng: random.Random) -> SolveRequest:
    i = rng.randrange(len(request.devices))
    richer = replace(
        request.devices[i],
        memory_budget_bytes=int(request.devices[i].memory_budget_bytes * rng.uniform(1.01, 2)),
    )
    return replace(request, devices=(*request.devices[:i], richer, *request.devices[i + 1 :]))


def faster_disk(request: SolveRequest, rng: random.Random) -> SolveRequest:
    i = rng.randrange(len(request.devices))
    speed = request.devices[i].disk_read_bytes_per_s * rng.uniform(1.01, 3)
    richer = replace(request.devices[i], disk_read_bytes_per_s=speed)
    return replace(request, devices=(*request.devices[:i], richer, *request.devices[i + 1 :]))


def faster_link(request: SolveRequest, rng: random.Random) -> SolveRequest:
    if not request.links:
        return request
    i = rng.randrange(len(request.links))
    old = request.links[i]
    quicker = replace(old, latency_s=old.latency_s / 3, bytes_per_s=old.bytes_per_s * 2)
    return replace(request, links=(*request.links[:i], quicker, *request.links[i + 1 :]))


def one_more_device(request: SolveRequest, rng: random.Random) -> SolveRequest:
    new = device("new", rng.randrange(200 << 20, 2 << 30), memory_gb_per_s=rng.choice([68.0, 800.0]))
    links = tuple(
        link(a, b) for old in request.devices for a, b in ((old.peer, new.peer), (new.peer, old.peer))
    )
    return replace(request, devices=(*request.devices, new), links=(*request.links, *links))


@pytest.mark.parametrize("improve", [more_memory, faster_disk, faster_link, one_more_device])
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.3, 0.8, 1.2]))
def test_better_hardware_is_never_worse(improve: Improve, seed: int, share: float) -> None:
    request = small_request(seed, share, most_devices=2 if improve is one_more_device else 3)
    before = best(request)
    after = best(improve(request, random.Random(seed)))
    assert after <= before * (1 + LESS) or math.isinf(before)
