"""Wishes and refusals: pins, required and excluded devices, edits, and what an infeasible plan says."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest

from dnet_core.errors import InfeasiblePlan, RequestError
from dnet_core.solve import cost
from dnet_core.solve.plan import plan_from_edit, solve
from dnet_core.solve.problem import build, kv_layer_bytes
from dnet_core.types.plan import Objective, Pin, SolveRequest
from dnet_core.types.profiles import KVKind, KVProfile
from dnet_core.types.ring import LayerWindow
from tests.clusters import GIB, MIB, device, layer, mesh, model, random_devices, random_links

W = LayerWindow


def request(*budgets_gib: float, num_layers: int = 24, latency_s: float = 300e-6) -> SolveRequest:
    """Alike Macs but for their budgets; layers of 200 MiB, tables of 256 MiB."""
    devices = [device(f"mac{i}", int(gib * GIB)) for i, gib in enumerate(budgets_gib)]
    return SolveRequest(
        model([layer(200 * MIB)] * num_layers), tuple(devices), mesh(devices, latency_s), context_tokens=4096
    )


def owned(solution_plan: object) -> dict[str, int]:
    return {a.peer: len(a.layers) for a in solution_plan.assignments}  # type: ignore[attr-defined]


def test_one_device_that_holds_all_is_enough() -> None:
    solution = solve(request(16, 16, latency_s=5e-3))
    assert owned(solution.plan) == {"mac0": 24}
    assert solution.plan.rounds == 1
    left_out = solution.reasons[1]
    assert not left_out.used
    assert left_out.text.startswith("left out: with it a ")
    assert [row.num_devices for row in solution.sizes] == [1, 2]


def test_a_slow_third_device_is_left_out_until_its_memory_is_needed() -> None:
    roomy = request(2, 2, 2)
    slow = device("mac2", 2 * GIB, memory_gb_per_s=60)
    devices = (*roomy.devices[:2], slow)
    assert set(owned(solve(replace(roomy, devices=devices)).plan)) == {"mac0", "mac1", "mac2"}
    bigger = tuple(replace(d, memory_budget_bytes=6 * GIB) for d in devices[:2])
    solution = solve(replace(roomy, devices=(*bigger, slow)))
    assert set(owned(solution.plan)) == {"mac0", "mac1"}
    assert solution.sizes[2].tpot_s > solution.sizes[1].tpot_s


def test_slow_links_make_fewer_hops() -> None:
    near, far = solve(request(4, 3, 3)), solve(request(4, 3, 3, latency_s=0.5))
    assert len(owned(near.plan)) > 1
    assert len(owned(far.plan)) == 1
    assert far.prediction.streamed_bytes_per_token > 0


def test_too_small_together_means_several_rounds() -> None:
    solution = solve(request(1, 1, 1))
    assert solution.plan.rounds > 1
    assert all(a.streamed for a in solution.plan.assignments)


def test_required_head_excluded_device_and_unknown_names() -> None:
    wishes = replace(request(3, 3, 3), head_device="mac2", excluded=frozenset({"mac0"}))
    solution = solve(wishes)
    assert solution.plan.head == "mac2"
    assert set(owned(solution.plan)) == {"mac1", "mac2"}
    assert solution.reasons[0].text == "left out: excluded by you"
    with pytest.raises(RequestError, match="mac9"):
        solve(replace(wishes, head_device="mac9"))
    with pytest.raises(RequestError, match="no device is left"):
        solve(replace(wishes, excluded=frozenset({"mac0", "mac1", "mac2"})))


def test_pins_are_kept_and_the_others_fill_the_gaps() -> None:
    pinned = replace(request(3, 3, 3), pins=(Pin("mac1", (W(4, 9),)),))
    solution = solve(pinned)
    by_peer = {a.peer: a.windows for a in solution.plan.assignments}
    assert by_peer["mac1"] == (W(4, 9),)
    assert solution.plan.path[0][0].start == 0
    assert "pinned by you" in solution.reasons[1].text


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        ((Pin("mac0", (W(0, 5),)), Pin("mac1", (W(4, 9),))), "overlaps"),
        ((Pin("mac0", (W(20, 30),)),), "of 24 layers"),
        ((Pin("mac0", (W(0, 2), W(4, 6))),), "one window per device"),
        ((Pin("mac0", (W(0, 2),)), Pin("mac0", (W(4, 6),))), "pinned twice"),
    ],
)
def test_pins_that_contradict_are_refused(pins: tuple[Pin, ...], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        solve(replace(request(3, 3, 3), pins=pins))


def test_an_edited_plan_is_checked_and_predicted() -> None:
    asked = request(4, 4)
    solution = plan_from_edit(asked, {"mac0": (W(0, 12),), "mac1": (W(12, 24),)})
    assert solution.prediction.streamed_bytes_per_token == 0
    fewer = plan_from_edit(asked, {"mac0": (W(0, 12),), "mac1": (W(12, 24),)}, {"mac1": 4})
    assert len(fewer.plan.assignments[1].streamed) == 8
    assert fewer.prediction.tpot_s > solution.prediction.tpot_s
    rounds = plan_from_edit(asked, {"mac0": (W(0, 6), W(12, 18)), "mac1": (W(6, 12), W(18, 24))})
    assert rounds.plan.rounds == 2


def test_edits_that_are_no_plan_or_do_not_fit() -> None:
    asked = request(4, 2)
    with pytest.raises(RequestError, match="reached layer 12"):
        plan_from_edit(asked, {"mac0": (W(0, 12),), "mac1": (W(13, 24),)})
    with pytest.raises(RequestError, match="mac7"):
        plan_from_edit(asked, {"mac7": (W(0, 24),)})
    with pytest.raises(RequestError, match="cannot keep 30"):
        plan_from_edit(asked, {"mac0": (W(0, 24),)}, {"mac0": 30})
    with pytest.raises(InfeasiblePlan) as refused:
        plan_from_edit(asked, {"mac0": (W(0, 12),), "mac1": (W(12, 24),)}, {"mac1": 12})
    assert refused.value.missing_bytes.keys() == {"mac1"}
    assert refused.value.missing_bytes["mac1"] > 400 * MIB


def test_infeasible_says_what_is_missing_and_advice_is_true() -> None:
    asked = replace(request(1.5, 1.5), context_tokens=131_072, allow_streaming=False)
    with pytest.raises(InfeasiblePlan) as refused:
        solve(asked)
    assert set(refused.value.missing_bytes) == {"mac0", "mac1"}
    assert all(missing > GIB for missing in refused.value.missing_bytes.values())
    assert any("stream" in line for line in refused.value.advice) == can(replace(asked, allow_streaming=True))

    long = replace(request(1.5, 1.5), context_tokens=131_072)
    with pytest.raises(InfeasiblePlan) as refused:
        solve(long)
    context = next(line for line in refused.value.advice if "context" in line)
    tokens = int(context.split()[-2].replace(",", ""))
    assert can(replace(long, context_tokens=tokens))
    assert not can(replace(long, context_tokens=tokens + 256))
    bits = {int(line[0]) for line in refused.value.advice if line.endswith("KV cache")}
    assert bits == {bits for bits in (8, 4) if can(replace(long, kv_bits=bits))}
    room = next(line for line in refused.value.advice if line.startswith("one more"))
    gigabytes = float(room.split()[-2])
    more = (*long.devices, device("new", int(gigabytes * 1.001e9)))
    assert can(replace(long, devices=more, links=mesh(list(more))))


def can(asked: SolveRequest) -> bool:
    try:
        solve(asked)
    except InfeasiblePlan:
        return False
    return True


def test_no_links_no_ring() -> None:
    alone = replace(request(3, 3), links=())
    assert len(owned(solve(alone).plan)) == 1
    with pytest.raises(InfeasiblePlan):
        solve(replace(alone, allow_streaming=False))


def test_a_device_is_left_out_for_the_reason_that_is_told() -> None:
    """All are linked: devices that are alike, more devices than layers, and rings that were not searched."""
    alike = [device(f"mac{i}", 20 * GIB) for i in range(4)]
    few = [device(f"mac{i}", (4 + i) * GIB) for i in range(4)]
    rng = random.Random(3)
    many = random_devices(rng, 12, 4 * GIB, 9 * GIB)
    cases = (
        (alike, mesh(alike), [layer(100 * MIB)] * 16, "with it a token would take"),
        (few, mesh(few), [layer(3000 * MIB)] * 2, "2 layers are no more than"),
        (many, random_links(rng, many), [layer(400 * MIB)] * 32, "with it a"),
    )
    for devices, links, layers, why in cases:
        solution = solve(SolveRequest(model(layers), tuple(devices), links, context_tokens=1024))
        left_out = [reason.text for reason in solution.reasons if not reason.used]
        assert len(left_out) >= 2
        assert all(why in text for text in left_out), left_out


def test_any_number_of_rounds_may_be_allowed() -> None:
    asked = request(1.5, 1.5)
    assert solve(replace(asked, max_rounds=10**9)).plan == solve(replace(asked, max_rounds=24)).plan


def test_throughput_evens_out_the_stages() -> None:
    asked = request(16, 16)
    latency, throughput = solve(asked), solve(replace(asked, objective=Objective.THROUGHPUT))
    assert owned(throughput.plan) == {"mac0": 12, "mac1": 12} or len(owned(throughput.plan)) == 2
    assert throughput.prediction.slowest_stage_s < latency.prediction.slowest_stage_s
    assert throughput.prediction.throughput_tokens_per_s > latency.prediction.throughput_tokens_per_s


def test_many_devices_are_planned_too() -> None:
    solution = solve(request(*itertools.repeat(0.9, 16)))
    assert cost.check(solution.plan, build(request(*itertools.repeat(0.9, 16)))) == {}


def test_kv_bytes_by_kind() -> None:
    full = KVProfile(KVKind.FULL, 1000, 0, 1 << 17)
    assert kv_layer_bytes(full, 1000, 16, 32) == 1024 * 1000  # steps of 256 tokens
    assert kv_layer_bytes(full, 1024, 8, 32) == 1024 * 1000 * 8.5 / 16
    assert kv_layer_bytes(full, 1024, 4, 32) == 1024 * 1000 * 4.5 / 16
    sliding = KVProfile(KVKind.SLIDING, 1000, 0, 512)
    assert kv_layer_bytes(sliding, 100_000, 4, 32) == (512 + 32) * 1000
    assert kv_layer_bytes(KVProfile(KVKind.STATE, 0, 777, 1 << 17), 100_000, 4, 32) == 777
