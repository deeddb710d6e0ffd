"""Reading a model directory without MLX, and every way in which its files can be damaged."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dnet_core.errors import LoadError
from dnet_core.store.checkpoint import read_checkpoint
from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny", num_files=2)


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def test_every_range_holds_the_tensors_own_bytes(whole: Path) -> None:
    checkpoint = read_checkpoint(whole)
    names = set()
    for file in whole.glob("*.safetensors"):
        content = file.read_bytes()
        for name, array in load_file(file).items():
            names.add(name)
            record = checkpoint.tensors[name]
            assert (record.file, record.shape, record.dtype) == (file.name, array.shape, "F32")
            assert content[record.start : record.stop] == array.tobytes()
    assert set(checkpoint.tensors) == names
    assert checkpoint.weight_bytes == sum(record.num_bytes for record in checkpoint.tensors.values())
    assert checkpoint.model_type == "llama"


def test_fingerprint_is_of_the_content_not_the_place(whole: Path, model: Path) -> None:
    there, here = read_checkpoint(whole), read_checkpoint(model)
    assert there.fingerprint == here.fingerprint
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_theta": 5.0}))
    assert read_checkpoint(model).fingerprint != there.fingerprint


def test_fingerprint_tells_tensors_of_another_dtype(model: Path) -> None:
    before = read_checkpoint(model).fingerprint
    file = next(model.glob("*.safetensors"))
    save_file({name: array.astype(np.float16) for name, array in load_file(file).items()}, file)
    assert read_checkpoint(model).fingerprint != before


def test_the_generation_configs_end_ids_win(model: Path) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert read_checkpoint(model).config["eos_token_id"] == [3, 4]


def test_infinities_are_read_as_transformers_writes_them(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["limits"] = {"upper": {"__float__": "Infinity"}, "other": {"__float__": []}}
    (model / "config.json").write_text(json.dumps(config))
    assert read_checkpoint(model).config["limits"] == {"upper": float("inf"), "other": {"__float__": []}}


def first_weights(model: Path) -> Path:
    return min(model.glob("*.safetensors"))


def rewrite_header(file: Path, change: dict[str, object] | bytes) -> None:
    """Replace the header of `file` by raw bytes, or merge `change` into it."""
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = change
    if isinstance(change, dict):
        header = json.dumps({**json.loads(content[8 : 8 + length]), **change}).encode()
    assert isinstance(header, bytes)
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


F32x4 = {"dtype": "F32", "shape": [4]}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({**F32x4, "data_offsets": [0, 16]}, "overlaps"),
        ({**F32x4, "data_offsets": [10**9, 10**9 + 16]}, "cut short"),
        ({**F32x4, "data_offsets": [16, 0]}, "takes 16 bytes"),
        ({**F32x4, "data_offsets": [0, 12]}, "takes 16 bytes"),
        ({**F32x4, "data_offsets": [-16, 0]}, "lacks dtype"),
        ({**F32x4, "data_offsets": [0]}, "lacks dtype"),
        ({"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}, "lacks dtype"),
        ({"dtype": "F32", "shape": "4", "data_offsets": [0, 16]}, "lacks dtype"),
        ({"shape": [4], "data_offsets": [0, 16]}, "lacks dtype"),
        ({"dtype": "F3", "shape": [4], "data_offsets": [0, 16]}, "unknown dtype F3"),
        (["no", "object"], "lacks dtype"),
    ],
)
def test_a_bad_tensor_entry_is_told_with_its_file(model: Path, entry: object, words: str) -> None:
    file = first_weights(model)
    rewrite_header(file, {"odd": entry})
    with pytest.raises(LoadError, match=words) as caught:
        read_checkpoint(model)
    assert str(file) in str(caught.value)
    assert "odd" in str(caught.value)


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 200_000])
def test_a_header_that_is_no_object_is_told(model: Path, header: bytes) -> None:
    rewrite_header(first_weights(model), header)
    with pytest.raises(LoadError, match=first_weights(model).name):
        read_checkpoint(model)


@pytest.mark.parametrize("keep", [0, 3, 8, 100, -1])
def test_a_file_cut_anywhere_is_told(model: Path, keep: int) -> None:
    file = first_weights(model)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(LoadError, match="fetch or copy the model again") as caught:
        read_checkpoint(model)
    assert str(file) in str(caught.value)


def test_a_header_length_beyond_the_file_is_told(model: Path) -> None:
    file = first_weights(model)
    file.write_bytes(struct.pack("<Q", 2**63) + file.read_bytes()[8:])
    with pytest.raises(LoadError, match="header claims"):
        read_checkpoint(model)


def test_a_shard_that_the_index_names_must_exist(model: Path) -> None:
    first_weights(model).unlink()
    with pytest.raises(LoadError, match=r"is missing, but model\.safetensors\.index\.json names it"):
        read_checkpoint(model)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/m.safetensors", "m.bin", 3])
def test_an_index_cannot_point_elsewhere(model: Path, name: object) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LoadError, match="not a plain"):
        read_checkpoint(model)


def test_an_index_that_promises_too_much_is_told(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["phantom"] = first_weights(model).name
    index.write_text(json.dumps(content))
    with pytest.raises(LoadError, match="promises phantom"):
        read_checkpoint(model)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": []}', "{}"])
def test_a_broken_index_is_told(model: Path, text: str) -> None:
    (model / "model.safetensors.index.json").write_text(text)
    with pytest.raises(LoadError, match=r"model\.safetensors\.index\.json"):
        read_checkpoint(model)


def test_the_same_tensor_in_two_files_is_told(model: Path) -> None:
    (model / "model.safetensors.index.json").unlink()
    shutil.copy(first_weights(model), model / "model-extra.safetensors")
    with pytest.raises(LoadError, match="remove one of the two files"):
        read_checkpoint(model)


DEEP = '{"model_type": "llama", "x": ' + 2000 * "[" + 2000 * "]" + "}"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": 3}', DEEP])
def test_a_broken_config_is_told(model: Path, text: str) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(LoadError, match=r"config\.json"):
        read_checkpoint(model)


def test_no_damage_to_a_header_ends_in_a_traceback(model: Path) -> None:
    file, rng = first_weights(model), np.random.default_rng(0)
    whole, told = file.read_bytes(), 0
    length = struct.unpack("<Q", whole[:8])[0]
    for _ in range(400):
        content = bytearray(whole)
        for at in rng.integers(0, 8 + length, size=3):
            content[at] = rng.integers(256)
        file.write_bytes(content)
        try:
            read_checkpoint(model)
        except LoadError as error:
            told += 1
            assert str(model) in str(error)
    assert told > 200, "the damage was too small to mean anything"


def test_a_directory_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"config\.json is missing"):
        read_checkpoint(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(LoadError, match="has no model"):
        read_checkpoint(tmp_path)
