"""How fast the disk under the model store reads what no cache holds, as layers are read: by the same code.

Linux   O_DIRECT into an aligned buffer; where the file system has none, after posix_fadvise(DONTNEED)
macOS   F_NOCACHE, from a file that was written with F_NOCACHE: pages that are cached already would be
        served from memory, and those of a model that was just used are
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median

from dnet_core.disk_reads import DiskReader, opened, set_no_cache
from dnet_core.errors import ProfileError

BUDGET_S = 0.5
"""Time for reads by default; writing a file, where it is needed, comes on top."""

MIN_FILE_BYTES = 64 << 20
"""A smaller file is read too quickly to say anything."""

_MIN_READS = 4


class ReadMethod(StrEnum):
    """How the page cache was kept out."""

    DIRECT = "O_DIRECT"
    DONTNEED = "posix_fadvise(DONTNEED)"
    NOCACHE = "F_NOCACHE"


@dataclass(frozen=True, slots=True)
class DiskFigures:
    """`bytes_per_s` is the median over `num_reads` ranges of `read_size_bytes`, one after the other."""

    bytes_per_s: float
    read_size_bytes: int
    num_reads: int
    method: ReadMethod


def measure_disk(
    device: str, store: Path, *, read_size_bytes: int, budget_s: float = BUDGET_S
) -> DiskFigures:
    """Measure the file system of `store`, with a model's file from below it if one is large enough.

    Blocks. Raises ProfileError naming `device` when there is no room for a file or a read fails.
    """
    try:
        with _file_to_read(store, max(MIN_FILE_BYTES, _MIN_READS * read_size_bytes)) as path:
            return _read(path, read_size_bytes, budget_s)
    except EOFError as error:
        raise ProfileError(device, "disk", f"{error} ({store})") from error
    except OSError as error:
        raise ProfileError(device, "disk", f"{error.strerror or error} ({store})") from error


@contextmanager
def _file_to_read(store: Path, size_bytes: int) -> Iterator[Path]:
    """A file of at least `size_bytes` on the file system of `store`; removed if it was made for this."""
    if sys.platform != "darwin" and (found := _model_file(store, size_bytes)) is not None:
        yield found
        return
    store.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=".disk-", suffix=".tmp", dir=store)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            set_no_cache(file.fileno())
            block = os.urandom(1 << 20)  # nothing that a file system could compress
            for _ in range(-(-size_bytes // len(block))):
                file.write(block)
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _model_file(store: Path, size_bytes: int) -> Path | None:
    """The largest safetensors file below `store` on the same file system, if it is large enough."""
    if not store.is_dir():
        return None
    device = store.stat().st_dev
    sizes: dict[Path, int] = {}
    for path in store.rglob("*.safetensors"):
        try:
            status = path.stat()
        except OSError:  # a link into a cache that was emptied
            continue
        if status.st_dev == device and status.st_size >= size_bytes:
            sizes[path] = status.st_size
    return max(sizes, key=lambda path: (sizes[path], str(path)), default=None)


def _read(path: Path, read_size_bytes: int, budget_s: float) -> DiskFigures:
    """Read `path` from its start until it ends or the time is over; nothing is read twice."""
    times: list[float] = []
    reader = DiskReader()
    with _opened_uncached(path) as (descriptor, method), mmap.mmap(-1, read_size_bytes) as buffer:
        try:
            num_reads = os.fstat(descriptor).st_size // read_size_bytes
            began = time.perf_counter()
            for index in range(num_reads):
                start = time.perf_counter()
                with memoryview(buffer) as view:  # on pages, as O_DIRECT wants it
                    reader.read(descriptor, index * read_size_bytes, read_size_bytes, view)
                stop = time.perf_counter()
                times.append(stop - start)
                if len(times) >= _MIN_READS and stop - began >= budget_s:
                    break
        finally:
            reader.close()
    return DiskFigures(read_size_bytes / median(times), read_size_bytes, len(times), method)


@contextmanager
def _opened_uncached(path: Path) -> Iterator[tuple[int, ReadMethod]]:
    with ExitStack() as stack:
        if sys.platform == "darwin":
            yield stack.enter_context(opened(path)), ReadMethod.NOCACHE
            return
        try:
            descriptor, method = stack.enter_context(opened(path, os.O_DIRECT)), ReadMethod.DIRECT
        except OSError:  # tmpfs, some network file systems
            descriptor, method = stack.enter_context(opened(path)), ReadMethod.DONTNEED
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        yield descriptor, method
