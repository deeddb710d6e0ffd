"""How good a ring can be at best: lower bounds for many rings at once, so that few programs are solved.

All are for layers alike (the mean layer); each is a number that no plan of the family can beat.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dnet_core.solve.cost import Patterns
from dnet_core.solve.problem import Bools, Floats, Ints, Problem
from dnet_core.solve.ring_order import Rings

BISECTIONS = 16
"""On a logarithmic scale: from a thousandfold range to one part in ten thousand."""
NUM_PRICES = 48
IMPOSSIBLE = 1e15
"""The cost of a device that can hold nothing: finite, so that zero times it is zero."""
SLACK = 1 + 1e-9
"""Rounding never cuts off a plan that fits to the byte."""

Tables = Callable[[int, int, bool, bool], Patterns]


def time_bounds(problem: Problem, rings: Rings, rounds: Ints) -> tuple[Floats, Floats]:
    """The TPOT (throughput: the slowest stage) and the score that no plan on each of `rings` can beat.

    `rounds` [rings]; the score is infinite where nothing fits. For a TPOT of T a device computes at most T
    and streams at most T / read layers, so it owns at most so many. The bound is the least T at which the
    layers find room and the lap fits into T, by bisection.
    """
    count, (layer, kv) = problem.num_layers, (problem.weight_bytes.mean(), problem.kv_bytes.mean())
    compute: Floats = problem.compute_s.mean(axis=1)
    read: Floats = problem.read_s.mean(axis=1)
    rows = np.arange(len(rings))
    room: Floats = np.repeat(problem.budget_bytes[None, :].astype(np.float64), len(rings), axis=0)
    room -= problem.workspace_bytes
    room[rows, rings.head] -= problem.embedding_bytes
    room[rows, rings.tail] -= problem.head_bytes
    resident = np.where(rings.member, np.floor(np.maximum(room, 0.0) / (layer + kv) * SLACK), 0.0)
    all_streamed = (room - layer) / kv * SLACK if kv else np.where(room >= layer, float(count), 0.0)
    hop = rings.hop_s(rounds) + problem.head_s[rings.tail]
    member = rings.member.astype(np.float64)
    least: Floats = member * rounds[:, None]

    def most_layers(seconds: Floats) -> Floats:
        if not problem.request.allow_streaming:
            return np.minimum(resident, count)
        late = np.floor(seconds[:, None] / read[None, :] * SLACK)
        streaming = np.floor(np.minimum((room + (late - 1) * layer) / (layer + kv) * SLACK, all_streamed))
        return np.where(rings.member, np.clip(np.where(late >= 2, streaming, 0.0), resident, count), 0.0)

    def possible(seconds: Floats) -> tuple[Bools, Floats]:
        most = most_layers(seconds)
        enough = np.all(most >= least, axis=1) & (most.sum(axis=1) >= count)
        return enough, hop + cheapest(most, compute, least, count)

    high = np.full(len(rings), 2 * count * float((compute + read).max())) + hop
    fits, _ = possible(high)
    slowest: Floats = count / (rings.member / compute[None, :]).sum(axis=1)
    low = slowest if problem.throughput else hop + cheapest(member * count, compute, least, count)
    for _ in range(BISECTIONS):
        middle = np.sqrt(low * high)
        enough, lap = possible(middle)
        reached = enough & (problem.throughput | (lap <= middle))
        high, low = np.where(reached, middle, high), np.where(reached, low, middle)
    # Several rounds without streaming only cost hops: so then two layers at least are read for each token.
    twice = 2 * np.where(rings.member, read[None, :], np.inf).min(axis=1)
    low = np.where(rounds > 1, np.maximum(low, twice), low)
    last_chunk: Floats = problem.last_chunk_s.mean(axis=1)
    full = problem.chunk_s.mean(axis=1)
    prompt = rings.prompt_hop_s(rounds) + problem.head_s[rings.tail]
    prompt += cheapest(member * count, last_chunk, least, count)
    prompt += (problem.num_chunks - 1) * count / (rings.member / full[None, :]).sum(axis=1)
    slowest = np.maximum(low, slowest)
    if problem.throughput:
        return slowest, np.where(fits, slowest, np.inf)
    return low, np.where(fits, prompt + problem.answer_tokens * low, np.inf)


def cheapest(most: Floats, seconds: Floats, least: Floats, count: int) -> Floats:
    """The least sum of `seconds` for `count` layers, between `least` and `most` [rings, devices]."""
    fastest = np.argsort(seconds, kind="stable")
    room = (most - least)[:, fastest]
    before = np.cumsum(room, axis=1) - room
    left = (count - least.sum(axis=1))[:, None]
    taken = np.clip(left - before, 0.0, room)
    return np.asarray(least @ seconds + taken @ seconds[fastest], dtype=np.float64)


def price_bounds(problem: Problem, rings: Rings, rounds: int, tables: Tables) -> Floats:
    """Bounds from a price per layer (Lagrange): for any price, no plan costs less than

        price * L + sum over devices of the cheapest (turns and prefill - price * layers) + hops.

    It knows what `time_bounds` does not: that with few rounds the disks wait for one another. Embedding and
    head are taken to need no memory, so that one table per device is enough.
    """
    if problem.throughput:
        return np.zeros(len(rings))
    answer = problem.answer_tokens
    used = np.nonzero(rings.member.any(axis=0))[0].tolist()
    table = {d: tables(d, rounds, False, False) for d in used}
    values = {d: answer * table[d].turns_s + table[d].last_stage_s for d in used}
    slopes = [float((values[d] / table[d].layers).max()) for d in used if len(table[d])]
    least = answer * float(problem.compute_s.mean(axis=1).min())
    prices = np.geomspace(least / 2, 8 * max([least, *slopes]), NUM_PRICES)
    cheapest_of = np.full((problem.num_devices, NUM_PRICES), IMPOSSIBLE)
    for d in used:
        if len(table[d]):
            cheapest_of[d] = (values[d] - prices[:, None] * table[d].layers).min(axis=1)
    total = rings.member.astype(np.float64) @ cheapest_of + prices * problem.num_layers
    full = problem.chunk_s.mean(axis=1)
    stages = (problem.num_chunks - 1) * problem.num_layers / (rings.member / full).sum(axis=1)
    head = (answer + 1) * problem.head_s[rings.tail]
    hops = answer * rings.hop_s(rounds) + rings.prompt_hop_s(rounds)
    return np.asarray(total.max(axis=1) + hops + head + stages)
