"""Plans as the simulator wants them: facts of the problem, window by window."""

from __future__ import annotations

from dnet_core.demo.simulator import Layer, SimulatedRing, Visit
from dnet_core.solve.problem import Floats, Problem
from dnet_core.types.ring import RingPlan


def decode_ring(plan: RingPlan, problem: Problem) -> SimulatedRing:
    """The ring of one token at a time."""
    return _ring(plan, problem, problem.compute_s, problem.hop_s)


def prompt_ring(plan: RingPlan, problem: Problem) -> SimulatedRing:
    """The ring of prompt chunks, all as long as the last one."""
    return _ring(plan, problem, problem.last_chunk_s, problem.last_chunk_hop_s)


def _ring(plan: RingPlan, problem: Problem, compute_s: Floats, hop_s: Floats) -> SimulatedRing:
    peers = [a.peer for a in plan.assignments]
    streamed = {a.peer: set(a.streamed) for a in plan.assignments}
    visits: list[Visit] = []
    before: int | None = None
    for window, peer in plan.path:
        d = problem.peers.index(peer)
        layers = tuple(
            Layer(
                float(compute_s[d, layer]),
                float(problem.read_s[d, layer]) if layer in streamed[peer] else None,
            )
            for layer in window.layers
        )
        hop = 0.0 if before is None else float(hop_s[before, d])
        visits.append(Visit(peers.index(peer), layers, hop))
        before = d
    head, tail = problem.peers.index(plan.head), problem.peers.index(plan.tail)
    return SimulatedRing(
        visits=tuple(visits),
        head_s=float(problem.head_s[tail]),
        back_s=float(problem.token_hop_s[tail, head]),
        num_buffers=tuple(a.num_buffers for a in plan.assignments),
    )
