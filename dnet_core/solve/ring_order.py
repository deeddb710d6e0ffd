"""Which rings there are: every subset of the devices with its head, its tail and the cheapest way between
them.

For layers alike, only who is head and who is tail matters to memory and compute; the order of the others
matters to the hops alone. So a ring is (subset, head, tail), its order the cheapest path (Held and Karp,
1962), and the MILP chooses among rings. Up to `EXACT_DEVICES` devices all subsets are looked at; of more,
those of a few orders.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from dnet_core.solve.problem import Bools, Floats, Ints, Problem

EXACT_DEVICES = 9
"""2^9 subsets x 72 (head, tail) pairs are looked at in milliseconds; each more device doubles that."""


@dataclass(frozen=True, slots=True)
class Rings:
    """Rings as columns of numbers, one entry each.

    `path` [rings, devices] has the device indices from head to tail, then -1; `member` [rings, devices].
    `forward_s` is the hops from head to tail for one token's activation, `closing_s` the hop from tail to
    head with an activation (between two rounds), `token_s` with a sampled token; `chunk_*` the same for the
    last prefill chunk.
    """

    path: Ints
    member: Bools
    head: Ints
    tail: Ints
    forward_s: Floats
    closing_s: Floats
    token_s: Floats
    chunk_forward_s: Floats
    chunk_closing_s: Floats

    def __len__(self) -> int:
        return len(self.path)

    @property
    def sizes(self) -> Ints:
        return np.asarray(self.member.sum(axis=1), dtype=np.int64)

    @property
    def subsets(self) -> Ints:
        """A number per ring, the same for the same devices."""
        return np.asarray(
            self.member @ (1 << np.arange(self.member.shape[1], dtype=np.int64)), dtype=np.int64
        )

    def order(self, ring: int) -> tuple[int, ...]:
        """Device indices from head to tail."""
        return tuple(int(d) for d in self.path[ring] if d >= 0)

    def hop_s(self, rounds: Ints | int) -> Floats:
        """Seconds on the wire per token, for `rounds` rounds (one number, or one per ring)."""
        return _laps(self.forward_s, self.closing_s, self.token_s, rounds)

    def prompt_hop_s(self, rounds: Ints | int) -> Floats:
        """Seconds on the wire of the last chunk of a prompt and of the first token."""
        return _laps(self.chunk_forward_s, self.chunk_closing_s, self.token_s, rounds)

    def take(self, chosen: Ints | Bools) -> Rings:
        """The rings at `chosen` (indices or a mask)."""
        return Rings(*(getattr(self, field.name)[chosen] for field in fields(self)))


def _laps(forward: Floats, closing: Floats, token: Floats, rounds: Ints | int) -> Floats:
    """With one round no activation goes back to the head: a missing link (infinite) must not count."""
    again = np.asarray(rounds) - 1
    return np.asarray(rounds * forward + again * np.where(again > 0, closing, 0.0) + token)


def rings(problem: Problem) -> Rings:
    """All rings worth a look, in a fixed order: fewer devices first, then by the devices' own order."""
    paths = _cheapest_paths(problem) if problem.num_devices <= EXACT_DEVICES else _nested_paths(problem)
    found = price(problem, paths)
    wanted = found.sizes <= problem.num_layers
    for pin in problem.request.pins:
        wanted &= found.member[:, problem.peers.index(pin.peer)]
    if problem.request.head_device is not None:
        wanted &= found.head == problem.peers.index(problem.request.head_device)
    found = found.take(wanted)
    keys = (*(found.path[:, i] for i in reversed(range(problem.num_devices))), found.sizes)
    return _without_twins(problem, found.take(np.lexsort(keys)))


def with_one_more(problem: Problem, order: tuple[int, ...], d: int) -> Rings:
    """The rings that `order` makes with device `d` in any of its places."""
    orders = [(*order[:place], d, *order[place:]) for place in range(len(order) + 1)]
    paths = np.full((len(orders), problem.num_devices), -1, dtype=np.int64)
    paths[:, : len(order) + 1] = orders
    found = price(problem, paths)
    if problem.request.head_device is not None:
        found = found.take(found.head == problem.peers.index(problem.request.head_device))
    return found


def price(problem: Problem, paths: Ints) -> Rings:
    """The rings with these paths and what their hops cost; those without a needed link are gone."""
    count = problem.num_devices
    sizes = (paths >= 0).sum(axis=1)
    head, tail = paths[:, 0], paths[np.arange(len(paths)), sizes - 1]
    member = (paths[:, :, None] == np.arange(count)).any(axis=1)
    source, target = paths[:, :-1], paths[:, 1:]

    def along(hops: Floats) -> Floats:
        return np.asarray(np.where(target >= 0, hops[source, target], 0.0).sum(axis=1))

    priced = Rings(
        paths,
        member,
        head,
        tail,
        forward_s=along(problem.hop_s),
        closing_s=problem.hop_s[tail, head],
        token_s=problem.token_hop_s[tail, head],
        chunk_forward_s=along(problem.last_chunk_hop_s),
        chunk_closing_s=problem.last_chunk_hop_s[tail, head],
    )
    return priced.take(np.isfinite(priced.hop_s(1)))


