"""From counts to windows: where a ring's layers lie, which of them stream, and the plan that says so.

All by exact bytes per layer, so that a plan found on mean layers is settled on the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from dnet_core.solve import cost
from dnet_core.solve.problem import Problem
from dnet_core.types.ring import Assignment, LayerWindow, RingPlan

Windows = tuple[LayerWindow, ...]


def windows(counts: Sequence[int], rounds: int) -> tuple[Windows, ...]:
    """Lay `counts` layers per device (at least `rounds` each, ring order) round after round."""
    shares = [cost.even(count, rounds) for count in counts]
    laid: list[list[LayerWindow]] = [[] for _ in counts]
    start = 0
    for r in range(rounds):
        for device, share in zip(laid, shares, strict=True):
            device.append(LayerWindow(start, start + share[r]))
            start += share[r]
    return tuple(tuple(device) for device in laid)


def assign(peer: str, own: Windows, streamed: int, buffers: int) -> Assignment:
    """Stream `streamed` layers of `own`, equally over the rounds and evenly in each window."""
    late: list[int] = []
    rest = streamed
    for index, window in enumerate(own):
        share = min(len(window), -(-rest // (len(own) - index)))
        late += cost.spread(window, share)
        rest -= share
    return Assignment(peer, own, tuple(late), buffers)


def settle(problem: Problem, d: int, own: Windows, head: bool, tail: bool) -> Assignment | None:
    """Decide what device `d` keeps and what it streams of `own`; None when not even one buffer fits.

    Everything resident if that fits; else, over the numbers of buffers, the least streaming that fits and of
    these the fastest by itself.
    """
    peer, budget = problem.peers[d], int(problem.budget_bytes[d])
    resident = Assignment(peer, own, (), 0)
    if cost.memory_bytes(problem, resident, head, tail) <= budget:
        return resident
    if not problem.request.allow_streaming:
        return None
    choices: list[tuple[float, int, Assignment]] = []
    count = len(resident.layers)
    for buffers in range(1, count):
        chosen = _least_streaming(problem, d, resident, buffers, (head, tail))
        if chosen is None:
            break
        price = cost.device_cost(problem, chosen, tail)
        token = max(price.turns_s, price.disk_s)
        choices.append((problem.answer_tokens * token + price.last_stage_s, len(chosen.streamed), chosen))
        if buffers > 1 and price.turns_s <= price.compute_s:
            break  # no turn waits any more
        if buffers > 2 and len(own) == 1:
            break  # in one window, a buffer more is one layer more to read
    return min(choices, key=lambda choice: choice[:2])[2] if choices else None


def settle_streaming(
    problem: Problem, d: int, own: Windows, streamed: int, roles: tuple[bool, bool]
) -> Assignment:
    """Stream just so many layers of `own`, through the number of buffers that is fastest within the budget.

    When not even one buffer fits, the assignment with one is returned, which `cost.check` then finds too big.
    """
    if streamed == 0:
        return Assignment(problem.peers[d], own, (), 0)
    choices = [assign(problem.peers[d], own, streamed, buffers) for buffers in range(1, streamed + 1)]
    budget = int(problem.budget_bytes[d])
    lawful = [a for a in choices if cost.memory_bytes(problem, a, *roles) <= budget]

    def seconds(assignment: Assignment) -> float:
        price = cost.device_cost(problem, assignment, roles[1])
        return max(price.turns_s, price.disk_s)

    return min(lawful, key=seconds) if lawful else choices[0]


def _least_streaming(
    problem: Problem, d: int, resident: Assignment, buffers: int, roles: tuple[bool, bool]
) -> Assignment | None:
    """The fewest streamed layers with which `resident`'s windows fit through `buffers` buffers."""
    budget, own = int(problem.budget_bytes[d]), resident.windows
    low, high = buffers + 1, len(resident.layers)

    def fits(count: int) -> Assignment | None:
        tried = assign(resident.peer, own, count, buffers)
        return tried if cost.memory_bytes(problem, tried, *roles) <= budget else None

    best = fits(high) if low <= high else None
    if best is None:
        return None
    while low < high:
        middle = (low + high) // 2
        tried = fits(middle)
        if tried is None:
            low = middle + 1
        else:
            high, best = middle, tried
    return best


def ring_plan(problem: Problem, assignments: Sequence[Assignment]) -> RingPlan:
    """The plan of these assignments, in ring order."""
    return RingPlan(
        model=problem.request.model.model,
        num_layers=problem.num_layers,
        rounds=max(len(a.windows) for a in assignments),
        context_tokens=problem.request.context_tokens,
        kv_bits=problem.request.kv_bits,
        assignments=tuple(assignments),
    )


def settle_ring(problem: Problem, order: Sequence[int], own: Sequence[Windows]) -> RingPlan | None:
    """The plan in which device `order[i]` runs windows `own[i]`; None when one of them has no room."""
    first = min(w.start for device in own for w in device)
    last = max(w.stop for device in own for w in device)
    settled = [
        settle(problem, d, mine, mine[0].start == first, mine[-1].stop == last)
        for d, mine in zip(order, own, strict=True)
    ]
    assignments = [a for a in settled if a is not None]
    return ring_plan(problem, assignments) if len(assignments) == len(settled) else None
