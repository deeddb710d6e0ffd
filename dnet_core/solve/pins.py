"""Plans around pins: some devices run exactly the windows they were given, the others fill the gaps.

One round only: each pinned device has one window. (All windows of several rounds can be given by hand to
`plan_from_edit`.)
"""

from __future__ import annotations

import itertools

from dnet_core.errors import RequestError
from dnet_core.solve import layout
from dnet_core.solve.problem import Problem
from dnet_core.solve.search import Candidate
from dnet_core.types.ring import LayerWindow, RingPlan

MAX_ORDERS = 200
"""Ways to deal the free devices to the gaps that are looked at; beyond that the later ones are left."""


def fill(problem: Problem) -> Candidate | None:
    """The best plan found around the pins of the request; None when there is none.

    Raises RequestError when the pins overlap, leave the model, or have several windows.
    """
    pinned = _pinned(problem)
    gaps = _gaps(problem, [window for _, window in pinned])
    free = [d for d in range(problem.num_devices) if d not in {d for d, _ in pinned}]
    best: Candidate | None = None
    ways = itertools.product(range(-1, len(gaps)), repeat=len(free))
    wanted = (way for way in ways if set(range(len(gaps))) <= set(way))
    for way in itertools.islice(wanted, MAX_ORDERS):
        dealt = [[d for d, gap in zip(free, way, strict=True) if gap == g] for g in range(len(gaps))]
        found = _dealt(problem, pinned, gaps, dealt)
        if found is not None and (best is None or found.score < best.score * (1 - 1e-9)):
            best = found
    return best


def _pinned(problem: Problem) -> list[tuple[int, LayerWindow]]:
    """Pinned devices with their windows, by layers."""
    pinned = []
    for pin in problem.request.pins:
        if len(pin.windows) > 1:
            raise RequestError(
                f"{pin.peer} is pinned to {len(pin.windows)} windows: pin one window per device, or give the"
                " windows of all devices by hand"
            )
        pinned.append((problem.peers.index(pin.peer), pin.windows[0]))
    pinned.sort(key=lambda item: item[1])
    for (_, before), (d, window) in itertools.pairwise([(-1, LayerWindow(0, problem.num_layers)), *pinned]):
        if window.stop > problem.num_layers:
            raise RequestError(f"{problem.peers[d]} is pinned to {window} of {problem.num_layers} layers")
        if pinned[0][0] != d and window.start < before.stop:
            raise RequestError(f"{problem.peers[d]} is pinned to {window}, which overlaps {before}")
    if len({d for d, _ in pinned}) < len(pinned):
        raise RequestError("a device is pinned twice")
    return pinned


def _gaps(problem: Problem, windows: list[LayerWindow]) -> list[LayerWindow]:
    """The layers that no pin covers, as windows."""
    edges = [0, *(edge for window in windows for edge in (window.start, window.stop)), problem.num_layers]
    return [LayerWindow(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def _dealt(
    problem: Problem, pinned: list[tuple[int, LayerWindow]], gaps: list[LayerWindow], dealt: list[list[int]]
) -> Candidate | None:
    """The best split of each gap over its devices, by single moves from shares like their memory."""
    if any(len(gap) < len(devices) for gap, devices in zip(gaps, dealt, strict=True)):
        return None
    counts = [
        _shares(len(gap), [int(problem.budget_bytes[d]) for d in devices])
        for gap, devices in zip(gaps, dealt, strict=True)
    ]
    best = _candidate(problem, pinned, gaps, dealt, counts)
    improved = best is not None
    while improved and best is not None:
        improved = False
        for g, share in enumerate(counts):
            for giver, taker in itertools.permutations(range(len(share)), 2):
                if share[giver] == 1:
                    continue
                tried = [list(c) for c in counts]
                tried[g][giver] -= 1
                tried[g][taker] += 1
                found = _candidate(problem, pinned, gaps, dealt, tried)
                if found is not None and found.score < best.score * (1 - 1e-9):
                    best, counts, improved = found, tried, True
                    break
    return best


def _shares(layers: int, weights: list[int]) -> list[int]:
    """Split `layers` in proportion to `weights`, at least one each."""
    left, total, shares = layers, sum(weights), []
    for i, weight in enumerate(weights):
        others = len(weights) - i - 1
        share = min(max(1, round(left * weight / max(1, total))), left - others)
        shares.append(share)
        left, total = left - share, total - weight
    shares[-1] += left
    return shares


def _candidate(
    problem: Problem,
    pinned: list[tuple[int, LayerWindow]],
    gaps: list[LayerWindow],
    dealt: list[list[int]],
    counts: list[list[int]],
) -> Candidate | None:
    placed = list(pinned)
    for gap, devices, shares in zip(gaps, dealt, counts, strict=True):
        starts = itertools.accumulate([gap.start, *shares])
        edges = itertools.pairwise(starts)
        placed += [(d, LayerWindow(a, b)) for d, (a, b) in zip(devices, edges, strict=True)]
    placed.sort(key=lambda item: item[1])
    order = tuple(d for d, _ in placed)
    if problem.request.head_device not in (None, problem.peers[order[0]]):
        return None
    plan: RingPlan | None = layout.settle_ring(problem, order, [(window,) for _, window in placed])
    return None if plan is None else Candidate.of(problem, order, plan)
