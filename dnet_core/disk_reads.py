"""Large reads past the page cache, several in flight: how layers are read, and how the disk is measured.

    range       |- slice -|- slice -|- slice -|- slice -|- slice -|- rest -|
    readers        0         1         2         3       whoever is free next

A disk is at its full speed when it has the next requests before it is done with the last, and one read that
waits for its bytes gives it that only as far as the system cuts it up. So a range is read in slices, by a few
threads, each with one slice at a time.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

ALIGNMENT_BYTES = 16384
"""A page of every machine: reads past the page cache begin on one, in the file and in memory."""

READ_BYTES = 4 << 20
"""A slice: large enough for the disk's full speed, small enough that few are left when the range ends."""

LEAST_READ_BYTES = 1 << 20
"""A range that gives every reader less than this is read by fewer: calls cost more than they gain then."""

READS_IN_FLIGHT = 4
"""Enough for every disk that was measured or is known of, and an idle thread costs nothing."""

_F_NOCACHE = 48  # fcntl.F_NOCACHE, which Python only has on macOS


def whole_pages(num_bytes: int) -> int:
    """`num_bytes`, rounded up to pages."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def slice_bytes(num_bytes: int) -> int:
    """How much of a range of `num_bytes` one call reads: whole pages, a part for every reader."""
    part = whole_pages(-(-num_bytes // READS_IN_FLIGHT))
    return min(READ_BYTES, max(LEAST_READ_BYTES, part))


def set_no_cache(descriptor: int) -> None:
    """Keep what goes through `descriptor` out of the page cache; only macOS has such a call."""
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415 - not on Windows, where the head can run

        fcntl.fcntl(descriptor, _F_NOCACHE, 1)


@contextmanager
def opened(path: Path, flags: int = 0) -> Iterator[int]:
    """A descriptor to read `path` with, past the page cache as far as `flags` and system allow it."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        set_no_cache(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


class DiskReader:
    """Threads that read one range at a time, `READS_IN_FLIGHT` slices at once. Used by one thread."""

    def __init__(self) -> None:
        self._readers = ThreadPoolExecutor(READS_IN_FLIGHT, "reader")  # begun when they are first needed

    def close(self) -> None:
        """End the threads. What is being read must have ended, as it has when `read` has returned."""
        self._readers.shutdown()

    def read(self, descriptor: int, start: int, num_bytes: int, into: memoryview) -> None:
        """Fill `into[:num_bytes]` with what is at `[start, start + num_bytes)` of the file.

        What is behind them in `into` may be written to. Raises OSError, or EOFError when the file ends
        before; the first failure is raised, when no reader touches `into` any more.
        """
        size = slice_bytes(num_bytes)
        waiting = deque(range(0, num_bytes, size))
        failures: list[OSError | EOFError] = []

        def work() -> None:
            while not failures:
                try:
                    at = waiting.popleft()
                except IndexError:
                    return
                try:
                    # Released at once: a failure that is kept would keep the buffer of the caller.
                    with into[at : at + size] as part:
                        _fill(descriptor, start + at, min(size, num_bytes - at), part)
                except (OSError, EOFError) as error:
                    failures.append(error)

        readers = [self._readers.submit(work) for _ in range(min(len(waiting), READS_IN_FLIGHT))]
        wait(readers)
        for reader in readers:
            reader.result()
        if failures:
            raise failures[0]


def _fill(descriptor: int, start: int, num_bytes: int, into: memoryview) -> None:
    """Read at least `num_bytes` into `into`; the system may give them in parts."""
    done = 0
    while done < num_bytes:
        with into[done:] as rest:
            count = os.preadv(descriptor, [rest], start + done)
        if count == 0:
            raise EOFError(f"the file ended at {start + done:,} bytes while it was read")
        done += count
