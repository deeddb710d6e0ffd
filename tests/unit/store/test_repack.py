"""Layer files: whole or not there, and noticed when they are no longer what was written."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from dnet_core.errors import LoadError
from dnet_core.settings import paths
from dnet_core.store import repack
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.store.repack import (
    ALIGNMENT_BYTES,
    LayerFile,
    LayerReader,
    RawTensor,
    cached_layers,
    check_room,
    clear_layers,
    find_layer,
    find_range,
    layer_path,
    layers_folder,
    source_mark,
    write_layer,
)

SOURCE = "a mark of files and versions"
TENSORS = {
    "norm.weight": RawTensor("BF16", (3,), memoryview(bytes(range(6)))),
    "mlp.weight": RawTensor("U32", (2, 4), memoryview(bytes(range(100, 132)))),
    "mlp.flags": RawTensor("U8", (5,), memoryview(b"abcde")),
}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNET_HOME", str(tmp_path / "home"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return layer_path(paths().cache / "layers" / "print", 7)


def read(file: LayerFile, reader: LayerReader | None = None) -> bytes:
    memory = bytearray(file.num_bytes + 3)
    (reader or LayerReader()).read(file, memoryview(memory))
    assert memory[file.num_bytes :] == b"\0\0\0", "nothing is written beyond the layer"
    return bytes(memory[: file.num_bytes])


def test_what_is_written_is_read(path: Path) -> None:
    written = write_layer(path, TENSORS, SOURCE, "some/model")
    assert find_layer(path, SOURCE) == written
    assert written.start == ALIGNMENT_BYTES
    data = read(written)
    for name, tensor in TENSORS.items():
        record = written.tensors[name]
        assert (record.dtype, record.shape) == (tensor.dtype, tensor.shape)
        assert data[record.start - written.start : record.stop - written.start] == bytes(tensor.data)
    assert [r.start % repack.item_bytes(r.dtype) for r in written.tensors.values()] == [0, 0, 0]
    assert written.checksum == zlib.crc32(data)


def test_it_is_an_ordinary_safetensors_file(path: Path) -> None:
    write_layer(path, TENSORS, SOURCE, "some/model")
    with safe_open(str(path), "np") as file:
        assert set(file.keys()) == set(TENSORS)
        assert file.metadata()["model"] == "some/model"
        assert file.get_tensor("mlp.weight").tobytes() == bytes(TENSORS["mlp.weight"].data)


def break_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8] = ord("x")
    path.write_bytes(data)


def other_source(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(SOURCE.encode(), b"x" * len(SOURCE)))


def no_metadata(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"a")


UNUSABLE: dict[str, Callable[[Path], None]] = {
    "missing": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "cut in the header": lambda path: os.truncate(path, 100),
    "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "a broken header": break_header,
    "made from something else": other_source,
    "another program's": no_metadata,
}


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_file_that_is_not_whole_is_written_anew(what: str, path: Path) -> None:
    written = write_layer(path, TENSORS, SOURCE, "m")
    UNUSABLE[what](path)
    assert find_layer(path, SOURCE) is None
    assert write_layer(path, TENSORS, SOURCE, "m") == written
    read(written)


def flip_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(ALIGNMENT_BYTES + 3)
        file.write(b"!")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Path.unlink, "cannot be read: No such file"),
        (lambda path: os.truncate(path, ALIGNMENT_BYTES + 20), "cut short"),
        (flip_a_byte, "checksum"),
    ],
)
@pytest.mark.parametrize("already_read", [False, True])
def test_a_change_is_a_typed_error_and_may_be_undone(
    already_read: bool, change: Callable[[Path], None], message: str, path: Path, tmp_path: Path
) -> None:
    file, reader = write_layer(path, TENSORS, SOURCE, "m"), LayerReader()
    if already_read:
        read(file, reader)
    copy = shutil.copy(path, tmp_path / "copy")
    change(path)
    for _ in range(2):
        with pytest.raises(LoadError, match=message):
            read(file, reader)
    shutil.copy(copy, path)
    read(file, reader)


def test_the_checksum_is_computed_when_a_file_is_new_or_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []
    file, reader = write_layer(path, TENSORS, SOURCE, "m"), LayerReader()
    real = zlib.crc32
    monkeypatch.setattr(repack.zlib, "crc32", lambda data: computed.append(1) or real(data))
    for _ in range(3):
        read(file, reader)
    assert len(computed) == 1
    os.utime(path, ns=(1, 1))
    read(file, reader)
    assert len(computed) == 2


@pytest.mark.parametrize("failing", ["open", "fsync", "replace", "mkdir"])
def test_a_failure_while_writing_leaves_nothing(
    failing: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if failing == "fsync" else Path, failing, fail)
        with pytest.raises(LoadError, match="No space left"):
            write_layer(path, TENSORS, SOURCE, "m")
    assert list(path.parent.glob("layer-*")) == []
    write_layer(path, TENSORS, SOURCE, "m")


def test_what_a_dead_writer_left_is_overwritten(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.tmp").write_bytes(b"x" * 100_000)
    read(write_layer(path, TENSORS, SOURCE, "m"))
    assert [p.name for p in path.parent.glob("layer-*")] == [path.name]


def test_room_is_checked_before() -> None:
    check_room(0)
    with pytest.raises(
        LoadError, match=r"needs 1000000\.0 GB .* has \d+\.\d GB free.*dnet-shard cache clear"
    ):
        check_room(10**15)


def test_what_is_kept_is_listed_and_cleared(path: Path) -> None:
    assert cached_layers() == ()
    assert clear_layers() == 0
    for layer in (7, 8):
        write_layer(layer_path(path.parent, layer), TENSORS, SOURCE, "some/model")
    write_layer(layer_path(path.parent.parent / "other", 1), TENSORS, SOURCE, "another")
    found = cached_layers()
    assert [(c.model, c.num_layers) for c in found] == [("another", 1), ("some/model", 2)]
    size = layer_path(path.parent, 7).stat().st_size
    assert [c.size_bytes for c in found] == [size, 2 * size]
    (found[0].folder / "layer-0003.safetensors.tmp").symlink_to("renamed a moment ago")
    assert cached_layers() == found
    assert clear_layers() == 3 * size
    assert cached_layers() == ()


# ---- the checkpoint's own files ----


def write_checkpoint(directory: Path, *files: dict[str, tuple[str, int]]) -> Path:
    """A checkpoint of zeros: each file maps tensors, in order, to dtype and number of items."""
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "llama"}')
    for number, tensors in enumerate(files):
        entries, offset = {}, 0
        for name, (dtype, items) in tensors.items():
            stop = offset + items * repack.item_bytes(dtype)
            entries[name] = {"dtype": dtype, "shape": [items], "data_offsets": [offset, stop]}
            offset = stop
        header = json.dumps(entries).encode()
        path = directory / f"model-{number}.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(range(offset)))
    return directory


def test_neighbours_in_one_file_are_one_range(tmp_path: Path) -> None:
    tensors = {"x": ("U8", 3), "b": ("F32", 2), "a": ("BF16", 3), "y": ("U8", 9)}
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m", tensors))
    found = find_range(checkpoint, {"first": "a", "second": "b"})
    assert found is not None
    assert read(found) == bytes(range(3, 3 + 8 + 6))
    assert {n: (r.start - found.start, r.num_bytes) for n, r in found.tensors.items()} == {
        "first": (8, 6),
        "second": (0, 8),
    }


@pytest.mark.parametrize(
    "files",
    [
        ({"a": ("BF16", 3), "x": ("U8", 1), "b": ("BF16", 2)},),  # something between
        ({"a": ("U8", 3), "b": ("BF16", 2)},),  # not aligned
        ({"a": ("U8", 3)}, {"b": ("U8", 2)}),  # two files
    ],
)
def test_what_is_not_one_range_is_none(files: tuple[dict[str, tuple[str, int]], ...], tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "m", *files))
    assert find_range(checkpoint, {"a": "a", "b": "b"}) is None


def test_a_checkpoint_that_changes_while_it_is_streamed_is_an_error(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "m", {"a": ("U8", 8)})
    file, reader = find_range(read_checkpoint(directory), {"a": "a"}), LayerReader()
    assert file is not None
    read(file, reader)
    os.utime(file.path, ns=(1, 1))
    with pytest.raises(LoadError, match="has changed since"):
        read(file, reader)


def test_finetunes_do_not_share_layers(tmp_path: Path) -> None:
    """Their headers are equal, so the fingerprint alone could mean the other one's weights."""
    one = read_checkpoint(write_checkpoint(tmp_path / "one", {"a": ("U8", 8)}))
    two = read_checkpoint(write_checkpoint(tmp_path / "two", {"a": ("U8", 8)}))
    assert one.fingerprint == two.fingerprint
    assert layers_folder(one) != layers_folder(two)
    assert layers_folder(one) == layers_folder(read_checkpoint(tmp_path / "one"))


def test_files_that_change_are_another_source(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "m", {"a": ("U8", 8)})
    checkpoint = read_checkpoint(directory)
    marks = {source_mark(checkpoint, "v1"), source_mark(checkpoint, "v2")}
    os.utime(directory / "model-0.safetensors", ns=(1, 1))
    marks.add(source_mark(checkpoint, "v1"))
    assert len(marks) == 3
    assert source_mark(checkpoint, "v1") == source_mark(read_checkpoint(directory), "v1")
