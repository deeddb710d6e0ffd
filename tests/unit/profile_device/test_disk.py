"""The disk is read for real, and nothing of it comes from, or stays in, the page cache."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path

import pytest

from dnet_core.errors import ProfileError
from dnet_core.profile.disk import MIN_FILE_BYTES, ReadMethod, measure_disk

READ_BYTES = 4 << 20
linux_only = pytest.mark.skipif(sys.platform == "darwin", reason="on macOS a fresh file is always written")


def cached_pages(path: Path) -> int:
    """How many pages of `path` are in memory, as mincore tells."""
    library = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        pages = -(-len(mapping) // mmap.PAGESIZE)
        resident = (ctypes.c_ubyte * pages)()
        anchor = ctypes.c_char.from_buffer(mapping)
        address = ctypes.c_void_p(ctypes.addressof(anchor))
        result = library.mincore(address, ctypes.c_size_t(len(mapping)), resident)
        del anchor  # else the mapping cannot be closed
    assert result == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in resident)


def write(path: Path, size_bytes: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        block = os.urandom(1 << 20)
        for _ in range(size_bytes >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return path


@pytest.mark.usefixtures("direct_reads")
def test_a_model_file_is_read_past_the_cache(tmp_path: Path) -> None:
    path = write(tmp_path / "model" / "model.safetensors", MIN_FILE_BYTES)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(path):
        pytest.skip("this file system keeps its files in memory")
    figures = measure_disk("here", tmp_path, read_size_bytes=READ_BYTES)
    assert figures.method is ReadMethod.DIRECT
    assert figures.num_reads >= 4
    assert figures.read_size_bytes == READ_BYTES
    assert cached_pages(path) == 0
    assert 1e6 < figures.bytes_per_s < 1e11


@pytest.mark.parametrize("small_model", [False, True])
def test_without_a_large_model_a_file_is_made_and_removed(tmp_path: Path, small_model: bool) -> None:
    store = tmp_path / "store"
    if small_model:
        write(store / "tiny" / "model.safetensors", 1 << 20)
    before = sorted(store.rglob("*"))
    figures = measure_disk("here", store, read_size_bytes=READ_BYTES)
    assert figures.num_reads >= 4
    assert sorted(store.rglob("*")) == before


@linux_only
def test_a_file_system_without_direct_reads_is_measured_too(tmp_path: Path) -> None:
    """Of all file systems, only a refusal of O_DIRECT is played: which one refuses depends on the machine."""
    path = write(tmp_path / "model.safetensors", MIN_FILE_BYTES)
    refused: list[str] = []
    real_open = os.open

    def open_buffered(name: Path, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            refused.append(str(name))
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_open(name, flags, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_buffered)
        figures = measure_disk("here", tmp_path, read_size_bytes=READ_BYTES)
    assert refused == [str(path)]
    assert figures.method is ReadMethod.DONTNEED
    assert figures.bytes_per_s > 1e6


def test_no_place_for_a_file_is_an_error_of_the_device(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(ProfileError, match="here: the disk could not be measured") as caught:
        measure_disk("here", tmp_path / "store", read_size_bytes=READ_BYTES)
    assert caught.value.device == "here"


@linux_only
def test_the_time_is_bounded(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", 2 * MIN_FILE_BYTES)
    figures = measure_disk("here", tmp_path, read_size_bytes=1 << 20, budget_s=0.0)
    assert figures.num_reads == 4


def test_a_read_that_fails_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model" / "model.safetensors", MIN_FILE_BYTES)

    def fail(_descriptor: int, _buffers: list[memoryview], _offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(ProfileError, match=os.strerror(errno.EIO)):
        measure_disk("here", tmp_path, read_size_bytes=READ_BYTES)
