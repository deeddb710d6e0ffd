"""Profiles and plans as tables for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from dnet_core.types.plan import DevicePrediction, Prediction, Solution, SolveRequest
from dnet_core.types.profiles import DeviceProfile, LayerProfile, LinkProfile, ModelProfile
from dnet_core.types.ring import Assignment, RingPlan

COLUMNS = 80
_NAME_COLUMNS = 16


def size(num_bytes: float) -> str:
    """Bytes in the unit that shows three figures or so: `123 MB`, `4.56 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if abs(num_bytes) >= scale:
            value = num_bytes / scale
            return f"{value:.0f} {unit}" if abs(value) >= 100 else f"{value:.2f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def seconds(value: float) -> str:
    """A time in the unit that fits it."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with figures to the right; to the left the first column, and others without a heading."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    left = [place == 0 or not heading for place, heading in enumerate(rows[0])]
    for row in rows:
        cells = (
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(row, widths, left, strict=True)
        )
        yield "  " + "  ".join(cells).rstrip()


def short(name: str) -> str:
    """`name`, cut in the middle where it is too long for a column: both ends tell devices apart."""
    if len(name) <= _NAME_COLUMNS:
        return name
    half = (_NAME_COLUMNS - 1) // 2
    return f"{name[: _NAME_COLUMNS - 1 - half]}…{name[-half:]}"


# ---- profiles ----


def device_lines(device: DeviceProfile) -> Iterator[str]:
    """What was measured on one device."""
    yield f"{device.peer}: {device.chip}, {device.os}, MLX {device.mlx_version} on {device.backend}"
    yield from table(
        [
            ("memory", size(device.memory_total_bytes), "in all"),
            ("", size(device.memory_available_bytes), "free now"),
            ("", size(device.memory_budget_bytes), "for a model"),
            ("", f"{size(device.memory_bytes_per_s)}/s", "read"),
            (
                "disk",
                f"{size(device.disk_read_bytes_per_s)}/s",
                f"layers of {size(device.disk_read_size_bytes)}",
            ),
            ("a layer's dispatch", seconds(device.layer_overhead_s), "per token"),
        ]
    )
    heads = ("weights", "one token", "from memory", "prefill", "in chunks of")
    yield from table(
        [
            heads,
            *(
                (
                    speed.weight_format,
                    _flops(speed.decode_flops_per_s),
                    f"{size(speed.decode_bytes_per_s)}/s",
                    _flops(speed.prefill_flops_per_s),
                    str(speed.prefill_chunk_tokens),
                )
                for speed in device.speeds
            ),
        ]
    )


def _flops(per_s: float) -> str:
    return f"{per_s / 1e12:.2f} TFLOP/s" if per_s >= 1e11 else f"{per_s / 1e9:.1f} GFLOP/s"


def link_lines(links: Sequence[LinkProfile]) -> Iterator[str]:
    """The hops of a ring."""
    rows = [
        (
            f"{short(link.source)} -> {short(link.target)}",
            link.medium,
            seconds(link.latency_s),
            f"{size(link.bytes_per_s)}/s",
        )
        for link in links
    ]
    yield from table([("link", "over", "latency", "rate"), *rows])


def model_lines(model: ModelProfile) -> Iterator[str]:
    """A model's bytes, caches and arithmetic; layers that are alike share a row."""
    yield (
        f"{model.model}: {model.model_type}, {model.num_layers} layers, {size(model.weight_bytes)}"
        f" of weights ({model.weight_format})"
    )
    rows: list[tuple[str, ...]] = [
        ("layers", "weights", "per token", "KV", "KV per token", "MFLOP per token")
    ]
    start = 0
    for layer, group in groupby(model.layers):
        stop = start + len(list(group))
        rows.append((f"[{start}, {stop})", *_layer_cells(layer)))
        start = stop
    yield from table(rows)
    yield (
        f"  embedding {size(model.embedding_bytes)}, head {size(model.head_bytes)},"
        f" {size(model.activation_bytes_per_token)} per token and hop"
    )
    yield f"  context of up to {model.context_tokens:,} tokens"


def _layer_cells(layer: LayerProfile) -> tuple[str, ...]:
    kv = layer.kv
    cache = size(kv.bytes_per_token) if kv.bytes_per_token else f"{size(kv.state_bytes)} in all"
    return (
        size(layer.weight_bytes),
        size(layer.active_weight_bytes),
        kv.kind.value,
        cache,
        f"{layer.flops_per_token / 1e6:.1f}",
    )


# ---- plans ----


def plan_lines(request: SolveRequest, solution: Solution, assumptions: Sequence[str]) -> Iterator[str]:
    """A plan, what it needs and does, and why; `assumptions` are what nobody has measured."""
    plan, prediction, model = solution.plan, solution.prediction, request.model
    yield f"{plan.model}: {plan.num_layers} layers, {size(model.weight_bytes)} ({model.weight_format})"
    yield (
        f"context of {plan.context_tokens:,} tokens, KV cache of {plan.kv_bits} bits,"
        f" batch of {request.batch}, for {request.objective.value}"
    )
    yield ""
    num, rounds = len(plan.assignments), plan.rounds
    yield f"plan: {num} device{'s' * (num > 1)}, {rounds} round{'s' * (rounds > 1)}"
    yield from _placement(plan)
    yield ""
    yield "memory"
    yield from table(_memory_rows(prediction.devices))
    yield ""
    yield f"prediction for a prompt of {prediction.prompt_tokens:,} tokens"
    yield from _prediction(prediction)
    yield ""
    yield "why"
    for reason in solution.reasons:
        yield from _wrapped(f"{reason.peer}: {reason.text}")
    yield ""
    yield "with 1, 2, ... devices (* the plan)"
    yield from table(_size_rows(request, solution))
    if assumptions:
        yield ""
        yield "assumed"
        for text in assumptions:
            yield from _wrapped(text)


def _placement(plan: RingPlan) -> Iterator[str]:
    width = max(len(short(a.peer)) for a in plan.assignments)
    for assignment in plan.assignments:
        windows = " ".join(str(window) for window in assignment.windows)
        text = f"{short(assignment.peer):<{width}}  {windows}  {_residency(assignment)}"
        yield from _wrapped(text, indent=" " * (width + 4))


def _residency(assignment: Assignment) -> str:
    if not assignment.streamed:
        return "all in memory"
    late, buffers = len(assignment.streamed), assignment.num_buffers
    return (
        f"{late} of {len(assignment.layers)} layers from disk for every token,"
        f" through {buffers} buffer{'s' * (buffers > 1)}"
    )


def _memory_rows(devices: Sequence[DevicePrediction]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("", "layers", "buffers", "KV", "other", "total", "budget")]
    for device in devices:
        ends = device.embedding_bytes + device.head_bytes + device.workspace_bytes
        sizes = (
            device.resident_bytes,
            device.buffer_bytes,
            device.kv_bytes,
            ends,
            device.total_bytes,
            device.budget_bytes,
        )
        rows.append((short(device.peer), *(size(value) if value else "-" for value in sizes)))
    return rows


def _prediction(prediction: Prediction) -> Iterator[str]:
    rows = [
        ("first token", f"{seconds(prediction.ttft_s)}"),
        ("each token", f"{seconds(prediction.tpot_s)} ({prediction.tokens_per_s:.1f} tokens/s)"),
        ("many clients", f"{prediction.throughput_tokens_per_s:.1f} tokens/s together"),
    ]
    if prediction.streamed_bytes_per_token:
        rows.append(("from disk", f"{size(prediction.streamed_bytes_per_token)} per token"))
    for what, text in rows:
        yield f"  {what:<12}  {text}"
    heads = ("each token, of it", "compute", "disk wait", "network")
    yield from table(
        [
            heads,
            *(
                (short(d.peer), seconds(d.compute_s), seconds(d.stall_s), seconds(d.network_s))
                for d in prediction.devices
            ),
        ]
    )


def _size_rows(request: SolveRequest, solution: Solution) -> list[tuple[str, ...]]:
    chosen = len(solution.plan.assignments)
    heads = ("devices", "rounds", "first token", "each token", "tokens/s", "from disk per token")
    return [
        heads,
        *(
            (
                f"{row.num_devices}{' *' * (row.num_devices == chosen)}",
                str(row.rounds),
                seconds(row.ttft_s),
                seconds(row.tpot_s),
                f"{request.batch / row.tpot_s:.1f}",
                size(row.streamed_bytes_per_token) if row.streamed_bytes_per_token else "-",
            )
            for row in solution.sizes
        ),
    ]


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(text, COLUMNS, initial_indent="  ", subsequent_indent=indent)
