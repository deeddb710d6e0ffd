"""The chunk that a plan chooses for its prompts, on random clusters."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnet_core.chunks import MOST_CHUNK_TOKENS, pace_of, widen
from dnet_core.errors import InfeasiblePlan
from dnet_core.solve import cost
from dnet_core.solve.plan import plan_from_edit, solve
from dnet_core.solve.problem import build
from dnet_core.types.ring import Assignment, LayerWindow, RingPlan
from tests.solver_requests import cluster_request


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 10_000), chunk=st.sampled_from([16, 32, 64]), prompt=st.integers(1, 4000))
def test_a_chosen_chunk(seed: int, chunk: int, prompt: int) -> None:
    """It fits the budgets, it is worth it, the next one would not be, and only plans that stream have one."""
    request = cluster_request(seed)
    request = replace(request, chunk_tokens=chunk, prompt_tokens=min(prompt, request.context_tokens))
    try:
        plain = solve(request)
    except InfeasiblePlan:
        return
    found = widen(request, plain)
    chosen = found.prediction.chunk_tokens
    assert chosen % chunk == 0
    assert (chosen // chunk).bit_count() == 1
    assert cost.check(found.plan, build(replace(request, chunk_tokens=chosen))) == {}
    windows = {a.peer: a.windows for a in plain.plan.assignments}
    assert {a.peer: a.windows for a in found.plan.assignments} == windows
    if not plain.prediction.streamed_bytes_per_token:
        assert found is plain
        return
    if chosen > chunk:
        assert found.prediction.request_s <= 0.99 * plain.prediction.request_s
        assert chosen < 2 * max(request.prompt_tokens, chunk)
    if found.prediction.streamed_bytes_per_token and chosen < min(request.prompt_tokens, MOST_CHUNK_TOKENS):
        try:
            wider = plan_from_edit(replace(request, chunk_tokens=2 * chosen, pins=()), windows)
        except InfeasiblePlan:
            return
        assert wider.prediction.request_s > 0.99 * found.prediction.request_s


def test_streaming_plans_do_get_larger_chunks() -> None:
    grown = 0
    for seed in range(60):
        request = replace(cluster_request(seed), chunk_tokens=32)
        try:
            plain = solve(request)
        except InfeasiblePlan:
            continue
        found = widen(request, plain)
        if found.prediction.chunk_tokens > 32:
            assert found.prediction.ttft_s < plain.prediction.ttft_s
            grown += 1
    assert grown >= 5


@pytest.mark.parametrize(
    ("rounds", "streamed", "in_flight"), [(1, (), 4), (2, (), 4), (1, (1,), 4), (2, (1,), 1)]
)
def test_chunks_in_flight(rounds: int, streamed: tuple[int, ...], in_flight: int) -> None:
    windows = [LayerWindow(i, i + 1) for i in range(2 * rounds)]
    plan = RingPlan(
        "m",
        2 * rounds,
        rounds,
        100,
        16,
        (
            Assignment("a", tuple(windows[::2]), (), 0),
            Assignment("b", tuple(windows[1::2]), streamed, len(streamed)),
        ),
    )
    assert pace_of(plan, 64).in_flight == in_flight
    assert pace_of(plan, 64).chunk_tokens == 64
