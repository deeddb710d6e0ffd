"""What an infeasible plan advises is true: each line, followed to the letter, leads to a plan."""

from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dnet_core.errors import InfeasiblePlan
from dnet_core.solve.plan import solve
from dnet_core.types.plan import SolveRequest
from tests.clusters import device, link
from tests.property.solve.test_lawful import mixed_request
from tests.solver_requests import small_request


def followed(request: SolveRequest, line: str) -> SolveRequest:
    """`request` as the advice wants it."""
    if found := re.fullmatch(r"a context of at most ([\d,]+) tokens", line):
        return replace(request, context_tokens=int(found[1].replace(",", "")))
    if found := re.fullmatch(r"(\d)-bit KV cache", line):
        return replace(request, kv_bits=int(found[1]))
    if found := re.fullmatch(r"one more device with a memory budget of (\d+\.\d\d) GB", line):
        new = device("new", round(float(found[1]) * 1e9))
        ways = ((a, b) for old in request.devices for a, b in ((old.peer, "new"), ("new", old.peer)))
        links = (*request.links, *(link(a, b) for a, b in ways))
        return replace(request, devices=(*request.devices, new), links=links)
    assert line == "let layers stream from disk (slow)"
    return replace(request, allow_streaming=True)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from([0.01, 0.1, 0.2, 0.5]), st.booleans(), st.booleans())
def test_advice_is_true(seed: int, share: float, mixed: bool, streaming: bool) -> None:
    request = mixed_request(seed, share) if mixed else small_request(seed, share)
    request = replace(request, allow_streaming=streaming)
    try:
        solve(request)
    except InfeasiblePlan as error:
        refused = error
    else:
        assume(False)
        return
    assert refused.advice
    assert refused.missing_bytes or mixed
    assert all(missing > 0 for missing in refused.missing_bytes.values())
    for line in refused.advice:
        solve(followed(request, line))
