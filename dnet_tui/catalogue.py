"""The models to choose from as frozen rows: what the picker paints, in the order in which it paints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dnet_core.types.models import Fits, ModelEntry, ModelFit, ModelOrigin, Room, TooBig
from dnet_tui.arrival import Arrival, Part
from dnet_tui.units import bytes_text, duration_text, progress_bytes_text, seconds_text
from dnet_tui.work import Transfer

_GOOD_BYTES = (1.5e9, 8e9)
"""A small good model: not a toy, and fetched in minutes."""
_READING_TOKENS_PER_S = 4.0
"""Who reads along waits for what is slower."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nothing can be said of whether a model fits, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Row:
    """One model; `fit` is None until it has been computed."""

    entry: ModelEntry
    fit: ModelFit | Unknown | None
    transfer: Transfer | None  # a download to this machine, beside everything else
    is_loaded: bool
    arrival: Arrival | None = None  # while it is being loaded

    @property
    def missing_bytes(self) -> int | None:
        """What would have to be fetched to this machine; None while its size is not known."""
        if self.entry.is_here:
            return 0
        return None if self.size_bytes is None else max(0, self.size_bytes - self.entry.here_bytes)

    @property
    def size_bytes(self) -> int | None:
        if isinstance(self.fit, Fits | TooBig) and self.entry.size_bytes is None:
            return self.fit.weight_bytes
        return self.entry.size_bytes

    @property
    def num_layers(self) -> int | None:
        known = self.fit.num_layers if isinstance(self.fit, Fits | TooBig) else None
        return known or self.entry.num_layers


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What is known now. `searched` are the words that `found` answers; `problem` why the hub does not."""

    here: tuple[ModelEntry, ...] = ()
    well_known: tuple[ModelEntry, ...] = ()
    found: tuple[ModelEntry, ...] = ()
    searched: str = ""
    is_searching: bool = False
    problem: str | None = None
    fits: Mapping[str, ModelFit | Unknown] = field(default_factory=dict)
    transfers: Mapping[str, Transfer] = field(default_factory=dict)
    loaded: str | None = None
    arrival: Arrival | None = None
    elsewhere: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Of each device of another machine that has said so the models that it has."""
    local: tuple[str, ...] = ()
    """The devices of this machine; what is here they have."""
    remote: tuple[str, ...] = ()
    room: Room | None = None
    is_measuring: bool = False

    def sections(self, wanted: str = "") -> tuple[Section, ...]:
        """Models that have all words of `wanted`: those here, well-known ones, what the hub has found.

        What fits comes first, then what streams, then what is too big; the order inside is by size.
        """
        here = self._rows(self.here, wanted, set())
        known = {row.entry.id for row in here}
        listed = self._rows(self.well_known, wanted, known)
        known |= {row.entry.id for row in listed}
        sections = [Section("on this machine", here), Section("well known", listed)]
        if self.searched:
            sections.append(Section(f"on the hub: {self.searched}", self._rows(self.found, "", known)))
        return tuple(section for section in sections if section.rows)

    def _rows(self, entries: tuple[ModelEntry, ...], wanted: str, known: set[str]) -> tuple[Row, ...]:
        words = wanted.lower().split()
        rows = (
            Row(
                entry,
                self.fits.get(entry.id),
                self.transfers.get(entry.id),
                entry.id == self.loaded,
                self.arrival if self.arrival is not None and self.arrival.model == entry.id else None,
            )
            for entry in entries
            if entry.id not in known and all(word in entry.id.lower() for word in words)
        )
        return tuple(sorted(rows, key=_order))

    def preselected(self) -> str | None:
        """What is loaded or will be, else what is suggested; None while nothing is known."""
        if self.arrival is not None:
            return self.arrival.model
        return self.loaded or self.suggested()

    def suggested(self) -> str | None:
        """The smallest good model that fits and is as fast as one reads; None while none is known to."""
        rows = [row for section in self.sections() for row in section.rows]
        fits = [(row, row.fit) for row in rows if isinstance(row.fit, Fits)]
        fitting = [
            row for row, fit in fits if not fit.num_streamed and fit.tokens_per_s >= _READING_TOKENS_PER_S
        ]
        good = [row for row in fitting if _GOOD_BYTES[0] <= (row.size_bytes or 0) <= _GOOD_BYTES[1]]
        chosen = min(good or fitting, key=lambda row: row.size_bytes or 0, default=None)
        return chosen.entry.id if chosen is not None else None


def _order(row: Row) -> tuple[bool, int, float]:
    return (not row.is_loaded, _rank(row.fit), row.size_bytes or float("inf"))


