"""Everything known of one device, in lines: why it has what it has, memory, times, links."""

from __future__ import annotations

from rich.cells import cell_len
from rich.style import Style

from dnet_core.types.plan import DevicePrediction
from dnet_tui.figures import DeviceFigures, device_figures
from dnet_tui.look import Look, fg
from dnet_tui.state import letters, link_of
from dnet_tui.units import bytes_text, chip_text, flops_text, hop_text, medium_text, ms_text
from dnet_tui.widgets.device_card import UNKNOWN, meter, sparks, wrapped
from dnet_tui.widgets.panel import Line, Panel

_LABEL = 10
_NOT_MEASURED = "not measured yet: a device is measured when a model is placed"


class DeviceFacts(Panel):
    """Paints the device `name` of `view`."""

    DEFAULT_CSS = "DeviceFacts { height: auto; }"

    def __init__(self, name: str) -> None:
        super().__init__()
        self._device = name

    def lines(self, width: int, room: int, look: Look) -> list[Line]:
        found = next((f for f in device_figures(self.view) if f.name == self._device), None)
        if found is None:
            return [[("nobody knows this device any more", look.dim)]]
        facts = _Facts(found, width, look)
        lines = facts.problem()
        lines += facts.machine()
        lines += [[], *facts.plan()]
        lines += [[], *facts.memory()]
        lines += [[], *facts.times()]
        links = self._links(found, look)
        return [*lines, [], *links] if links else lines

    def _links(self, own: DeviceFigures, look: Look) -> list[Line]:
        """The measured hops to every other device."""
        named = letters(self.view)
        lines: list[Line] = []
        for name, letter in named.items():
            there = link_of(self.view, own.name, name)
            if there is None:
                continue
            back = link_of(self.view, name, own.name)
            trip = hop_text(there.latency_s + back.latency_s) if back is not None else UNKNOWN
            is_next = own.hop is not None and own.hop.name == name
            color = look.device(list(named).index(name))
            lines.append(
                [
                    (("next" if is_next else "").ljust(_LABEL), look.dim),
                    (f"→ {letter} {name}"[:18].ljust(19), fg(color, bold=is_next)),
                    (trip.rjust(9), look.text),
                    (f"{bytes_text(there.bytes_per_s)}/s".rjust(12), look.text),
                    (f"   {medium_text(there.medium)}", look.text),
                ]
            )
        if not lines:
            return []
        head = f"{'Links':<{_LABEL}}{'':<19}{'round trip':>9}{'rate':>11}   over"
        return [[(head, look.dim)], *lines]