def _cheapest_paths(problem: Problem) -> Ints:
    """For every subset, head and tail the path with the least time on the wire of a typical request."""
    count = problem.num_devices
    weight = problem.answer_tokens * problem.hop_s + problem.last_chunk_hop_s
    best = np.full((1 << count, count, count), np.inf)  # [subset, head, tail]
    before = np.zeros((1 << count, count, count), dtype=np.int64)
    for d in range(count):
        best[1 << d, d, d] = 0.0
    for subset in range(1, 1 << count):
        through = best[subset][:, :, None] + weight[None, :, :]  # [head, old tail, new tail]
        # Of ties the last device: read from the tail, the others then come in their own order.
        old = count - 1 - through[:, ::-1, :].argmin(axis=1)
        least = np.take_along_axis(through, old[:, None, :], axis=1)[:, 0, :]
        for new in range(count):
            if not subset >> new & 1:
                best[subset | 1 << new, :, new] = least[:, new]
                before[subset | 1 << new, :, new] = old[:, new]
    subsets, heads, last = np.nonzero(np.isfinite(best))
    paths = np.full((len(subsets), count), -1, dtype=np.int64)
    at = np.bitwise_count(subsets).astype(np.int64) - 1
    rest, rows = subsets.copy(), np.arange(len(subsets))
    while len(rows):
        paths[rows, at[rows]] = last[rows]
        rows = rows[at[rows] > 0]
        tail = last[rows]
        last[rows] = before[rest[rows], heads[rows], tail]
        rest[rows] &= ~(1 << tail)
        at[rows] -= 1
    return paths


def _nested_paths(problem: Problem) -> Ints:
    """Rings of many devices: the first 1, 2, ... of the fastest, the roomiest, the best connected.

    Each from a few heads, the others by nearest neighbour. Not exhaustive.
    """
    count = problem.num_devices
    hops = np.where(np.isfinite(problem.hop_s), problem.hop_s, 1e9)
    compute, budget = problem.compute_s.mean(axis=1), np.maximum(1.0, problem.budget_bytes)
    wires = np.median(hops, axis=0) + np.median(hops, axis=1)
    orders: set[tuple[int, ...]] = set()
    for key in (compute, -budget, wires, compute / budget, wires / budget):
        ranked = [int(d) for d in np.argsort(key, kind="stable")]
        for size in range(1, count + 1):
            members = sorted(ranked[:size])
            heads = {members[0], ranked[0]}
            heads |= {d for d in members if problem.peers[d] == problem.request.head_device}
            orders.update(_nearest(hops, members, head) for head in sorted(heads))
    paths = np.full((len(orders), count), -1, dtype=np.int64)
    for row, order in enumerate(sorted(orders)):
        paths[row, : len(order)] = order
    return paths


def _nearest(hops: Floats, members: list[int], head: int) -> tuple[int, ...]:
    order, left = [head], [d for d in members if d != head]
    while left:
        closest = min(left, key=lambda d: (hops[order[-1], d], d))
        left.remove(closest)
        order.append(closest)
    return tuple(order)


def _without_twins(problem: Problem, found: Rings) -> Rings:
    """Of rings that differ only in which of several identical devices takes which place, keep the first."""
    kinds = np.array(_kinds(problem))
    if len(set(kinds.tolist())) == problem.num_devices:
        return found
    middle = found.member.copy()
    rows = np.arange(len(found))
    middle[rows, found.head] = False
    middle[rows, found.tail] = False
    counts = np.stack([(middle & (kinds == kind)).sum(axis=1) for kind in np.unique(kinds)], axis=1)
    wires = np.stack([getattr(found, f.name) for f in fields(found) if f.name.endswith("_s")], axis=1)
    keys = np.concatenate([kinds[found.head, None], kinds[found.tail, None], counts, wires], axis=1)
    _, first = np.unique(keys, axis=0, return_index=True)
    return found.take(np.sort(first))


def _kinds(problem: Problem) -> list[int]:
    """A number per device, the same for devices that only differ in their links; a pinned one has its own."""
    pinned = {pin.peer for pin in problem.request.pins}
    seen: dict[tuple[object, ...], int] = {}
    return [
        seen.setdefault(
            (
                problem.compute_s[d].tobytes(),
                problem.read_s[d].tobytes(),
                problem.chunk_s[d].tobytes(),
                problem.last_chunk_s[d].tobytes(),
                float(problem.head_s[d]),
                int(problem.budget_bytes[d]),
                peer if peer in pinned else "",
            ),
            d,
        )
        for d, peer in enumerate(problem.peers)
    ]
