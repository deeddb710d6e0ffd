"""All that is known of each device, gathered from a view for the widgets that show it.

A figure that nobody has told is None here and `–` on the screen.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnet_core.types.devices import PeerSource
from dnet_core.types.plan import DevicePrediction
from dnet_core.types.profiles import DeviceProfile
from dnet_core.types.ring import Assignment
from dnet_tui.state import (
    ClusterView,
    Device,
    Loading,
    StageSplit,
    assignment_of,
    device_prediction,
    letters,
    link_of,
    next_in_ring,
    profile_of,
    reason_of,
    stage_history,
    stage_splits,
)
from dnet_tui.units import layers_text
from dnet_tui.work import Transfer


@dataclass(frozen=True, slots=True)
class HopFigures:
    """The way from a device to the next of the ring; times and rates None while they are not measured."""

    name: str
    letter: str
    medium: str | None
    round_trip_s: float | None
    bytes_per_s: float | None


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """One device; `index` gives it its colour."""

    name: str
    letter: str
    index: int
    device: Device | None  # None: in the plan, but never seen
    profile: DeviceProfile | None
    flops_per_s: float | None  # prefill, with the model's weights
    assignment: Assignment | None
    hop: HopFigures | None
    split: StageSplit | None
    history_s: tuple[float, ...]
    predicted: DevicePrediction | None
    reason: str | None
    fetch: Transfer | None
    """The model's files on their way to it."""
    read: Transfer | None
    """Its layers on their way into memory, while the model is loaded."""

    @property
    def problem(self) -> str | None:
        """Why the device cannot take part."""
        if self.device is None:
            return None
        return self.device.lost or self.device.peer.cannot_join

    @property
    def is_lost(self) -> bool:
        return self.device is not None and self.device.lost is not None

    @property
    def used_bytes(self) -> int | None:
        memory = self.device.memory if self.device is not None else None
        return None if memory is None else memory.active_bytes

    @property
    def peak_bytes(self) -> int | None:
        memory = self.device.memory if self.device is not None else None
        return None if memory is None else memory.peak_bytes

    @property
    def total_bytes(self) -> int | None:
        if self.device is not None and self.device.memory is not None:
            return self.device.memory.memory_total_bytes
        return None if self.profile is None else self.profile.memory_total_bytes

    @property
    def budget_bytes(self) -> int | None:
        """What the plan may take: as it was measured for the plan, else as the shard says."""
        if self.profile is not None:
            return self.profile.memory_budget_bytes
        memory = self.device.memory if self.device is not None else None
        return None if memory is None else memory.budget_bytes

    @property
    def where(self) -> str:
        if self.device is None:
            return "not seen"
        if self.device.peer.source is PeerSource.LOCAL:
            return "this machine"
        return self.device.peer.target

    @property
    def windows_text(self) -> str:
        """`L0–13`, `L0–6 28–34`: its layers, window by window."""
        if self.assignment is None:
            return "not in the ring"
        return "L" + " ".join(layers_text(w.start, w.stop) for w in self.assignment.windows)

    @property
    def short_windows_text(self) -> str:
        """The same where there is less room: `L0–34 ×5`."""
        if self.assignment is None:
            return "–"
        first, last = self.assignment.windows[0], self.assignment.windows[-1]
        rounds = len(self.assignment.windows)
        span = layers_text(first.start, last.stop)
        return f"L{span} ×{rounds}" if rounds > 1 else f"L{span}"


def device_figures(view: ClusterView) -> tuple[DeviceFigures, ...]:
    """Every device, in the order of their letters."""
    splits, named = stage_splits(view), letters(view)
    seen = {device.peer.name: device for device in view.devices}
    return tuple(
        DeviceFigures(
            name=name,
            letter=letter,
            index=index,
            device=seen.get(name),
            profile=(profile := profile_of(view, name)),
            flops_per_s=_flops(view, profile),
            assignment=assignment_of(view, name),
            hop=hop_figures(view, name, named),
            split=splits.get(name),
            history_s=stage_history(view, name) if name in splits else (),
            predicted=device_prediction(view, name),
            reason=reason_of(view, name),
            fetch=view.model.fetches.get(name) if isinstance(view.model, Loading) else None,
            read=view.model.progress.get(name) if isinstance(view.model, Loading) else None,
        )
        for index, (name, letter) in enumerate(named.items())
    )


def hop_figures(view: ClusterView, name: str, named: dict[str, str]) -> HopFigures | None:
    target = next_in_ring(view, name)
    if target is None:
        return None
    there, back = link_of(view, name, target), link_of(view, target, name)
    if there is None:
        return HopFigures(target, named[target], None, None, None)
    round_trip_s = None if back is None else there.latency_s + back.latency_s
    return HopFigures(target, named[target], there.medium, round_trip_s, there.bytes_per_s)


def _flops(view: ClusterView, profile: DeviceProfile | None) -> float | None:
    if view.facts is None or profile is None:
        return None
    wanted = view.facts.model.weight_format
    return next((s.prefill_flops_per_s for s in profile.speeds if s.weight_format == wanted), None)
