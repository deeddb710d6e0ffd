"""Numbers as people read them, each with its unit."""

from __future__ import annotations

import re

_CHIP_NOISE = (r"\((?:R|TM|r|tm)\)", r"\bCPU\b", r"@.*$", r"\b\d+-Core\b", r"\bProcessor\b")
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
    """`31/98 MB`, `0.3/25 GB`: both in the unit of the total (powers of 1000)."""
    power = 0
    while total_bytes >= 1000 ** (power + 1) and power < len(_BYTE_UNITS) - 1:
        power += 1
    scale = 1000**power
    done, total = (
        f"{n / scale:.{1 if n / scale < 9.95 and power else 0}f}" for n in (done_bytes, total_bytes)
    )
    return f"{done}/{total} {_BYTE_UNITS[power]}"


def bytes_text(num_bytes: float) -> str:
    """`812 MB`, `4.5 GB`, `132 GB`: at most three figures (powers of 1000)."""
    power = 0
    while num_bytes >= 999.5 and power < len(_BYTE_UNITS) - 1:
        num_bytes /= 1000
        power += 1
    digits = 1 if num_bytes < 9.95 and power > 0 else 0
    return f"{num_bytes:.{digits}f} {_BYTE_UNITS[power]}"


def rate_text(bytes_per_s: float) -> str:
    """`110 MB/s`."""
    return f"{bytes_text(bytes_per_s)}/s"


def duration_text(seconds: float) -> str:
    """Time that is left, as far as it can be known: `8 s`, `75 s`, `4 min`, `2.5 h`."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def chip_text(chip: str) -> str:
    """`M4 Pro`, `Intel Xeon`: a chip's name without what its maker adds to it."""
    for added in _CHIP_NOISE:
        chip = re.sub(added, " ", chip)
    return " ".join(chip.split()).removeprefix("Apple ")


def flops_text(flops_per_s: float) -> str:
    """`27.2 TFLOPS`, `48 GFLOPS`."""
    if flops_per_s >= 0.995e12:
        return f"{flops_per_s / 1e12:.1f} TFLOPS"
    return f"{flops_per_s / 1e9:.0f} GFLOPS"


def hop_text(seconds: float) -> str:
    """A short time with its unit: `85 µs`, `0.30 ms`, `4.1 ms`, `52 ms`, `1.2 s`."""
    ms = seconds * 1000
    if ms < 0.0995:
        return f"{ms * 1000:.0f} µs"
    if ms < 0.995:
        return f"{ms:.2f} ms"
    if ms < 9.95:
        return f"{ms:.1f} ms"
    return f"{ms:.0f} ms" if ms < 999.5 else seconds_text(seconds)


def medium_text(medium: str) -> str:
    """What a link runs over, as people call it."""
    names = {
        "thunderbolt": "Thunderbolt",
        "ethernet": "Ethernet",
        "wifi": "Wi-Fi",
        "loopback": "this machine",
    }
    return names.get(medium, "unknown link")


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


def ago_text(seconds: float) -> str:
    """`just now`, `5 min ago`, `3 h ago`, `2 days ago`."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return "just now"
    if minutes < 60:
        return f"{minutes} min ago"
    hours = minutes // 60
    if hours < 24:
        return f"{hours} h ago"
    days = hours // 24
    return "yesterday" if days == 1 else f"{days} days ago"
