"""The `--memory` option: how much of a device's memory a shard may plan with."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(%|(?:[KMGT]i?)?B?)", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY_UNITS = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}

_MOST_BYTES = 2**50


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A number of bytes, or a share of all memory; `text` is how it was written."""

    text: str
    amount: float
    is_share: bool

    def of(self, total_bytes: int) -> int:
        """The limit in bytes on a device that has `total_bytes`."""
        return int(self.amount * total_bytes) if self.is_share else int(self.amount)


def memory_limit(text: str) -> MemoryLimit:
    """Read `8GB`, `512MiB` or `60%`, as an argparse type."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no amount of memory: write 8GB, 512MiB or 60%")
    number, unit = float(found[1]), found[2].upper()
    if unit == "%":
        if not 0 < number <= 100:
            raise argparse.ArgumentTypeError(f"'{text}' is not between 0 and 100 %")
        return MemoryLimit(text, number / 100, True)
    scale = {**_UNITS, **_BINARY_UNITS}[unit.removesuffix("B")]
    if number * scale < 2**20:
        raise argparse.ArgumentTypeError(f"'{text}' is less than a mebibyte: did you mean {found[1]}GB?")
    if number * scale > _MOST_BYTES:
        raise argparse.ArgumentTypeError(f"'{text}' is more than any device has: write 8GB, 512MiB or 60%")
    return MemoryLimit(text, number * scale, False)
