"""The cost model against the event simulator, which knows none of its formulas."""

from __future__ import annotations

import pytest

from dnet_core.demo.rings import decode_ring, prompt_ring
from dnet_core.demo.simulator import Layer, SimulatedRing, Simulator, Visit, seconds_per_token
from dnet_core.solve.problem import build
from dnet_core.solve.search import Space, search
from tests.solver_requests import cluster_request

NUM_CLUSTERS = 200


def test_predictions_agree_with_the_simulator() -> None:
    """ms per token within 5 % on 200 random clusters, of which some stream and some take several rounds.

    The first token within 10 % where nothing streams: it is the sum over a pipeline that fills and empties.
    """
    seen: dict[tuple[bool, bool], int] = {}
    seed = 0
    while sum(seen.values()) < NUM_CLUSTERS:
        problem, seed = build(cluster_request(seed)), seed + 1
        found = search(Space(problem))
        if found is None:
            continue
        measured = seconds_per_token(decode_ring(found.plan, problem))
        assert found.prediction.tpot_s == pytest.approx(measured, rel=0.05), f"cluster {seed - 1}"
        streams = found.prediction.streamed_bytes_per_token > 0
        if not streams:
            ring = prompt_ring(found.plan, problem)
            first = Simulator(ring).chunk_times(problem.num_chunks)[-1] + ring.back_s
            assert found.prediction.ttft_s == pytest.approx(first, rel=0.1), f"cluster {seed - 1}"
        kind = streams, found.plan.rounds > 1
        seen[kind] = seen.get(kind, 0) + 1
    assert min(seen.get(kind, 0) for kind in ((False, False), (True, False), (True, True))) >= 10, seen


def test_simulator_by_hand() -> None:
    """One device, three layers of 1 s, the last two read in 2 s each through one buffer, no hops.

    The first token waits for the reads: [0, 1) first layer, read until 2, compute until 3, read until 5,
    compute until 6; then each token takes two reads and two computes of streamed layers, with the first
    layer hidden.
    """
    layers = (Layer(1.0, None), Layer(1.0, 2.0), Layer(1.0, 2.0))
    ring = SimulatedRing((Visit(0, layers, 0.0),), head_s=0.0, back_s=0.0, num_buffers=(1,))
    assert Simulator(ring).token_times(3) == [6.0, 12.0, 18.0]
    assert seconds_per_token(ring) == pytest.approx(6.0)


def test_simulator_counts_hops_and_head() -> None:
    visits = (Visit(0, (Layer(1.0, None),), 0.0), Visit(1, (Layer(2.0, None),), 0.25))
    ring = SimulatedRing(visits, head_s=0.5, back_s=0.125, num_buffers=(0, 0))
    assert Simulator(ring).token_times(2) == [3.75, 7.625]
    # Two chunks: the second is computed by the first device while the second device has the first chunk.
    assert Simulator(ring).chunk_times(2)[-1] == 1.0 + 0.25 + 2.0 + 2.0 + 0.5
