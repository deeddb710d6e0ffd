"""What a plan costs: the only place where the formulas are.

One turn of a device (its window of one round), with its `B` buffers full when the token arrives:

    compute   | l0 | l1 | l2 | l3 |        all resident, or at most B streamed: the sum of the layers
    disk           |--- read l3 ---|       more: the first streamed layer frees a buffer, the reads follow,
    compute   | l0 |  l1 | l2 |    | l3 |  and the turn ends when the last streamed layer is computed

A lap is all turns and hops; a token is `rounds` laps, but never less than the slowest disk needs for all that
it streams, nor than it takes to fill the buffers again after a turn. `predict` evaluates any plan on exact
per-layer numbers; `patterns` tabulates the same formulas over all (layers, streamed, buffers) of one device
for layers that are alike, which the MILP chooses from.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from dnet_core.solve.problem import Bools, Floats, Ints, Problem
from dnet_core.solve.steady import steady_tpot_s
from dnet_core.types.plan import DevicePrediction, Prediction
from dnet_core.types.ring import Assignment, LayerWindow, RingPlan

THROUGHPUT_TIE = 1e-6
"""Weight of the typical request when throughput is asked for: it only settles ties between slowest stages."""


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """Seconds of one device: per decoded token, and per prefill chunk (the last one and a full one)."""

    turns_s: float
    compute_s: float
    disk_s: float
    last_stage_s: float
    full_stage_s: float

    @property
    def busy_s(self) -> float:
        """What the device needs for a token when other streams fill its pauses."""
        return max(self.compute_s, self.disk_s)


def turn_s(compute_s: Floats, read_s: Floats, streamed: Sequence[int], num_buffers: int) -> float:
    """Seconds of one turn, buffers full at its start.

    `compute_s`, `read_s` [layers of the window]; `streamed` are positions in it, ascending. Exact for layers
    alike that are streamed evenly (`spread`) and for reads that take longer than computes.
    """
    total = float(compute_s.sum())
    if len(streamed) <= num_buffers:
        return total
    chain = compute_s[: streamed[0] + 1].sum() + compute_s[streamed[-1] :].sum()
    chain += sum(read_s[layer] for layer in streamed[num_buffers:])
    if num_buffers == 1:  # a single buffer is not free while its layer computes
        chain += sum(compute_s[layer] for layer in streamed[1:-1])
    return max(total, float(chain))


def again_s(compute_s: Floats, read_s: Floats, streamed: Sequence[int], num_buffers: int) -> float:
    """Seconds of a lap below which a window's first buffers cannot be full again; 0 when nothing streams.

    The buffer of the last streamed layer gets the layer that was `num_buffers` before it, for the next token.
    """
    if len(streamed) < num_buffers or not streamed:
        return 0.0
    first, last = streamed[num_buffers - 1], streamed[-1]
    return float(compute_s[first : last + 1].sum() + read_s[first])


def spread(window: LayerWindow, count: int) -> tuple[int, ...]:
    """Choose `count` layers of `window` to stream: both ends, the others evenly between.

    The first frees its buffer at once and the last leaves the reads most time: no other choice is faster.
    """
    if count <= 1:
        return (window.start,) * count
    return tuple(window.start + round(i * (len(window) - 1) / (count - 1)) for i in range(count))


def is_regular(assignment: Assignment, rounds: int) -> bool:
    """Whether every round streams the same number of layers, evenly spread: then the formulas are exact."""
    late = set(assignment.streamed)
    inside = [tuple(layer for layer in window.layers if layer in late) for window in assignment.windows]
    same = len(inside) == rounds and len({len(chosen) for chosen in inside}) == 1
    spreads = [spread(w, len(chosen)) for w, chosen in zip(assignment.windows, inside, strict=True)]
    return not late or (same and inside == spreads)


def _is_uneven(plan: RingPlan) -> bool:
    """Whether laps differ so much that a disk may wait in one for what it had to spare in another.

    A buffer that must be read again for every lap is what that touches.
    """
    laps = [sum(len(a.windows[lap]) for a in plan.assignments) for lap in range(plan.rounds)]
    tight = any(a.streamed and a.num_buffers * plan.rounds <= len(a.streamed) for a in plan.assignments)
    return tight and len(set(laps)) > 1


def even(total: int, rounds: int) -> tuple[int, ...]:
    """Split `total` over `rounds` as equally as can be; earlier rounds get the remainder."""
    size, extra = divmod(total, rounds)
    return tuple(size + (r < extra) for r in range(rounds))


def device_cost(problem: Problem, assignment: Assignment, tail: bool) -> DeviceCost:
    """Cost of one assignment by exact per-layer sums; `tail` adds norm and LM head."""
    d = problem.peers.index(assignment.peer)
    compute, read = problem.compute_s[d], problem.read_s[d]
    streamed = set(assignment.streamed)
    turns = again = 0.0
    for window in assignment.windows:
        part = slice(window.start, window.stop)
        inside = [layer - window.start for layer in window.layers if layer in streamed]
        turns += turn_s(compute[part], read[part], inside, assignment.num_buffers)
        again += again_s(compute[part], read[part], inside, assignment.num_buffers)
    owned, late = list(assignment.layers), list(assignment.streamed)
    head = float(problem.head_s[d]) if tail else 0.0

    def disk(work: Floats) -> float:
        alone = float(work[late].sum()) if assignment.num_buffers == 1 else 0.0
        return float(read[late].sum()) + alone

    def stage(work: Floats) -> float:
        return max(float(work[owned].sum()), disk(work))

    return DeviceCost(
        turns_s=turns + head,
        compute_s=float(compute[owned].sum()) + head,
        disk_s=max(disk(compute), again),
        last_stage_s=stage(problem.last_chunk_s[d]) + head,  # the head sees the last position only
        full_stage_s=stage(problem.chunk_s[d]),
    )


def score(problem: Problem, tpot_s: float, ttft_s: float, slowest_stage_s: float) -> float:
    """The number that the solver minimises, in seconds."""
    request_s = ttft_s + problem.answer_tokens * tpot_s
    return slowest_stage_s + THROUGHPUT_TIE * request_s if problem.throughput else request_s


def combine(
    problem: Problem, costs: Sequence[DeviceCost], hop_s: float, prompt_hop_s: float
) -> tuple[float, float, float]:
    """TPOT, TTFT and slowest stage of a ring, from its devices' costs and the hops of a token and a chunk."""
    tpot = max(sum(c.turns_s for c in costs) + hop_s, *(c.disk_s for c in costs))
    full = max(c.full_stage_s for c in costs)
    ttft = sum(c.last_stage_s for c in costs) + (problem.num_chunks - 1) * full + prompt_hop_s
    return tpot, ttft, max(c.busy_s for c in costs)