class _Facts:
    """The parts of what is painted."""

    def __init__(self, figures: DeviceFigures, width: int, look: Look) -> None:
        self._f = figures
        self._width = width
        self._look = look

    def _told(self, label: str, text: str, style: Style | None = None, most: int = 4) -> list[Line]:
        lines = wrapped(text, self._width - _LABEL, most)
        style = style or self._look.text
        return [
            [((label if index == 0 else "").ljust(_LABEL), self._look.dim), (line, style)]
            for index, line in enumerate(lines)
        ]

    def problem(self) -> list[Line]:
        f = self._f
        if f.problem is None:
            return []
        word = "Lost" if f.is_lost else "Not used"
        return [*self._told(word, f.problem, self._look.bad), []]

    def machine(self) -> list[Line]:
        f, profile = self._f, self._f.profile
        found = f.device.peer.source.value if f.device is not None else "plan"
        version = f.device.peer.version if f.device is not None else UNKNOWN
        where = f.where if f.where == "this machine" else f"{f.where}, found by {found}"
        if profile is None:
            lines = self._told("Machine", _NOT_MEASURED, self._look.dim)
        else:
            flops = flops_text(f.flops_per_s) if f.flops_per_s is not None else UNKNOWN
            rest = f" · {profile.os} · MLX {profile.mlx_version}"
            fits = cell_len(profile.chip + rest) <= self._width - _LABEL
            lines = self._told("Machine", (profile.chip if fits else chip_text(profile.chip)) + rest)
            lines += self._told(
                "", f"{flops} ({profile.backend}) · {bytes_text(profile.memory_bytes_per_s)}/s memory"
            )
            disk = f"{bytes_text(profile.disk_read_bytes_per_s)}/s"
            if f.split is not None and f.split.read_s > 0:
                disk += f" · {bytes_text(f.split.read_bytes / f.split.read_s)}/s while streaming"
            lines += self._told("Disk", disk)
        return [*lines, *self._told("Where", f"{where} · dnet {version}")]

    def plan(self) -> list[Line]:
        f = self._f
        if f.assignment is None:
            lines = self._told("Layers", "none: not in the ring")
        else:
            late, buffers = len(f.assignment.streamed), f.assignment.num_buffers
            disk = f" · {late} from disk through {buffers} buffer{'s' * (buffers > 1)}" if late else ""
            lines = self._told("Layers", f"{f.windows_text} · {len(f.assignment.resident)} in RAM{disk}")
        return [*lines, *self._told("Why", f.reason)] if f.reason else lines

    def memory(self) -> list[Line]:
        f, look = self._f, self._look
        parts = [
            ("used", f.used_bytes),
            ("peak", f.peak_bytes),
            ("for models", f.budget_bytes),
            ("in all", f.total_bytes),
        ]
        told = " · ".join(
            f"{name} {bytes_text(size) if size is not None else UNKNOWN}" for name, size in parts
        )
        lines = self._told("Memory", told)
        if f.used_bytes is not None and f.total_bytes:
            tick = None if f.budget_bytes is None else f.budget_bytes / f.total_bytes
            bar = meter(min(48, self._width - _LABEL), f.used_bytes / f.total_bytes, tick)
            color = fg(look.device(f.index))
            lines.append(
                [(" " * _LABEL, look.text), *((text, color if on else look.dim) for text, on in bar)]
            )
        if f.predicted is not None:
            lines += self._told("planned", planned_text(f.predicted), look.dim)
        return lines

    def times(self) -> list[Line]:
        """Measured beside predicted, and the recent tokens as bars."""
        f, look = self._f, self._look
        split, predicted = f.split, f.predicted
        if split is None and predicted is None:
            return self._told("Per token", "nothing measured yet", look.dim)
        head = f"{'Per token':<{_LABEL}}{'':<12}{'measured':>10}{'predicted':>12}"
        lines: list[Line] = [[(head, look.dim)]]
        measured = (
            (split.compute_s, split.disk_s, split.network_s, split.total_s) if split is not None else None
        )
        planned = None
        if predicted is not None:
            parts = (predicted.compute_s, predicted.stall_s, predicted.network_s)
            planned = (*parts, sum(parts))
        for index, name in enumerate(("compute", "disk wait", "network", "all")):
            left = f"{ms_text(measured[index])} ms" if measured is not None else UNKNOWN
            right = f"{ms_text(planned[index])} ms" if planned is not None else UNKNOWN
            text = f"{'':<{_LABEL}}{name:<12}{left:>10}{right:>12}"
            lines.append([(text, look.text + Style(bold=name == "all"))])
        if split is not None:
            bars = sparks(f.history_s, max(f.history_s, default=0.0), self._width - _LABEL - 12)
            lines.append([(f"{'':<{_LABEL}}{'newest':<12}", look.dim), (bars, fg(look.device(f.index)))])
        return lines


def planned_text(predicted: DevicePrediction) -> str:
    """What the plan takes on a device, part by part."""
    parts = [
        ("layers", predicted.resident_bytes),
        ("buffers", predicted.buffer_bytes),
        ("KV", predicted.kv_bytes),
        ("embedding", predicted.embedding_bytes),
        ("head", predicted.head_bytes),
        ("workspace", predicted.workspace_bytes),
        ("free", predicted.free_bytes),
    ]
    return " · ".join(f"{name} {bytes_text(size)}" for name, size in parts if size)
