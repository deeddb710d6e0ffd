"""What runs where: layer windows, their assignment to peers, and the ring they form.

    peer A            peer B            peer C                rounds = 2
    [0, 2)  --------> [2, 4)  --------> [4, 5)   --+
      +--------------------------------------------+
    [5, 7)  --------> [7, 9)  --------> [9, 10)  --> norm, head, sampler

A plan that exists tiles `[0, num_layers)`: every layer runs exactly once per token, in order.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class LayerWindow:
    """The half-open range of layers `[start, stop)`, never empty."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"not a layer window: [{self.start}, {self.stop})")

    def __len__(self) -> int:
        return self.stop - self.start

    def __contains__(self, layer: int) -> bool:
        return self.start <= layer < self.stop

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"

    @property
    def layers(self) -> range:
        return range(self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Assignment:
    """The layers of one peer: at most one window per round, in round order.

    `streamed` are the owned layers that are read from disk for every use, `num_buffers` how many of
    them may be in memory at once; both are empty / zero when everything is resident.
    """

    peer: str
    windows: tuple[LayerWindow, ...]
    streamed: tuple[int, ...]
    num_buffers: int

    def __post_init__(self) -> None:
        if not self.windows:
            raise ValueError(f"{self.peer} has no layers: leave it out of the ring instead")
        owned = set(self.layers)
        if not set(self.streamed) <= owned:
            raise ValueError(f"{self.peer} streams layers it does not own")
        if bool(self.streamed) != (self.num_buffers > 0) or self.num_buffers > len(self.streamed):
            raise ValueError(
                f"{self.peer}: {self.num_buffers} buffers for {len(self.streamed)} streamed layers"
            )

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(layer for window in self.windows for layer in window.layers)

    @property
    def resident(self) -> tuple[int, ...]:
        streamed = set(self.streamed)
        return tuple(layer for layer in self.layers if layer not in streamed)


@dataclass(frozen=True, slots=True)
class RingPlan:
    """Who runs which layers of `model`, in ring order: the first has the embedding, the last the head.

    Every lap goes once round: each peer has one window per round, in ring order.

    `kv_bits` is 16 (the model's own dtype), 8 or 4; `context_tokens` is the length for which KV memory
    is set aside, per sequence.
    """

    model: str
    num_layers: int
    rounds: int
    context_tokens: int
    kv_bits: int
    assignments: tuple[Assignment, ...]

    def __post_init__(self) -> None:
        if self.kv_bits not in (4, 8, 16):
            raise ValueError(f"kv_bits must be 16, 8 or 4, not {self.kv_bits}")
        names = [a.peer for a in self.assignments]
        if len(set(names)) != len(names):
            raise ValueError(f"a peer appears twice in the ring: {', '.join(names)}")
        for assignment in self.assignments:
            if len(assignment.windows) != self.rounds:
                raise ValueError(
                    f"{assignment.peer} has {len(assignment.windows)} windows for {self.rounds} rounds:"
                    " every device runs one per round"
                )
        reached = 0
        for window, peer in self.path:
            if window.start != reached:
                raise ValueError(f"{peer} runs {window}, but the ring has reached layer {reached}")
            reached = window.stop
        if reached != self.num_layers:
            raise ValueError(f"the ring ends at layer {reached} of {self.num_layers}")

    @property
    def path(self) -> tuple[tuple[LayerWindow, str], ...]:
        """The way of one token: every window with its peer, in the order in which they run."""
        return tuple((a.windows[r], a.peer) for r in range(self.rounds) for a in self.assignments)

    @property
    def head(self) -> str:
        """The peer with the embedding."""
        return self.path[0][1]

    @property
    def tail(self) -> str:
        """The peer with the norm, the LM head and the sampler."""
        return self.path[-1][1]


def split_evenly(
    model: str, num_layers: int, peers: tuple[str, ...], rounds: int, context_tokens: int
) -> RingPlan:
    """Give each of `peers` the same number of resident layers (earlier ones get the remainder).

    Raises ValueError when there are fewer layers than windows.
    """
    slots = len(peers) * rounds
    if num_layers < slots:
        raise ValueError(f"{num_layers} layers cannot be split into {slots} windows")
    size, extra = divmod(num_layers, slots)
    windows: dict[str, list[LayerWindow]] = {peer: [] for peer in peers}
    start = 0
    for slot in range(slots):
        stop = start + size + (1 if slot < extra else 0)
        windows[peers[slot % len(peers)]].append(LayerWindow(start, stop))
        start = stop
    return RingPlan(
        model=model,
        num_layers=num_layers,
        rounds=rounds,
        context_tokens=context_tokens,
        kv_bits=16,
        assignments=tuple(Assignment(p, tuple(w), (), 0) for p, w in windows.items()),
    )
