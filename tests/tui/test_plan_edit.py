"""Plans changed by hand: whatever is done, the windows tile the layers, and a step that cannot be says so."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnet_core.types.ring import Assignment, LayerWindow, RingPlan, split_evenly
from dnet_tui.plan_edit import Edit, NoStep, edit_of, grow, join, keep, move_boundary

PLAN = split_evenly("m", 10, ("x", "y", "z"), 1, 128)  # 4, 3, 3


def lengths(edit: Edit) -> list[int]:
    return [len(window) for _, window in edit.path]


steps = st.lists(
    st.tuples(st.sampled_from(["grow", "move", "keep", "join"]), st.integers(0, 20), st.integers(-12, 12)),
    max_size=20,
)


@given(st.integers(1, 3), st.integers(1, 3), steps)
def test_every_edit_tiles_the_layers(devices: int, rounds: int, made: list[tuple[str, int, int]]) -> None:
    names = ("x", "y", "z")[:devices]
    edit = edit_of(split_evenly("m", 24, names, rounds, 128))
    for what, where, count in made:
        slot = where % len(edit.path)
        try:
            match what:
                case "grow":
                    edit = grow(edit, slot, count or 1)
                case "move" if len(edit.path) > 1:
                    edit = move_boundary(edit, where % (len(edit.path) - 1), 12 + count)
                case "keep":
                    edit = keep(edit, edit.path[slot][0], abs(count))
                case "join" if "new" not in edit.windows:
                    edit = join(edit, "new")
        except NoStep:
            continue
        assert edit.path[0][1].start == 0
        assert edit.path[-1][1].stop == 24
        assert all(a.stop == b.start for (_, a), (_, b) in pairwise(edit.path))
        assert all(0 <= n <= edit.num_layers(peer) for peer, n in edit.num_resident.items())
        windows = edit.windows
        RingPlan("m", 24, max(map(len, windows.values())), 128, 16,
                 tuple(Assignment(peer, own, (), 0) for peer, own in windows.items()))  # fmt: skip


def test_a_window_grows_into_the_next_and_the_last_into_the_one_before() -> None:
    edit = edit_of(PLAN)
    assert lengths(grow(edit, 0, 1)) == [5, 2, 3]
    assert lengths(grow(edit, 0, -2)) == [2, 5, 3]
    assert lengths(grow(edit, 2, 1)) == [4, 2, 4]
    assert lengths(grow(edit, 2, -1)) == [4, 4, 2]
    assert lengths(grow(edit, 0, 99)) == [6, 1, 3], "as far as can be"


def test_steps_that_cannot_be_say_why() -> None:
    edit = grow(edit_of(PLAN), 0, 99)
    with pytest.raises(NoStep, match="y has only one layer"):
        grow(edit, 0, 1)
    with pytest.raises(NoStep, match="y has only one layer"):
        grow(edit, 1, -1)
    with pytest.raises(NoStep, match="take another in first"):
        grow(edit_of(split_evenly("m", 4, ("x",), 1, 128)), 0, 1)
    with pytest.raises(NoStep, match="all 6 layers of x stay in memory"):
        keep(edit, "x", 7)
    with pytest.raises(NoStep, match="stream from disk already"):
        keep(edit, "x", -1)
    with pytest.raises(NoStep, match="several rounds"):
        join(edit_of(split_evenly("m", 8, ("x", "y"), 2, 128)), "z")


def test_residency_follows_the_layers() -> None:
    edit = keep(edit_of(PLAN), "x", 4)
    assert grow(edit, 0, -2).num_resident == {"x": 2}, "no more than there are"
    streamed = RingPlan("m", 4, 1, 128, 16, (Assignment("x", (LayerWindow(0, 4),), (2, 3), 1),))
    assert edit_of(streamed).num_resident == {}, "what was not set by hand is the solver's to decide"
    assert edit_of(streamed, {"x": 2, "gone": 1}).num_resident == {"x": 2}
    assert join(edit_of(PLAN), "new").path[-1] == ("new", LayerWindow(9, 10))
