"""Which streamed layers are in memory: a pure decision, taken whenever a layer begins or is done.

With two buffers and layers 3..6 streamed, in the order in which they are used, for ever round:

    running   before 3   3   4   5   6   3   ...
    held      3 4        3 4 4 5 5 6 6 3 3 4     the one that runs, and those that run next

So the layer that runs stays, reads come in the order of use, and a layer that is done makes room for the one
that is needed soonest. Everything resident is the case in which nothing is streamed: there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with the buffers, in this order.

    drop    layers in memory that are not needed soon
    cancel  reads that are not wanted, or that stand in front of one that is needed sooner; one that has begun
            keeps its buffer until it ends
    read    layers to read, in this order, as far as there are buffers; one of them may be just being read
    """

    drop: tuple[int, ...]
    cancel: tuple[int, ...]
    read: tuple[int, ...]


def decide(
    upcoming: Iterable[int], in_memory: Collection[int], pending: Sequence[int], num_buffers: int
) -> Decision:
    """Keep and read the first `num_buffers` different layers of `upcoming`, in that order.

    `upcoming` are streamed layers in the order of use, the running one first while it runs; `pending` those
    whose reads were asked for and are not done, in the order in which they will be.
    """
    wanted = _first_different(upcoming, num_buffers)
    missing = tuple(layer for layer in wanted if layer not in in_memory)
    num_kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(pending, missing, strict=False)))
    return Decision(
        drop=tuple(layer for layer in in_memory if layer not in wanted),
        cancel=tuple(pending[num_kept:]),
        read=missing[num_kept:],
    )


def cycle_from(order: tuple[int, ...], layer: int) -> Iterator[int]:
    """`order` once round, beginning with `layer`: after the last window of a token comes the next token."""
    at = order.index(layer)
    yield from order[at:]
    yield from order[:at]


def cycle_after(order: tuple[int, ...], layer: int) -> Iterator[int]:
    """`order` once round, beginning behind `layer`, which comes last."""
    at = order.index(layer) + 1
    yield from order[at:]
    yield from order[:at]


def _first_different(layers: Iterable[int], count: int) -> tuple[int, ...]:
    found: dict[int, None] = {}
    for layer in layers:
        if len(found) == count:
            break
        found[layer] = None
    return tuple(found)
