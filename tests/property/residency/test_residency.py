"""Streamed layers in few buffers: bounded, never evicted while needed, always there when their turn comes.

A disk that reads in order, one at a time, and cannot be stopped within a read, is driven by `decide` alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, pairwise, repeat

from hypothesis import given
from hypothesis import strategies as st

from dnet_core.slices.residency import Decision, cycle_after, cycle_from, decide


class Buffers:
    """Held layers, in the order in which their reads were asked for; the first `in_memory` have been read."""

    def __init__(self, num_buffers: int) -> None:
        self.num_buffers = num_buffers
        self.in_memory: set[int] = set()
        self.reading: list[int] = []  # the first has begun
        self.num_reads = 0

    @property
    def held(self) -> tuple[int, ...]:
        return (*self.in_memory, *self.reading)

    def arrange(self, upcoming: Iterable[int]) -> None:
        decision = decide(upcoming, self.in_memory, self.reading, self.num_buffers)
        for layer in decision.drop:
            self.in_memory.remove(layer)
        for layer in decision.cancel:
            if layer != self.reading[0]:
                self.reading.remove(layer)
                self.num_reads -= 1
        for layer in decision.read:
            if layer not in self.held and len(self.held) < self.num_buffers:
                self.reading.append(layer)
                self.num_reads += 1
        assert len(self.held) <= self.num_buffers
        assert len(set(self.held)) == len(self.held)

    def finish_one(self) -> None:
        self.in_memory.add(self.reading.pop(0))

    def use(self, order: tuple[int, ...], layer: int, reads_meanwhile: int) -> int:
        """Run `layer`; returns for how many reads it had to wait."""
        waits = 0
        self.arrange(cycle_from(order, layer))
        while layer not in self.in_memory:
            self.finish_one()
            waits += 1
            self.arrange(cycle_from(order, layer))
        for _ in range(reads_meanwhile):
            if self.reading:
                self.finish_one()
            assert layer in self.in_memory, "the running layer lost its buffer"
        self.arrange(cycle_after(order, layer))
        return waits


orders = st.integers(1, 12).map(lambda n: tuple(range(3, 3 + n)))


@given(orders, st.integers(1, 12), st.data())
def test_any_order_of_use_is_served(order: tuple[int, ...], num_buffers: int, data: st.DataObject) -> None:
    """Several sessions at once make an order of use that nobody can foresee."""
    buffers = Buffers(min(num_buffers, len(order)))
    for layer in data.draw(st.lists(st.sampled_from(order), max_size=60)):
        waits = buffers.use(order, layer, data.draw(st.integers(0, 4)))
        assert waits <= 2, "at most for the read that cannot be stopped, and for its own"


@given(orders, st.integers(1, 12), st.integers(0, 3), st.integers(1, 4))
def test_in_the_order_of_tokens_every_layer_is_read_once_per_token(
    order: tuple[int, ...], num_buffers: int, reads_meanwhile: int, tokens: int
) -> None:
    buffers = Buffers(min(num_buffers, len(order)))
    for layer in order * tokens:
        assert buffers.use(order, layer, reads_meanwhile) <= 1
    if buffers.num_buffers == len(order):
        assert buffers.num_reads == len(order), "with a buffer for each, all stay"
    else:
        ahead = buffers.num_buffers
        assert buffers.num_reads == len(order) * tokens + ahead


@given(orders, st.integers(2, 12))
def test_a_disk_that_keeps_up_is_never_waited_for(order: tuple[int, ...], num_buffers: int) -> None:
    buffers = Buffers(min(num_buffers, len(order)))
    waits = [buffers.use(order, layer, reads_meanwhile=1) for layer in order * 3]
    assert sum(waits) == 1, "the first layer's own read only"


subsets = st.lists(st.integers(3, 14), max_size=6, unique=True)


@given(orders, st.integers(1, 12), subsets, st.integers(0, 6))
def test_a_decision_keeps_what_is_needed_soonest(
    order: tuple[int, ...], num_buffers: int, held: list[int], num_in_memory: int
) -> None:
    held = [layer for layer in held if layer in order][:num_buffers]
    in_memory, pending = held[:num_in_memory], held[num_in_memory:]
    decision = decide(order, in_memory, pending, num_buffers)
    kept = [layer for layer in in_memory if layer not in decision.drop]
    reads = [layer for layer in pending if layer not in decision.cancel] + list(decision.read)
    assert sorted(kept + reads) == sorted(order[:num_buffers])
    assert all(a < b for a, b in pairwise(reads)), "reads come in the order of use"
    assert not (set(kept) - set(order[:num_buffers]))


@given(orders)
def test_cycles_go_once_round(order: tuple[int, ...]) -> None:
    for at, layer in enumerate(order):
        assert (*cycle_from(order, layer),) == order[at:] + order[:at]
        assert (*cycle_after(order, layer),) == order[at + 1 :] + order[: at + 1]


def test_an_endless_order_is_read_no_further_than_needed() -> None:
    assert decide(chain((4, 4, 5), repeat(4)), (), (), 2).read == (4, 5)


def test_nothing_streamed_is_nothing_to_do() -> None:
    assert decide((), (), (), 0) == Decision((), (), ())
