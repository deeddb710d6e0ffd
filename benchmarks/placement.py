"""The solver's plans against simple splits, by the event simulator: `python -m benchmarks.placement`.

200 random clusters. `equal` gives every device the same number of layers, `memory` a number in proportion to
its budget (the rule of another popular system); both use all devices in the order of the request, one round,
and stream what does not fit just as the solver would. Ratios are their time over the solver's: above 1 the
solver is faster.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from dnet_core.demo.rings import decode_ring, prompt_ring
from dnet_core.demo.simulator import Simulator, seconds_per_token
from dnet_core.errors import InfeasiblePlan
from dnet_core.solve import layout
from dnet_core.solve.plan import solve
from dnet_core.solve.problem import Problem, build
from dnet_core.types.ring import RingPlan
from tests.solver_requests import cluster_request

NUM_CLUSTERS = 200


def equal_split(problem: Problem) -> RingPlan | None:
    return _split(problem, [1.0] * problem.num_devices)


def memory_split(problem: Problem) -> RingPlan | None:
    return _split(problem, [float(budget) for budget in problem.budget_bytes])


def _split(problem: Problem, weights: Sequence[float]) -> RingPlan | None:
    """One window per device, in proportion to `weights` and at least a layer; None when one has no room."""
    count = problem.num_layers
    edges = [round(count * sum(weights[:i]) / sum(weights)) for i in range(len(weights) + 1)]
    counts = [max(1, b - a) for a, b in itertools.pairwise(edges)]
    counts[counts.index(max(counts))] -= sum(counts) - count
    return layout.settle_ring(problem, range(problem.num_devices), layout.windows(counts, 1))


def request_seconds(plan: RingPlan, problem: Problem) -> tuple[float, float]:
    """Simulated seconds of the typical request and of one token."""
    token = seconds_per_token(decode_ring(plan, problem))
    prompt = Simulator(prompt_ring(plan, problem)).chunk_times(problem.num_chunks)[-1]
    return prompt + problem.answer_tokens * token, token


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    ratios: dict[tuple[str, str], list[float]] = {}
    misfits = {"equal": 0, "memory": 0}
    seed = done = 0
    while done < NUM_CLUSTERS:
        request, seed = cluster_request(seed), seed + 1
        if len(request.devices) == 1:
            continue
        problem = build(request)
        try:
            ours = request_seconds(solve(request).plan, problem)
        except InfeasiblePlan:
            continue
        done += 1
        for rule, plan in (("equal", equal_split(problem)), ("memory", memory_split(problem))):
            if plan is None:
                misfits[rule] += 1
                continue
            theirs = request_seconds(plan, problem)
            for what, a, b in zip(("request", "token"), theirs, ours, strict=True):
                ratios.setdefault((rule, what), []).append(a / b)
    print(f"{done} clusters; time of the split / time of the solver's plan")
    print(f"{'split':<8}{'of a':<9}{'least':>7}{'median':>8}{'90th':>8}{'slower':>8}{'no plan':>9}")
    for (rule, what), values in ratios.items():
        row = f"{min(values):>7.3f}{statistics.median(values):>8.2f}{quantile(values, 0.9):>8.2f}"
        slower = sum(value < 1 - 1e-3 for value in values)
        print(f"{rule:<8}{what:<9}{row}{slower:>8}{misfits[rule]:>9}")


if __name__ == "__main__":
    main()