def predict(plan: RingPlan, problem: Problem) -> Prediction:
    """Say what `plan` does, whether or not it fits (see `check`); it may be edited by hand.

    The token time of a plan outside the solver's family comes from the ring's own recurrence (`steady`). A
    ring over a pair without a link costs infinite time.
    """
    costs = [device_cost(problem, a, a.peer == plan.tail) for a in plan.assignments]
    network = dict.fromkeys(problem.peers, 0.0)
    prompt_hop = 0.0
    path = [problem.peers.index(peer) for _, peer in plan.path]
    for source, target in itertools.pairwise(path):
        network[problem.peers[source]] += float(problem.hop_s[source, target])
        prompt_hop += float(problem.last_chunk_hop_s[source, target])
    back = float(problem.token_hop_s[path[-1], path[0]])
    network[problem.peers[path[-1]]] += back
    tpot, ttft, slowest = combine(problem, costs, sum(network.values()), prompt_hop + back)
    if not all(is_regular(a, plan.rounds) for a in plan.assignments) or _is_uneven(plan):
        tpot = steady_tpot_s(plan, problem)
    return Prediction(
        prompt_tokens=problem.prompt_tokens,
        answer_tokens=problem.answer_tokens,
        chunk_tokens=problem.request.chunk_tokens,
        batch=problem.request.batch,
        ttft_s=ttft,
        tpot_s=tpot,
        slowest_stage_s=slowest,
        devices=tuple(
            _device_prediction(problem, plan, a, cost, network[a.peer])
            for a, cost in zip(plan.assignments, costs, strict=True)
        ),
    )


