"""The oracle of the tests: the best score by trying everything, for a handful of devices and layers.

The same family of plans as the solver's, with nothing of its methods: every subset in every order, every
number of rounds, every split of the layers, on each device every number of streamed layers and of buffers.
Each device's cost and memory come from the exact per-layer formulas; of a device's choices only those are
dropped that are no better in any number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from dnet_core.solve import cost, layout
from dnet_core.solve.cost import DeviceCost
from dnet_core.solve.problem import Problem
from dnet_core.types.ring import LayerWindow


def best_score(problem: Problem) -> float:
    """The least score of any plan; infinite when there is none."""
    best = np.inf
    memo: dict[tuple[object, ...], tuple[DeviceCost, ...]] = {}
    for order in _orders(problem):
        for rounds in range(1, problem.request.max_rounds + 1):
            if rounds > 1 and len(order) == 1:
                break  # one device alone: rounds change nothing
            hop_s, prompt_hop_s = _hops(problem, order, rounds)
            if not np.isfinite(hop_s):
                continue
            for counts in _splits(problem.num_layers, len(order), rounds):
                own = layout.windows(counts, rounds)
                choices = []
                for place, (d, mine) in enumerate(zip(order, own, strict=True)):
                    roles = place == 0, place == len(order) - 1
                    key = (d, mine, roles)
                    if key not in memo:
                        memo[key] = _choices(problem, d, mine, roles)
                    choices.append(memo[key])
                for costs in itertools.product(*choices):
                    best = min(best, cost.score(problem, *cost.combine(problem, costs, hop_s, prompt_hop_s)))
    return best


def _orders(problem: Problem) -> Iterator[tuple[int, ...]]:
    pinned = {problem.peers.index(pin.peer) for pin in problem.request.pins}
    for size in range(1, min(problem.num_devices, problem.num_layers) + 1):
        for order in itertools.permutations(range(problem.num_devices), size):
            if problem.request.head_device in (None, problem.peers[order[0]]) and pinned <= set(order):
                yield order


def _splits(layers: int, devices: int, least: int) -> Iterator[tuple[int, ...]]:
    """All ways to give each device at least `least` of `layers`."""
    if devices == 1:
        if layers >= least:
            yield (layers,)
        return
    for first in range(least, layers - least * (devices - 1) + 1):
        for rest in _splits(layers - first, devices - 1, least):
            yield (first, *rest)


def _choices(
    problem: Problem, d: int, own: tuple[LayerWindow, ...], roles: tuple[bool, bool]
) -> tuple[DeviceCost, ...]:
    """What device `d` can do with these windows, within its budget."""
    total = sum(len(window) for window in own)
    pairs = [(0, 0)]
    if problem.request.allow_streaming:
        pairs += [
            (late, buffers) for late in range(len(own), total + 1, len(own)) for buffers in range(1, late)
        ]
    found: list[tuple[float, ...]] = []
    for late, buffers in pairs:
        assignment = layout.assign(problem.peers[d], own, late, buffers)
        if cost.memory_bytes(problem, assignment, *roles) <= problem.budget_bytes[d]:
            c = cost.device_cost(problem, assignment, roles[1])
            found.append((c.turns_s, c.compute_s, c.disk_s, c.last_stage_s, c.full_stage_s))
    kept = [a for a in sorted(set(found)) if not any(b != a and _no_worse(b, a) for b in found)]
    return tuple(DeviceCost(*numbers) for numbers in kept)


def _no_worse(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(x <= y for x, y in zip(a, b, strict=True))


def _hops(problem: Problem, order: tuple[int, ...], rounds: int) -> tuple[float, float]:
    """Seconds on the wire of a token, and of the last chunk of a prompt with the first token."""
    path = order * rounds
    steps = list(itertools.pairwise(path))
    back = float(problem.token_hop_s[path[-1], path[0]])
    token = sum(float(problem.hop_s[step]) for step in steps)
    return token + back, sum(float(problem.last_chunk_hop_s[step]) for step in steps) + back
