"""Ranges read in slices, several at once: every byte in its place, one error, and nobody left behind."""

from __future__ import annotations

import errno
import mmap
import os
import random
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnet_core.disk_reads import (
    ALIGNMENT_BYTES,
    LEAST_READ_BYTES,
    READ_BYTES,
    READS_IN_FLIGHT,
    DiskReader,
    opened,
    slice_bytes,
    whole_pages,
)
from dnet_core.errors import LoadError
from dnet_core.store.repack import LayerFile, LayerReader

LARGEST = 3 * READ_BYTES * READS_IN_FLIGHT // 2
DATA = random.Random(4).randbytes(LARGEST + 3 * ALIGNMENT_BYTES)
SIZES = st.one_of(
    st.integers(1, 5 * LEAST_READ_BYTES),
    st.builds(
        lambda slices, beside: max(1, slices * READ_BYTES + beside), st.integers(0, 5), st.integers(-2, 2)
    ),
    st.integers(1, LARGEST),
)
Read = Callable[[int, list[memoryview], int], int]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("reads") / "data"
    file.write_bytes(DATA)
    return file


@pytest.fixture(scope="module")
def reader() -> Iterator[DiskReader]:
    reader = DiskReader()
    yield reader
    reader.close()


def aligned(num_bytes: int) -> memoryview:
    return memoryview(mmap.mmap(-1, whole_pages(num_bytes) + ALIGNMENT_BYTES))