def _rank(fit: ModelFit | Unknown | None) -> int:
    match fit:
        case Fits(num_streamed=0):
            return 0
        case Fits():
            return 1
        case TooBig():
            return 3
        case _:
            return 2


def fit_text(fit: ModelFit | Unknown | None, *, is_short: bool = False) -> str:
    """`fits · 22.4 tok/s`, `streams 12 layers · 0.6 tok/s`, `too big: 31 GB short`."""
    match fit:
        case None:
            return "…"
        case Unknown():
            return "not known"
        case TooBig(missing_bytes=missing):
            return f"too big: {bytes_text(missing)} short" if missing else "too big"
        case Fits(num_streamed=0):
            return f"fits · {speed_text(fit.tokens_per_s)}"
        case Fits(num_streamed=streamed):
            layers = "" if is_short else " layers"
            return f"streams {streamed}{layers} · {speed_text(fit.tokens_per_s)}"


def speed_text(tokens_per_s: float) -> str:
    digits = 0 if tokens_per_s >= 99.5 else 1 if tokens_per_s >= 0.95 else 2
    return f"{tokens_per_s:.{digits}f} tok/s"


def fit_sentence(row: Row) -> str:
    """What the detail line says of the highlighted model."""
    match row.fit:
        case None:
            return "what it would do here is being computed"
        case Unknown(why=why):
            return why
        case TooBig(reason=reason):
            return reason
        case Fits() as fit:
            devices = "1 device" if fit.num_devices == 1 else f"{fit.num_devices} devices"
            layers = f"{fit.num_layers} layers on {devices}"
            if fit.num_streamed:
                layers += f", {fit.num_streamed} of them read from disk for every token"
            basis = "" if fit.is_measured else ", estimated from another weight format"
            speed = f"about {speed_text(fit.tokens_per_s)}, a prompt of 1k tok takes {_wait_text(fit.ttft_s)}"
            return f"{layers}: {speed}{basis}"


def _wait_text(seconds: float) -> str:
    return seconds_text(seconds) if seconds < 99.5 else duration_text(seconds)


def state_text(row: Row) -> str:
    """Where the model's files are, and what is left to fetch."""
    entry = row.entry
    if row.is_loaded:
        return "loaded"
    if row.arrival is not None:
        return f"{row.arrival.step} …"
    if entry.origin is ModelOrigin.PARTIAL and entry.size_bytes:
        return f"{entry.here_bytes / entry.size_bytes:.0%} fetched, goes on from there"
    if entry.is_gated:
        return "gated: accept its licence on the hub and set HF_TOKEN"
    return "on this machine" if entry.is_here else "not fetched yet"


def holders_text(row: Row, catalogue: Catalogue) -> str:
    """Which devices have the model; empty where this machine is the only one."""
    if not catalogue.remote:
        return ""
    model, told = row.entry.id, catalogue.elsewhere
    having = [
        *(catalogue.local if row.entry.is_here else ()),
        *(name for name in catalogue.remote if model in told.get(name, ())),
    ]
    lacking = [name for name in catalogue.remote if name in told and model not in told[name]]
    silent = [name for name in catalogue.remote if name not in told]
    parts = [f"on {', '.join(having)}"] if having else [] if silent else ["on no device"]
    parts += [f"{', '.join(lacking)}: fetched there when it loads"] if lacking else []
    parts += [f"{', '.join(silent)}: has not said yet"] if silent else []
    return " · ".join(parts)


def part_text(part: Part, now_s: float) -> str:
    """What one device does while the model is loaded: fetches, reads, or neither yet."""
    if part.fetch is not None:
        return f"fetches {part.fetch.text(now_s)}"
    if part.read is None:
        return "waits"
    if not part.read.missing:
        return f"has loaded {bytes_text(part.read.total_bytes)}"
    return f"loads {part.read.text(now_s)}"


def download_question(row: Row, room: Room | None) -> tuple[str, bool]:
    """What a download takes and what is free, and whether it can begin."""
    missing = row.missing_bytes
    if room is None:
        free = "what is free on the disk is not known"
    else:
        free = f"{bytes_text(room.free_bytes)} are free in {room.folder}"
    if missing is None:
        return f"its size is not known yet; {free}", True
    rest = f" ({progress_bytes_text(row.entry.here_bytes, row.size_bytes or 0)} are here)"
    need = f"{bytes_text(missing)} to fetch{rest if row.entry.here_bytes else ''}; {free}"
    return need, room is None or missing <= room.free_bytes
