"""Say why: a sentence for each device of a plan, and what is missing when there is no plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dnet_core.errors import InfeasiblePlan
from dnet_core.solve import cost, ring_order
from dnet_core.solve.problem import KV_STEP_TOKENS, Problem, build
from dnet_core.solve.ring_order import Rings
from dnet_core.solve.search import Candidate, Space, glance, possible
from dnet_core.types.plan import DevicePrediction, DeviceReason


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
    joined = (space.rings.member == np.isin(np.arange(problem.num_devices), (*best.order, d))).all(axis=1)
    if not joined.any():
        return "left out: it has no measured link to the ring"
    found = glance(space, joined)
    if found is None:
        return f"left out: {_gb(int(problem.budget_bytes[d]))} hold no layer beside the workspace"
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
    summary = (
        f"{request.model.model} does not fit {problem.num_devices} device(s) with a context of"
        f" {request.context_tokens:,} tokens"
    )
    return InfeasiblePlan(summary, texts, missing_bytes=missing, advice=_advice(problem))


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
    if not request.allow_streaming and _fits(problem, allow_streaming=True):
        lines.append("let layers stream from disk (slow)")
    context = _longest_context(problem)
    if context:
        lines.append(f"a context of at most {context:,} tokens")
    lines += [
        f"{bits}-bit KV cache" for bits in (8, 4) if bits < request.kv_bits and _fits(problem, kv_bits=bits)
    ]
    weight, kv = _layer_bytes(problem)
    left = max(1, problem.num_layers - sum(_most_layers(problem, d) for d in range(problem.num_devices)))
    room = left * (weight + kv) + cost.fixed_bytes(problem, head=True, tail=True)
    lines.append(f"one more device with a memory budget of {_gb(room)}")
    return tuple(lines)


def _longest_context(problem: Problem) -> int:
    """The longest context that fits, in steps of the KV cache; 0 when none does."""
    low, high = 0, problem.request.context_tokens // KV_STEP_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(problem, context_tokens=middle * KV_STEP_TOKENS):
            low = middle
        else:
            high = middle - 1
    return low * KV_STEP_TOKENS if low * KV_STEP_TOKENS < problem.request.context_tokens else 0


def _fits(problem: Problem, **changes: int | bool) -> bool:
    changed = build(replace(problem.request, **changes))  # type: ignore[arg-type]
    return possible(changed, ring_order.rings(changed))


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
