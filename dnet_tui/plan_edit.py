"""A placement in the hands of a person: windows and residency, changed one step at a time.

An `Edit` tiles the layers like the plan it was taken from; a step that cannot be made raises NoStep with the
reason. Whether it fits the devices is not known here: the solver says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dnet_core.types.ring import LayerWindow, RingPlan


class NoStep(Exception):
    """The step cannot be made; says why to a person."""


@dataclass(frozen=True, slots=True)
class Edit:
    """`path` is the way of a token: (peer, window) in the order in which they run."""

    path: tuple[tuple[str, LayerWindow], ...]
    num_resident: Mapping[str, int] = field(default_factory=dict)
    """Of devices for which it was set by hand; elsewhere as many layers stay in memory as fit."""

    @property
    def windows(self) -> dict[str, tuple[LayerWindow, ...]]:
        found: dict[str, tuple[LayerWindow, ...]] = {}
        for peer, window in self.path:
            found[peer] = (*found.get(peer, ()), window)
        return found

    def num_layers(self, peer: str) -> int:
        return sum(len(window) for owner, window in self.path if owner == peer)


def edit_of(plan: RingPlan, kept: Mapping[str, int] | None = None) -> Edit:
    """The placement of `plan`; `kept` are residencies that were set by hand before."""
    own = {assignment.peer for assignment in plan.assignments}
    path = tuple((peer, window) for window, peer in plan.path)
    return Edit(path, {peer: count for peer, count in (kept or {}).items() if peer in own})


def grow(edit: Edit, slot: int, count: int) -> Edit:
    """Give window `slot` `count` layers more (fewer if negative), from the next window; the last from the one
    before. Moves as far as can be; raises NoStep when not even one layer can.
    """
    if len(edit.path) == 1:
        raise NoStep("one device has all layers: take another in first")
    is_last = slot == len(edit.path) - 1
    other = slot - 1 if is_last else slot + 1
    most = len(edit.path[other][1]) - 1 if count > 0 else len(edit.path[slot][1]) - 1
    step = min(abs(count), most)
    if step == 0:
        name = edit.path[other if count > 0 else slot][0]
        raise NoStep(f"{name} has only one layer here: leave it out instead")
    boundary = edit.path[slot][1].start if is_last else edit.path[slot][1].stop
    return move_boundary(edit, min(slot, other), boundary + step * (1 if (count > 0) != is_last else -1))


def move_boundary(edit: Edit, slot: int, layer: int) -> Edit:
    """Let window `slot` end, and the next begin, at `layer`, as near as both keep a layer."""
    (before, left), (after, right) = edit.path[slot], edit.path[slot + 1]
    layer = max(left.start + 1, min(right.stop - 1, layer))
    pair = ((before, LayerWindow(left.start, layer)), (after, LayerWindow(layer, right.stop)))
    path = (*edit.path[:slot], *pair, *edit.path[slot + 2 :])
    changed = replace(edit, path=path)
    kept = {peer: min(n, changed.num_layers(peer)) for peer, n in edit.num_resident.items()}
    return replace(changed, num_resident=kept)


def keep(edit: Edit, peer: str, count: int) -> Edit:
    """Keep `count` layers of `peer` in memory."""
    own = edit.num_layers(peer)
    if count < 0:
        raise NoStep(f"all {own} layers of {peer} stream from disk already")
    if count > own:
        raise NoStep(f"all {own} layers of {peer} stay in memory already")
    return replace(edit, num_resident={**edit.num_resident, peer: count})


def join(edit: Edit, peer: str) -> Edit:
    """Take `peer` in at the end of the ring, with the last layer."""
    owner, window = edit.path[-1]
    if len(edit.windows[owner]) > 1:
        raise NoStep("with several rounds a device cannot be taken in by hand")
    if len(window) == 1:
        raise NoStep(f"{owner} has only one layer: give it more first")
    last = (peer, LayerWindow(window.stop - 1, window.stop))
    return replace(edit, path=(*edit.path[:-1], (owner, LayerWindow(window.start, window.stop - 1)), last))
