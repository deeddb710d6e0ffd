"""How long the solver takes: `python -m benchmarks.solver`. One table, milliseconds.

For each number of devices and layers five random clusters (mixed Macs, mixed links) in two regimes:
everything fits, and half of the model streams. `search` finds the plan; `solve` also says why, for each
device, and makes the table of ring sizes. CPU time of the process, median and slowest; and the wall time of
the slowest.
"""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from dataclasses import dataclass

from dnet_core.solve.plan import solve
from dnet_core.solve.problem import build
from dnet_core.solve.search import Space, search
from dnet_core.types.plan import SolveRequest
from tests.clusters import MIB, layer, model, random_devices, random_links

DEVICES = (2, 4, 8, 16)
LAYERS = (32, 80, 126)
REGIMES = {"fits": 1.3, "streams": 0.5}
NUM_CLUSTERS = 5
LAYER_BYTES = 400 * MIB


@dataclass(frozen=True, slots=True)
class Took:
    """Milliseconds of one call."""

    cpu_ms: float
    wall_ms: float


def request(seed: int, devices: int, layers: int, share: float) -> SolveRequest:
    """A cluster whose budgets together hold about `share` of the model."""
    rng = random.Random(seed)
    mean = int(LAYER_BYTES * layers / devices * share) + 600 * MIB
    macs = random_devices(rng, devices, int(0.7 * mean), int(1.3 * mean))
    links = random_links(rng, macs)
    return SolveRequest(model([layer(LAYER_BYTES)] * layers), tuple(macs), links, context_tokens=4096)


def search_ms(case: SolveRequest) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    problem = build(case)
    search(Space(problem))
    return Took((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3)


def solve_ms(case: SolveRequest) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    solve(case)
    return Took((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3)


def columns(took: list[Took]) -> str:
    slowest = max(took, key=lambda t: t.cpu_ms)
    return f"{statistics.median(t.cpu_ms for t in took):>8.0f}{slowest.cpu_ms:>8.0f}{slowest.wall_ms:>8.0f}"


def main() -> None:
    print(f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':<26}{'search':>8}{'':>16}{'solve':>8}")
    heads = f"{'median':>8}{'slowest':>8}{'(wall)':>8}"
    print(f"{'devices':>7}{'layers':>8}  {'regime':<9}{heads}{heads}")
    solve(request(0, 2, 32, 1.0))  # imports and first calls
    for devices in DEVICES:
        for layers in LAYERS:
            for regime, share in REGIMES.items():
                cases = [request(seed, devices, layers, share) for seed in range(NUM_CLUSTERS)]
                found = columns([search_ms(case) for case in cases])
                whole = columns([solve_ms(case) for case in cases])
                print(f"{devices:>7}{layers:>8}  {regime:<9}{found}{whole}")


if __name__ == "__main__":
    main()