def _device_prediction(
    problem: Problem, plan: RingPlan, assignment: Assignment, cost: DeviceCost, network_s: float
) -> DevicePrediction:
    d = problem.peers.index(assignment.peer)
    weights = problem.weight_bytes
    resident, late = list(assignment.resident), list(assignment.streamed)
    return DevicePrediction(
        peer=assignment.peer,
        num_layers=len(assignment.layers),
        resident_bytes=int(weights[resident].sum()),
        buffer_bytes=assignment.num_buffers * max((int(weights[layer]) for layer in late), default=0),
        kv_bytes=int(problem.kv_bytes[list(assignment.layers)].sum()),
        embedding_bytes=problem.embedding_bytes if assignment.peer == plan.head else 0,
        head_bytes=problem.head_bytes if assignment.peer == plan.tail else 0,
        workspace_bytes=problem.workspace_bytes,
        budget_bytes=int(problem.budget_bytes[d]),
        compute_s=cost.compute_s,
        stall_s=cost.turns_s - cost.compute_s,
        disk_s=cost.disk_s,
        network_s=network_s,
        streamed_bytes_per_token=int(weights[late].sum()),
        prefill_stage_s=cost.full_stage_s,
    )


def check(plan: RingPlan, problem: Problem) -> dict[str, int]:
    """Bytes by which each device of `plan` is over its budget; empty when the plan fits."""
    over: dict[str, int] = {}
    for assignment in plan.assignments:
        needed = memory_bytes(problem, assignment, assignment.peer == plan.head, assignment.peer == plan.tail)
        missing = needed - int(problem.budget_bytes[problem.peers.index(assignment.peer)])
        if missing > 0:
            over[assignment.peer] = missing
    return over


def memory_bytes(problem: Problem, assignment: Assignment, head: bool, tail: bool) -> int:
    """All the memory that `assignment` takes: weights, buffers, KV of all rounds, workspace, tables."""
    weights = problem.weight_bytes
    largest = max((int(weights[layer]) for layer in assignment.streamed), default=0)
    return (
        int(weights[list(assignment.resident)].sum())
        + assignment.num_buffers * largest
        + int(problem.kv_bytes[list(assignment.layers)].sum())
        + fixed_bytes(problem, head, tail)
    )


def fixed_bytes(problem: Problem, head: bool, tail: bool) -> int:
    """What a device needs beside its layers."""
    return problem.workspace_bytes + problem.embedding_bytes * head + problem.head_bytes * tail


@dataclass(frozen=True, slots=True)
class Share:
    """What one device gets: how many layers, how many of them streamed, through how many buffers."""

    layers: int
    streamed: int
    buffers: int


@dataclass(frozen=True, slots=True)
class Patterns:
    """All sensible (layers, streamed, buffers) of one device in one role, one entry each, with their cost."""

    layers: Ints
    streamed: Ints
    buffers: Ints
    turns_s: Floats
    compute_s: Floats
    disk_s: Floats
    last_stage_s: Floats
    full_stage_s: Floats

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def busy_s(self) -> Floats:
        return np.maximum(self.compute_s, self.disk_s)

    def alone_score(self, problem: Problem, hop_s: float) -> Floats:
        """What each pattern scores if the rest of the ring cost nothing but its hops."""
        token = np.maximum(self.turns_s + hop_s, self.disk_s)
        request = problem.answer_tokens * token + self.last_stage_s
        return np.asarray(self.busy_s if problem.throughput else request)

    def cost(self, i: int) -> DeviceCost:
        """The cost of entry `i`."""
        return DeviceCost(*(float(getattr(self, f.name)[i]) for f in fields(DeviceCost)))

    def share(self, i: int) -> Share:
        """What entry `i` gives the device."""
        return Share(int(self.layers[i]), int(self.streamed[i]), int(self.buffers[i]))


