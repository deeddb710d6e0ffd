"""Say why: a sentence for each device of a plan, and what is missing when there is no plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from dnet_core.errors import InfeasiblePlan
from dnet_core.solve import cost, pins, polish, ring_order
from dnet_core.solve.problem import KV_STEP_TOKENS, Problem, build
from dnet_core.solve.ring_order import Rings
from dnet_core.solve.search import Candidate, Space, candidates, glance, possible
from dnet_core.types.plan import DevicePrediction, DeviceReason
from dnet_core.types.profiles import LinkProfile

_ROOM_STEP_BYTES = 10_000_000  # as it is told: in hundredths of a gigabyte
_NEW_PEER = "one more device"


def reasons(space: Space, best: Candidate) -> tuple[DeviceReason, ...]:
    """One sentence per device of the request, in its order."""
    problem = space.problem
    used = {device.peer: device for device in best.prediction.devices}
    texts = []
    for device in problem.request.devices:
        peer = device.peer
        if peer in problem.request.excluded:
            texts.append(DeviceReason(peer, used=False, text="left out: excluded by you"))
        elif peer in used:
            texts.append(DeviceReason(peer, used=True, text=_used(problem, best, used[peer])))
        else:
            text = _left_out(space, best, problem.peers.index(peer))
            texts.append(DeviceReason(peer, used=False, text=text))
    return tuple(texts)


def _used(problem: Problem, best: Candidate, device: DevicePrediction) -> str:
    text = (
        f"runs {device.num_layers} of {problem.num_layers} layers in"
        f" {_gb(device.total_bytes)} of {_gb(device.budget_bytes)}"
    )
    if device.streamed_bytes_per_token:
        text += f", reads {_gb(device.streamed_bytes_per_token)} from disk for every token"
    if any(pin.peer == device.peer for pin in problem.request.pins):
        text += ", pinned by you"
    busiest = max(best.prediction.devices, key=lambda d: max(d.compute_s, d.disk_s))
    if busiest.peer == device.peer and len(best.prediction.devices) > 1:
        text += "; the slowest stage, by its " + ("disk" if device.disk_s > device.compute_s else "compute")
    return text


def _left_out(space: Space, best: Candidate, d: int) -> str:
    """Compare with the best plan found on the same devices and this one."""
    problem = space.problem
    if len(best.order) >= problem.num_layers:
        return f"left out: {problem.num_layers} layers are no more than the devices that run them"
    if _most_layers(problem, d) == 0:
        return f"left out: {_gb(int(problem.budget_bytes[d]))} hold no layer beside the workspace"
    joined = (space.rings.member == np.isin(np.arange(problem.num_devices), (*best.order, d))).all(axis=1)
    if not joined.any():  # not searched: one of several that are alike, or one of many devices
        space = Space(problem, ring_order.with_one_more(problem, best.order, d))
        joined = np.ones(len(space.rings), dtype=np.bool_)
    if not joined.any():
        return "left out: it has no measured link to the ring"
    found = glance(space, joined)
    if found is None:
        return "left out: no plan with it was found"
    if problem.throughput:
        before, after = best.prediction.slowest_stage_s, found.prediction.slowest_stage_s
        return f"left out: with it the slowest stage would take {_ms(after)} instead of {_ms(before)}"
    if found.prediction.tpot_s > best.prediction.tpot_s:
        before, after = best.prediction.tpot_s, found.prediction.tpot_s
        return f"left out: with it a token would take {_ms(after)} instead of {_ms(before)}"
    before, after = best.prediction.request_s, found.prediction.request_s
    return f"left out: with it a typical request would take {after:.2f} s instead of {before:.2f} s"


def over_budget(over: dict[str, int]) -> InfeasiblePlan:
    """The error for a plan made by hand that takes more memory than there is."""
    return InfeasiblePlan(
        "the plan does not fit",
        {peer: f"{_gb(missing)} more than its budget" for peer, missing in over.items()},
        missing_bytes=over,
        advice=("give these devices fewer layers, or let more of them stream from disk",),
    )


def infeasible(problem: Problem, rings: Rings) -> InfeasiblePlan:
    """The error for a model that no ring of these devices can hold."""
    request = problem.request
    if not len(rings):
        return InfeasiblePlan(
            f"no ring can be made for {request.model.model}",
            dict.fromkeys(problem.peers, "no measured link to the devices that must take part"),
            advice=("measure the links between the devices",),
        )
    share = -(-problem.num_layers // problem.num_devices)
    missing, texts = {}, {}
    for d, peer in enumerate(problem.peers):
        most = _most_layers(problem, d)
        short = _needed_bytes(problem, share) - int(problem.budget_bytes[d])
        if short > 0:
            missing[peer] = short
            texts[peer] = (
                f"holds {most} of its share of {share} layers in {_gb(int(problem.budget_bytes[d]))}:"
                f" {_gb(short)} are missing"
            )
        else:
            texts[peer] = f"could hold {most} layers in {_gb(int(problem.budget_bytes[d]))}"
    if not missing:
        missing = _missing_for_ends(problem, share)
        for peer, short in missing.items():
            texts[peer] += (
                f", but not embedding or head beside its share of {share}: {_gb(short)} are missing"
            )
    summary = (
        f"{request.model.model} does not fit {problem.num_devices} device(s) with a context of"
        f" {request.context_tokens:,} tokens"
    )
    return InfeasiblePlan(summary, texts, missing_bytes=missing, advice=_advice(problem))


def _missing_for_ends(problem: Problem, share: int) -> dict[str, int]:
    """What the roomiest devices lack for embedding and head, where each has room for `share` layers."""
    room = {
        peer: int(problem.budget_bytes[d]) - _needed_bytes(problem, share)
        for d, peer in enumerate(problem.peers)
    }
    by_room = sorted(room, key=lambda peer: -room[peer])
    head = problem.request.head_device or by_room[0]
    tail = next((peer for peer in by_room if peer != head), head)
    needed = dict.fromkeys((head, tail), 0)
    needed[head] += problem.embedding_bytes
    needed[tail] += problem.head_bytes
    return {peer: size - room[peer] for peer, size in needed.items() if size > room[peer]}


def _layer_bytes(problem: Problem) -> tuple[int, int]:
    """Weights and KV of a layer, the mean rounded up."""
    return -int(-problem.weight_bytes.mean() // 1), -int(-problem.kv_bytes.mean() // 1)


def _needed_bytes(problem: Problem, layers: int) -> int:
    """The least memory for so many layers on a device in the middle of the ring."""
    weight, kv = _layer_bytes(problem)
    kept = 1 if problem.request.allow_streaming else layers
    return cost.fixed_bytes(problem, head=False, tail=False) + kept * weight + layers * kv


def _most_layers(problem: Problem, d: int) -> int:
    counts = range(1, problem.num_layers + 1)
    return sum(_needed_bytes(problem, n) <= problem.budget_bytes[d] for n in counts)


def _advice(problem: Problem) -> tuple[str, ...]:
    """What would make it fit: each line has been tried."""
    request, lines = problem.request, []
    if request.pins and _fits(problem, pins=()):
        lines.append("leave out the pins")
    if not request.allow_streaming and _fits(problem, allow_streaming=True):
        lines.append("let layers stream from disk (slow)")
    if context := _longest_context(problem):
        lines.append(f"a context of at most {context:,} tokens")
    lines += [
        f"{bits}-bit KV cache" for bits in (8, 4) if bits < request.kv_bits and _fits(problem, kv_bits=bits)
    ]
    if room := _room_on_one_more(problem):
        lines.append(f"one more device with a memory budget of {_gb(room)}")
    return tuple(lines)


def _longest_context(problem: Problem) -> int:
    """The longest context that fits, in steps of the KV cache; 0 when none is found."""
    low, high = 0, (problem.request.context_tokens - 1) // KV_STEP_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        if _may_fit(problem, context_tokens=middle * KV_STEP_TOKENS):
            low = middle
        else:
            high = middle - 1
    tokens = (low * share // 100 * KV_STEP_TOKENS for share in (100, 95, 85, 70, 50))
    return next((n for n in tokens if n and _fits(problem, context_tokens=n)), 0)


def _room_on_one_more(problem: Problem) -> int:
    """The least budget of a new device, linked to all, with which a plan exists, in steps; 0: none is found.

    It computes as the first device does, which makes no difference to what fits.
    """
    weight, kv = _layer_bytes(problem)
    all_bytes = problem.num_layers * (weight + kv) + cost.fixed_bytes(problem, head=True, tail=True)
    low, most = 1, -(-all_bytes // _ROOM_STEP_BYTES)
    high = most
    while low < high:
        middle = (low + high) // 2
        if _may_fit(problem, **_one_more(problem, middle * _ROOM_STEP_BYTES)):
            high = middle
        else:
            low = middle + 1
    steps = (*(-(-high * share // 100) for share in (100, 105, 120, 150, 200)), most)
    rooms = (step * _ROOM_STEP_BYTES for step in steps)
    return next((room for room in rooms if _fits(problem, **_one_more(problem, room))), 0)


def _one_more(problem: Problem, budget_bytes: int) -> dict[str, Any]:
    """The changes of the request that add a device with this budget."""
    request = problem.request
    new = replace(request.devices[0], peer=_NEW_PEER, memory_budget_bytes=budget_bytes)
    ways = [(a, b) for old in problem.peers for a, b in ((old, _NEW_PEER), (_NEW_PEER, old))]
    links = tuple(LinkProfile(a, b, "new", "ethernet", 1e-3, 1e8) for a, b in ways)
    return {"devices": (*request.devices, new), "links": (*request.links, *links)}


def _may_fit(problem: Problem, **changes: Any) -> bool:
    """Whether the request with these changes has room, as far as layers alike say."""
    changed = build(replace(problem.request, **changes))
    return possible(changed, ring_order.rings(changed))


def _fits(problem: Problem, **changes: Any) -> bool:
    """Whether the request with these changes has a plan."""
    changed = build(replace(problem.request, **changes))
    if changed.request.pins:
        return pins.fill(changed) is not None
    space = Space(changed)
    if changed.uniform or not possible(changed, space.rings):
        return possible(changed, space.rings)
    return polish.polish(changed, space.rings, candidates(space)) is not None


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e7 else f"{size_bytes / 1e6:.1f} MB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
