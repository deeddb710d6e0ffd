"""A plan as JSON: the shape that users of dnet know, and beside it what the plan will do and why.

`dnet-api solve --json` prints it, `/v1/prepare_topology` answers with it, `/v1/load_model` reads it. The
names of the known shape are dnet's: instance is a device, residency_size how many of its layers stay in
memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict

from dnet_core.types.plan import DevicePrediction, Prediction, RingSize, Solution, SolveRequest
from dnet_core.types.profiles import DeviceProfile
from dnet_core.types.ring import RingPlan

Json = dict[str, object]

KV_NAMES = {4: "4bit", 8: "8bit", 16: "fp16"}
"""How dnet writes `kv_bits`."""


def topology(request: SolveRequest, solution: Solution) -> Json:
    """All that is to be said of a plan; `devices` are those of the ring in its order, then the others.

    Times that are infinite (a hop without a link) are null.
    """
    plan = solution.plan
    return {
        "model": plan.model,
        "kv_bits": KV_NAMES[plan.kv_bits],
        "seq_len": plan.context_tokens,
        "max_batch_exp": request.batch.bit_length() - 1,
        "num_layers": plan.num_layers,
        "devices": [_device(device) for device in _ring_first(request.devices, plan)],
        "assignments": _assignments(plan),
        "solution": {
            "k": plan.rounds,
            "w": [max(map(len, a.windows)) for a in plan.assignments],
            "n": [len(a.resident) for a in plan.assignments],
            "obj_value": _finite(solution.prediction.request_s),
        },
        "prediction": _prediction(solution.prediction),
        "reasons": [
            {"instance": reason.peer, "used": reason.used, "text": reason.text} for reason in solution.reasons
        ],
        "sizes": [_size(size, request.batch) for size in solution.sizes],
    }


def _device(device: DeviceProfile) -> Json:
    return {
        "instance": device.peer,
        "chip": device.chip,
        "backend": device.backend,
        "memory_total_bytes": device.memory_total_bytes,
        "memory_budget_bytes": device.memory_budget_bytes,
    }


def _ring_first(devices: Sequence[DeviceProfile], plan: RingPlan) -> list[DeviceProfile]:
    order = {assignment.peer: place for place, assignment in enumerate(plan.assignments)}
    return sorted(devices, key=lambda device: order.get(device.peer, len(order)))


def _assignments(plan: RingPlan) -> list[Json]:
    ring = plan.assignments
    return [
        {
            "instance": assignment.peer,
            "layers": [list(window.layers) for window in assignment.windows],
            "next_instance": following.peer if len(ring) > 1 else None,
            "window_size": max(map(len, assignment.windows)),
            "residency_size": len(assignment.resident),
            "streamed": list(assignment.streamed),
            "num_buffers": assignment.num_buffers,
        }
        for assignment, following in zip(ring, (*ring[1:], ring[0]), strict=True)
    ]


def _prediction(prediction: Prediction) -> Json:
    return {
        "prompt_tokens": prediction.prompt_tokens,
        "answer_tokens": prediction.answer_tokens,
        "ttft_s": _finite(prediction.ttft_s),
        "ms_per_token": _finite(prediction.tpot_s * 1e3),
        "tokens_per_s": _finite(prediction.tokens_per_s),
        "throughput_tokens_per_s": _finite(prediction.throughput_tokens_per_s),
        "streamed_bytes_per_token": prediction.streamed_bytes_per_token,
        "devices": [_predicted(device) for device in prediction.devices],
    }


def _predicted(device: DevicePrediction) -> Json:
    told = {
        key: _finite(value) if isinstance(value, float) else value for key, value in asdict(device).items()
    }
    instance = told.pop("peer")
    return {"instance": instance, **told, "total_bytes": device.total_bytes, "free_bytes": device.free_bytes}


def _size(size: RingSize, batch: int) -> Json:
    return {
        "num_devices": size.num_devices,
        "instances": list(size.peers),
        "k": size.rounds,
        "ttft_s": _finite(size.ttft_s),
        "ms_per_token": _finite(size.tpot_s * 1e3),
        "tokens_per_s": _finite(batch / size.tpot_s),
        "streamed_bytes_per_token": size.streamed_bytes_per_token,
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
