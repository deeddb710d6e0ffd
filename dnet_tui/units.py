"""Numbers as people read them, each with its unit."""

from __future__ import annotations

_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB")


def count_text(count: int) -> str:
    """`812`, `1.2k`, `41k`, `1.3M`."""
    if count < 1000:
        return str(count)
    if count < 9_950:
        return f"{count / 1000:.1f}k"
    if count < 999_500:
        return f"{count / 1000:.0f}k"
    return f"{count / 1_000_000:.1f}M"


def progress_bytes_text(done_bytes: int, total_bytes: int) -> str:
    """`31/98 MB`: both in the unit of the total (powers of 1000)."""
    power = 0
    while total_bytes >= 1000 ** (power + 1) and power < len(_BYTE_UNITS) - 1:
        power += 1
    scale = 1000**power
    digits = 1 if total_bytes / scale < 10 and power > 0 else 0
    return f"{done_bytes / scale:.{digits}f}/{total_bytes / scale:.{digits}f} {_BYTE_UNITS[power]}"


def seconds_text(seconds: float) -> str:
    """`0.42 s`, `1.9 s`, `75 s`."""
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 59.5:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s"


def ms_text(seconds: float) -> str:
    """Milliseconds with one decimal below 100: `7.7`, `141` (the unit stands in the column's head)."""
    ms = seconds * 1000
    return f"{ms:.1f}" if ms < 99.95 else f"{ms:.0f}"


def layers_text(start: int, stop: int) -> str:
    """The layers of the half-open range `[start, stop)` with both ends named: `0–14`."""
    return f"{start}" if stop - start == 1 else f"{start}–{stop - 1}"
