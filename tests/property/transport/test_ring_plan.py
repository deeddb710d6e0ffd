"""A ring plan that exists tiles the layers; what does not is refused when it is made."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dnet_core.types.ring import Assignment, LayerWindow, RingPlan, split_evenly

peers = st.integers(1, 6).map(lambda n: tuple(f"p{i}" for i in range(n)))


def plan(*assignments: Assignment, num_layers: int = 4, rounds: int = 1, kv_bits: int = 16) -> RingPlan:
    return RingPlan("m", num_layers, rounds, 512, kv_bits, assignments)


def owns(peer: str, *windows: tuple[int, int]) -> Assignment:
    return Assignment(peer, tuple(LayerWindow(*window) for window in windows), (), 0)


@given(peers=peers, num_layers=st.integers(1, 60), rounds=st.integers(1, 8))
def test_an_even_split_tiles_the_layers(peers: tuple[str, ...], num_layers: int, rounds: int) -> None:
    assume(num_layers >= len(peers) * rounds)
    found = split_evenly("m", num_layers, peers, rounds, 512)
    assert [layer for window, _ in found.path for layer in window.layers] == list(range(num_layers))
    assert tuple(a.peer for a in found.assignments) == peers
    assert found.rounds == rounds
    sizes = [len(window) for window, _ in found.path]
    assert max(sizes) - min(sizes) <= 1
    assert [peer for _, peer in found.path] == [peers[i % len(peers)] for i in range(len(sizes))]
    assert found.head == peers[0]
    assert all(a.resident == a.layers for a in found.assignments)


@given(peers=peers, num_layers=st.integers(1, 5), rounds=st.integers(1, 3))
def test_more_windows_than_layers_are_refused(peers: tuple[str, ...], num_layers: int, rounds: int) -> None:
    assume(num_layers < len(peers) * rounds)
    with pytest.raises(ValueError, match=f"{num_layers} layers"):
        split_evenly("m", num_layers, peers, rounds, 512)


UNLAWFUL = {
    "a gap": lambda: plan(owns("a", (0, 1)), owns("b", (2, 4))),
    "an overlap": lambda: plan(owns("a", (0, 3)), owns("b", (2, 4))),
    "not from the start": lambda: plan(owns("a", (1, 2)), owns("b", (2, 4))),
    "not to the end": lambda: plan(owns("a", (0, 1)), owns("b", (1, 3))),
    "beyond the end": lambda: plan(owns("a", (0, 1)), owns("b", (1, 5))),
    "nobody": plan,
    "a peer twice": lambda: plan(owns("a", (0, 2)), owns("a", (2, 4))),
    "more rounds than windows": lambda: plan(owns("a", (0, 2)), owns("b", (2, 4)), rounds=2),
    "fewer rounds than windows": lambda: plan(owns("a", (0, 1), (2, 4)), owns("b", (1, 2))),
    "an odd number of bits": lambda: plan(owns("a", (0, 4)), kv_bits=5),
    "a peer without layers": lambda: owns("a"),
    "layers streamed that are not owned": lambda: Assignment("a", (LayerWindow(0, 2),), (2,), 1),
    "streamed without buffers": lambda: Assignment("a", (LayerWindow(0, 2),), (1,), 0),
    "buffers without streamed": lambda: Assignment("a", (LayerWindow(0, 2),), (), 1),
    "more buffers than streamed": lambda: Assignment("a", (LayerWindow(0, 2),), (1,), 2),
    "an empty window": lambda: LayerWindow(2, 2),
    "a window backwards": lambda: LayerWindow(3, 2),
    "a window below zero": lambda: LayerWindow(-1, 2),
}


@pytest.mark.parametrize("what", UNLAWFUL)
def test_what_is_not_lawful_is_refused(what: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        UNLAWFUL[what]()


def test_rounds_go_round() -> None:
    found = plan(owns("a", (0, 1), (2, 3)), owns("b", (1, 2), (3, 4)), rounds=2)
    assert [peer for _, peer in found.path] == ["a", "b", "a", "b"]
    assert (found.head, found.tail) == ("a", "b")