class Watched:
    """`os.preadv`, which tells how many are inside it, and may do something else first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._real = os.preadv
        self.num_calls = 0
        self.inside = 0
        self.before: Callable[[int], None] = lambda _call: None  # told which call it is, from 0

    def __call__(self, descriptor: int, into: list[memoryview], start: int) -> int:
        with self._lock:
            call, self.num_calls = self.num_calls, self.num_calls + 1
            self.inside += 1
        try:
            self.before(call)
            return self._real(descriptor, into, start)
        finally:
            with self._lock:
                self.inside -= 1


@contextmanager
def watched() -> Iterator[Watched]:
    with pytest.MonkeyPatch.context() as patch:
        calls = Watched()
        patch.setattr(os, "preadv", calls)
        yield calls


@given(num_bytes=SIZES)
def test_slices_are_whole_pages_and_there_are_enough(num_bytes: int) -> None:
    size = slice_bytes(num_bytes)
    assert size % ALIGNMENT_BYTES == 0
    assert LEAST_READ_BYTES <= size <= READ_BYTES
    if num_bytes >= READS_IN_FLIGHT * LEAST_READ_BYTES:
        assert num_bytes / size > READS_IN_FLIGHT - 1, "every reader has one"


@given(num_bytes=SIZES, start=st.integers(0, 2 * ALIGNMENT_BYTES))
def test_every_byte_is_in_its_place(num_bytes: int, start: int, path: Path, reader: DiskReader) -> None:
    memory = aligned(num_bytes)
    with opened(path) as descriptor:
        reader.read(descriptor, start, num_bytes, memory[:num_bytes])
    assert memory[:num_bytes] == DATA[start : start + num_bytes]
    assert not any(memory[num_bytes:]), "nothing is written beyond the range"


@pytest.mark.usefixtures("direct_reads")
@given(num_bytes=SIZES, page=st.integers(0, 2))
def test_straight_from_the_disk(num_bytes: int, page: int, path: Path, reader: DiskReader) -> None:
    """Its tail comes in whole pages, or as far as the file goes."""
    memory, start = aligned(num_bytes), page * ALIGNMENT_BYTES
    with opened(path, os.O_DIRECT) as descriptor:
        reader.read(descriptor, start, num_bytes, memory[: whole_pages(num_bytes)])
    assert memory[:num_bytes] == DATA[start : start + num_bytes]
    assert not any(memory[whole_pages(num_bytes) :])


@given(num_bytes=SIZES, cut=st.floats(0, 1, exclude_max=True))
def test_a_file_that_ends_before(num_bytes: int, cut: float, path: Path, reader: DiskReader) -> None:
    with tempfile.TemporaryFile() as short:
        os.sendfile(short.fileno(), os.open(path, os.O_RDONLY), 0, int(cut * num_bytes))
        with pytest.raises(EOFError, match="the file ended at"):
            reader.read(short.fileno(), 0, num_bytes, aligned(num_bytes))


@given(num_bytes=st.integers(READS_IN_FLIGHT * LEAST_READ_BYTES, LARGEST), data=st.data())
def test_a_slice_that_fails(num_bytes: int, data: st.DataObject, path: Path, reader: DiskReader) -> None:
    """The first failure is raised, with nobody reading any more; and the next range is read as ever."""
    num_slices = -(-num_bytes // slice_bytes(num_bytes))
    bad = data.draw(st.sets(st.integers(0, num_slices - 1), min_size=1), label="slices that fail")
    memory = aligned(num_bytes)
    with watched() as calls, opened(path) as descriptor:
        failed: list[int] = []

        def fail(call: int) -> None:
            if call in bad:
                failed.append(call)
                raise OSError(errno.EIO, f"slice {call}")

        calls.before = fail
        with pytest.raises(OSError, match="slice") as caught:
            reader.read(descriptor, 0, num_bytes, memory)
        assert calls.inside == 0
        assert caught.value.strerror in {f"slice {call}" for call in failed}
        assert calls.num_calls <= min(num_slices, failed[-1] + 2 * READS_IN_FLIGHT), (
            "no slice begins after it"
        )
        calls.before = lambda _call: None
        reader.read(descriptor, 0, num_bytes, memory[:num_bytes])
    assert memory[:num_bytes] == DATA[:num_bytes]


def test_several_are_in_flight(path: Path, reader: DiskReader) -> None:
    """Each read waits until as many are inside: it ends because they are."""
    together = threading.Barrier(READS_IN_FLIGHT)
    with watched() as calls, opened(path) as descriptor:
        calls.before = lambda _call: together.wait() and None
        num_bytes = READS_IN_FLIGHT * READ_BYTES
        reader.read(descriptor, 0, num_bytes, aligned(num_bytes))
    assert calls.num_calls == READS_IN_FLIGHT


def test_those_that_are_inside_are_waited_for(path: Path, reader: DiskReader) -> None:
    """One slice fails while the others are inside, and they go on only when it has."""
    together = threading.Barrier(READS_IN_FLIGHT)
    has_failed = threading.Event()

    def fail(call: int) -> None:
        if call < READS_IN_FLIGHT:
            together.wait()
        if call == READS_IN_FLIGHT - 1:
            has_failed.set()
            raise OSError(errno.EIO, "it failed")
        has_failed.wait()

    with watched() as calls, opened(path) as descriptor:
        calls.before = fail
        num_bytes = READS_IN_FLIGHT * READ_BYTES
        memory = aligned(num_bytes)
        with pytest.raises(OSError, match="it failed"):
            reader.read(descriptor, 0, num_bytes, memory)
        assert calls.inside == 0
    read = [
        memory[at : at + READ_BYTES] == DATA[at : at + READ_BYTES] for at in range(0, num_bytes, READ_BYTES)
    ]
    assert read.count(True) == READS_IN_FLIGHT - 1, "those inside had come to their end"


def test_closing_ends_the_threads(path: Path) -> None:
    def readers() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name.startswith("reader")}

    before, reader = readers(), DiskReader()
    with opened(path) as descriptor:
        reader.read(descriptor, 0, READ_BYTES, aligned(READ_BYTES))
    assert len(readers() - before) > 1
    reader.close()
    assert readers() == before


# ---- a layer ----


@pytest.fixture
def layer(tmp_path: Path) -> LayerFile:
    path, stop = tmp_path / "layer", ALIGNMENT_BYTES + 5 * READ_BYTES + 3
    path.write_bytes(DATA[:stop])
    return LayerFile(path, ALIGNMENT_BYTES, stop, {}, zlib.crc32(DATA[ALIGNMENT_BYTES:stop]))


@pytest.mark.parametrize("slice_cut", [0, 2, 5])
def test_a_layer_that_is_cut_while_it_is_read(slice_cut: int, layer: LayerFile) -> None:
    reader, memory = LayerReader(), aligned(layer.num_bytes)
    with watched() as calls:

        def cut(call: int) -> None:
            if call == slice_cut:
                os.truncate(layer.path, layer.start + 100)

        calls.before = cut
        with pytest.raises(LoadError, match="cut short"):
            reader.read(layer, memory)
        assert calls.inside == 0
    layer.path.write_bytes(DATA[: layer.stop])
    reader.read(layer, memory)
    assert memory[: layer.num_bytes] == DATA[layer.start : layer.stop]
    reader.close()


@pytest.mark.parametrize("at", [0, READ_BYTES - 1, 3 * READ_BYTES, 5 * READ_BYTES + 2])
def test_a_byte_that_is_wrong_in_any_slice(at: int, layer: LayerFile) -> None:
    with layer.path.open("r+b") as file:
        file.seek(layer.start + at)
        file.write(bytes([DATA[layer.start + at] ^ 1]))
    reader = LayerReader()
    with pytest.raises(LoadError, match="checksum"):
        reader.read(layer, aligned(layer.num_bytes))
    reader.close()


def test_an_error_of_the_disk_in_one_slice(layer: LayerFile) -> None:
    reader, memory = LayerReader(), aligned(layer.num_bytes)

    def fail(call: int) -> None:
        if call == 3:
            raise OSError(errno.EIO, "Input/output error")

    with watched() as calls:
        calls.before = fail
        with pytest.raises(LoadError, match=r"layer cannot be read: Input/output error"):
            reader.read(layer, memory)
        assert calls.inside == 0
    reader.read(layer, memory)
    assert memory[: layer.num_bytes] == DATA[layer.start : layer.stop]
    reader.close()
