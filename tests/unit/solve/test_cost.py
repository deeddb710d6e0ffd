"""The tables of the MILP say exactly what `predict` says of the same plan."""

from __future__ import annotations

import pytest

from dnet_core.solve import cost, layout
from dnet_core.solve.problem import build
from tests.solver_requests import small_request


@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_patterns_are_the_formulas_tabulated(rounds: int, share: float) -> None:
    seen = 0
    for seed in range(6):
        problem = build(small_request(seed, share))
        for d in range(problem.num_devices):
            table = cost.patterns(problem, d, rounds, head=False, tail=True)
            for i in range(len(table)):
                given = table.share(i)
                own = layout.windows([given.layers], rounds)[0]
                assignment = layout.assign(problem.peers[d], own, given.streamed, given.buffers)
                exact = cost.device_cost(problem, assignment, tail=True)
                for name in ("turns_s", "compute_s", "disk_s", "last_stage_s", "full_stage_s"):
                    assert getattr(table.cost(i), name) == pytest.approx(getattr(exact, name), rel=1e-9), name
                seen += given.streamed > 0
    assert seen > 5
