"""Solve a placement, or check one made by hand: the plan, what it will do, and why."""

from __future__ import annotations

from collections.abc import Mapping

from dnet_core.errors import RequestError
from dnet_core.solve import cost, explain, layout, pins, polish
from dnet_core.solve.problem import Problem, build
from dnet_core.solve.search import Candidate, Space, candidates, glance, search
from dnet_core.types.plan import RingSize, Solution, SolveRequest
from dnet_core.types.ring import Assignment, LayerWindow, RingPlan


def solve(request: SolveRequest) -> Solution:
    """The best plan for `request`: the same request gives the same plan.

    Raises InfeasiblePlan when the model does not fit, with what is missing and what would help, and
    RequestError for a request that contradicts itself.
    """
    problem = build(request)
    space = Space(problem)
    if request.pins:
        best = pins.fill(problem)
    elif problem.uniform:
        best = search(space)
    else:
        best = polish.polish(problem, space.rings, candidates(space))
    if best is None:
        raise explain.infeasible(problem, space.rings)
    return _solution(space, best)


def plan_from_edit(
    request: SolveRequest,
    windows: Mapping[str, tuple[LayerWindow, ...]],
    num_resident: Mapping[str, int] | None = None,
) -> Solution:
    """Check and predict a plan made by hand: `windows` per peer, one per round, tiling all layers.

    `num_resident` says how many of a peer's layers stay in memory; for a peer it does not name, as many as
    fit. Raises RequestError when the windows are no plan, and InfeasiblePlan when a device has not the
    memory.
    """
    problem = build(request)
    if not windows:
        raise RequestError("a plan needs at least one device with layers")
    for peer in windows:
        if peer not in problem.peers:
            raise RequestError(f"'{peer}' has layers in the plan, but it is excluded or was not found")
    own = sorted(windows.items(), key=lambda item: item[1][0].start if item[1] else -1)
    order = tuple(problem.peers.index(peer) for peer, _ in own)
    kept = num_resident or {}
    try:
        bare = layout.ring_plan(problem, [Assignment(peer, mine, (), 0) for peer, mine in own])
        assignments = [_edited(problem, bare, a, kept.get(a.peer)) for a in bare.assignments]
        plan = layout.ring_plan(problem, assignments)
    except ValueError as error:
        raise RequestError(f"this is no plan: {error}") from error
    over = cost.check(plan, problem)
    if over:
        raise explain.over_budget(over)
    return _solution(Space(problem), Candidate.of(problem, order, plan))


def _edited(problem: Problem, bare: RingPlan, assignment: Assignment, num_resident: int | None) -> Assignment:
    """Decide the residency of one peer of a hand-made plan."""
    peer, own = assignment.peer, assignment.windows
    d, head, tail = problem.peers.index(peer), peer == bare.head, peer == bare.tail
    if num_resident is None:
        return layout.settle(problem, d, own, head, tail) or layout.assign(
            peer, own, len(assignment.layers), 1
        )
    late = len(assignment.layers) - num_resident
    if not 0 <= late < len(assignment.layers) + 1:
        raise ValueError(f"{peer} cannot keep {num_resident} of {len(assignment.layers)} layers")
    return layout.settle_streaming(problem, d, own, late, (head, tail))


def _solution(space: Space, best: Candidate) -> Solution:
    return Solution(
        plan=best.plan,
        prediction=best.prediction,
        reasons=explain.reasons(space, best),
        sizes=_sizes(space, best),
    )


def _sizes(space: Space, best: Candidate) -> tuple[RingSize, ...]:
    """The best plan of each number of devices; the chosen plan stands for its own."""
    rows = []
    sizes = space.rings.sizes
    for size in range(1, space.problem.num_devices + 1):
        found = best if size == len(best.order) else glance(space, sizes == size)
        if found is not None:
            rows.append(
                RingSize(
                    peers=tuple(space.problem.peers[d] for d in found.order),
                    rounds=found.plan.rounds,
                    ttft_s=found.prediction.ttft_s,
                    tpot_s=found.prediction.tpot_s,
                    streamed_bytes_per_token=found.prediction.streamed_bytes_per_token,
                )
            )
    return tuple(rows)
