"""Every plan is lawful: windows tile the layers, exact bytes fit, the same request gives the same plan."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dnet_core.errors import InfeasiblePlan
from dnet_core.solve import cost
from dnet_core.solve.plan import plan_from_edit, solve
from dnet_core.solve.problem import build
from dnet_core.types.plan import Solution, SolveRequest
from dnet_core.types.profiles import KVKind, LayerProfile
from tests.clusters import MIB, layer, model
from tests.solver_requests import small_request

SEEDS = st.integers(0, 10**6)
SHARES = st.sampled_from([0.2, 0.6, 1.0, 1.6])


def mixed_layers(rng: random.Random, count: int) -> list[LayerProfile]:
    """Layers of several sizes and kinds of cache: dense and MoE, full and sliding attention."""
    return [
        layer(
            rng.choice([60, 200, 210, 400]) * MIB,
            active_share=rng.choice([1.0, 0.2]),
            kind=rng.choice([KVKind.FULL, KVKind.SLIDING]),
        )
        for _ in range(count)
    ]


def mixed_request(seed: int, share: float) -> SolveRequest:
    """A small request whose layers differ."""
    request = small_request(seed, share)
    rng = random.Random(seed)
    return replace(request, model=model(mixed_layers(rng, request.model.num_layers), table_bytes=64 * MIB))


def assert_lawful(request: SolveRequest, solution: Solution) -> None:
    problem = build(request)
    # That windows tile all layers in order is what a RingPlan is; these are the bytes.
    assert cost.check(solution.plan, problem) == {}
    for device in solution.prediction.devices:
        owned = next(a for a in solution.plan.assignments if a.peer == device.peer)
        kept = sum(request.model.layers[i].weight_bytes for i in owned.resident)
        largest = max((request.model.layers[i].weight_bytes for i in owned.streamed), default=0)
        kv = sum(int(problem.kv_bytes[i]) for i in owned.layers)
        ends = (
            request.model.embedding_bytes * (device.peer == solution.plan.head)
            + problem.head_bytes * (device.peer == solution.plan.tail)
            + problem.workspace_bytes
        )
        assert device.total_bytes == kept + owned.num_buffers * largest + kv + ends
        assert device.total_bytes <= device.budget_bytes
    assert [reason.peer for reason in solution.reasons] == [d.peer for d in request.devices]
    assert {r.peer for r in solution.reasons if r.used} == {a.peer for a in solution.plan.assignments}


@settings(max_examples=30)
@given(SEEDS, SHARES, st.booleans())
def test_plans_are_lawful(seed: int, share: float, mixed: bool) -> None:
    request = mixed_request(seed, share) if mixed else small_request(seed, share)
    try:
        solution = solve(request)
    except InfeasiblePlan as error:
        assert error.reasons.keys() == {d.peer for d in request.devices}
        return
    assert_lawful(request, solution)


@settings(max_examples=15)
@given(SEEDS, SHARES)
def test_the_same_request_gives_the_same_plan(seed: int, share: float) -> None:
    request = small_request(seed, share)
    try:
        first = solve(request)
    except InfeasiblePlan as error:
        first_error = str(error)
        try:
            solve(request)
        except InfeasiblePlan as again:
            assert str(again) == first_error
        return
    assert repr(solve(request)) == repr(first)


@settings(max_examples=15)
@given(SEEDS, SHARES)
def test_a_plan_edited_into_itself_is_predicted_the_same(seed: int, share: float) -> None:
    request = small_request(seed, share)
    try:
        solution = solve(request)
    except InfeasiblePlan:
        return
    windows = {a.peer: a.windows for a in solution.plan.assignments}
    resident = {a.peer: len(a.resident) for a in solution.plan.assignments}
    edited = plan_from_edit(request, windows, resident)
    assert edited.prediction.request_s <= solution.prediction.request_s * (1 + 1e-9)
    assert edited.plan.path == solution.plan.path