def patterns(problem: Problem, d: int, rounds: int, head: bool, tail: bool) -> Patterns:
    """Tabulate device `d` for layers alike: from `rounds` layers (one per round) to all that it can hold.

    For each number of layers: everything resident if that fits, else for each number of streamed layers (the
    same in every round) as many buffers as fit. Patterns that are worse than one that streams less are left
    out.
    """
    layers, streamed, buffers, lawful = _grid(problem, d, rounds, fixed_bytes(problem, head, tail))
    compute, read = float(problem.compute_s[d].mean()), float(problem.read_s[d].mean())
    head_s = float(problem.head_s[d]) if tail else 0.0
    each, alone = streamed // rounds, buffers == 1
    steps = np.maximum(each - 1, 1)

    def turn(window: Ints) -> tuple[Floats, Floats]:
        chain = 2 * compute + (each - buffers) * read + alone * (each - 2) * compute
        wait = np.where(each > buffers, chain, 0.0)
        spaced = np.where(each > 1, window - np.rint((buffers - 1) * (window - 1) / steps), 1)
        again = np.where((each >= buffers) & (each > 0), spaced * compute + read, 0.0)
        return np.maximum(window * compute, wait), again

    short, long = turn(layers // rounds), turn(layers // rounds + 1)
    extra = layers % rounds
    turns = extra * long[0] + (rounds - extra) * short[0] + head_s
    again = extra * long[1] + (rounds - extra) * short[1]
    disk = np.maximum(streamed * read + alone * streamed * compute, again)

    def stage(work: float) -> Floats:
        return np.asarray(np.maximum(layers * work, streamed * read + alone * streamed * work))

    last = stage(float(problem.last_chunk_s[d].mean())) + head_s
    full = stage(float(problem.chunk_s[d].mean()))
    kept = lawful & (_improves(turns, lawful) | _improves(disk, lawful) | _improves(full, lawful))
    return Patterns(
        layers=np.broadcast_to(layers, kept.shape)[kept],
        streamed=np.broadcast_to(streamed, kept.shape)[kept],
        buffers=buffers[kept],
        turns_s=turns[kept],
        compute_s=np.broadcast_to(layers * compute + head_s, kept.shape)[kept],
        disk_s=disk[kept],
        last_stage_s=last[kept],
        full_stage_s=full[kept],
    )


def _improves(seconds: Floats, lawful: Bools) -> Bools:
    """Where `seconds` is less than in every lawful column before it."""
    tried = np.where(lawful, seconds, np.inf)
    before = np.full_like(tried, np.inf)
    before[:, 1:] = np.minimum.accumulate(tried, axis=1)[:, :-1]
    return np.asarray(tried < before)


def _grid(problem: Problem, d: int, rounds: int, fixed: int) -> tuple[Ints, Ints, Ints, Bools]:
    """All (layers, streamed) as rows and columns, how many buffers each can have, and which fit."""
    layer, kv = float(problem.weight_bytes.mean()), float(problem.kv_bytes.mean())
    room = int(problem.budget_bytes[d]) - fixed
    layers = np.arange(rounds, problem.num_layers + 1, dtype=np.int64)[:, None]
    if problem.uniform:  # exact integers
        slots = (room - layers * int(kv)) // int(layer)
    else:
        slots = np.floor((room - layers * kv) / layer).astype(np.int64)
    most = problem.num_layers if problem.request.allow_streaming and (slots < layers).any() else 0
    streamed = np.arange(0, most + 1, rounds, dtype=np.int64)[None, :]
    # More buffers than a window has streamed layers only matter when it has one: two, and the disk never
    # rests.
    buffers = np.minimum(streamed - (layers - slots), np.maximum(2, streamed // rounds))
    buffers = np.where(streamed > 0, np.minimum(buffers, streamed - 1), 0)
    lawful = np.where(streamed > 0, (buffers >= 1) & (streamed <= layers) & (slots < layers), slots >= layers)
    return layers, streamed, buffers, np.asarray(lawful)
