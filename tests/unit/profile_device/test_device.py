"""What a device tells of itself, what is asked of it for a model, and profiles as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from dnet_core.errors import RequestError
from dnet_core.profile.device import (
    HostFacts,
    fingerprint,
    host_facts,
    memory_budget_bytes,
    parse_cpuinfo,
    parse_mac_hardware,
    profile_from_json,
    profile_to_json,
    request_for,
)
from dnet_core.profile.model import profile_model
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.types.profiles import Quantization, WeightFormat
from tests.tiny_models import write_tiny_model
from tests.unit.profile_device.samples import PROFILE

GIB = 1 << 30
HOST = HostFacts("Some Chip", "Some OS 1", 64 * GIB, 40 * GIB)

# Composed after the reports of such machines, with the fields that are read and some of their neighbours.
MAC_STUDIO = {
    "SPDisplaysDataType": [
        {
            "_name": "kHW_AppleM2MaxItem",
            "sppci_bus": "spdisplays_builtin",
            "sppci_cores": "38",
            "sppci_model": "Apple M2 Max",
        }
    ],
    "SPHardwareDataType": [
        {
            "_name": "hardware_overview",
            "chip_type": "Apple M2 Max",
            "machine_model": "Mac14,13",
            "machine_name": "Mac Studio",
            "number_processors": "proc 12:8:4",
            "physical_memory": "64 GB",
        }
    ],
}
INTEL_MAC = {
    "SPHardwareDataType": [
        {
            "cpu_type": "Quad-Core Intel Core i5",
            "current_processor_speed": "2 GHz",
            "number_processors": 4,
            "packages": 1,
        }
    ]
}


def test_a_mac_is_named_with_its_cores() -> None:
    assert parse_mac_hardware(json.dumps(MAC_STUDIO)) == "Apple M2 Max (12 CPU and 38 GPU cores)"
    assert parse_mac_hardware(json.dumps(INTEL_MAC)) == "Quad-Core Intel Core i5 (4 CPU cores)"
    m4 = {"SPHardwareDataType": [{"chip_type": "Apple M4", "number_processors": "proc 10:4:6:0"}]}
    assert parse_mac_hardware(json.dumps(m4)) == "Apple M4 (10 CPU cores)"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"SPHardwareDataType": 3}', '{"SPHardwareDataType": [{}]}']
)
def test_another_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"report|Expecting value"):
        parse_mac_hardware(text)


def test_cpuinfo_of_several_systems() -> None:
    assert parse_cpuinfo("processor\t: 0\nmodel name\t: AMD  EPYC 9354\nflags\t: a b\n") == "AMD EPYC 9354"
    assert parse_cpuinfo("processor : 0\n\nModel : Raspberry Pi 5 Model B\n") == "Raspberry Pi 5 Model B"
    assert parse_cpuinfo("processor : 0\nCPU part : 0xd0c\n") is None


def test_this_machine() -> None:
    host = host_facts("here")
    assert host.chip.strip()
    assert host.os.split()[0] not in ("", "Darwin")
    assert 0 < host.memory_available_bytes <= host.memory_total_bytes == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("total", "available", "recommended", "budget"),
    [
        (64 * GIB, 40 * GIB, 48 * GIB, 48 * GIB),
        (40 * GIB, 30 * GIB, None, 26 * GIB),
        (8 * GIB, 6 * GIB, None, 5 * GIB),
        (8 * GIB, GIB, None, GIB // 2),
    ],
)
def test_the_budget(total: int, available: int, recommended: int | None, budget: int) -> None:
    host = replace(HOST, memory_total_bytes=total, memory_available_bytes=available)
    assert memory_budget_bytes(host, recommended) == budget


def test_the_fingerprint_knows_hardware_and_software_but_not_the_moment() -> None:
    mark = fingerprint(HOST, "0.32.4", "metal")
    assert fingerprint(replace(HOST, memory_available_bytes=1), "0.32.4", "metal") == mark
    others = {
        fingerprint(replace(HOST, chip="Other"), "0.32.4", "metal"),
        fingerprint(replace(HOST, os="Other"), "0.32.4", "metal"),
        fingerprint(replace(HOST, memory_total_bytes=1), "0.32.4", "metal"),
        fingerprint(HOST, "0.33.0", "metal"),
        fingerprint(HOST, "0.32.4", "cpu"),
    }
    assert len(others | {mark}) == 6


def test_json_round_trip() -> None:
    assert profile_from_json(profile_to_json(PROFILE), "file") == PROFILE


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"chip": None}, "chip"),
        ({"memory_bytes_per_s": 0}, "memory_bytes_per_s"),
        ({"disk_read_bytes_per_s": "fast"}, "disk_read_bytes_per_s"),
        ({"disk_read_bytes_per_s": float("inf")}, "disk_read_bytes_per_s"),
        ({"speeds": []}, "speeds"),
        (
            {"speeds": [{**asdict(PROFILE.speeds[0]), "decode_bytes_per_s": -1}]},
            "speeds.0.decode_bytes_per_s",
        ),
        ({"profile_version": 1}, "profile_version"),
        ({"gpu": 1}, "gpu"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(change: dict[str, Any], field: str) -> None:
    text = json.dumps({**json.loads(profile_to_json(PROFILE)), **change})
    with pytest.raises(RequestError, match=rf"home/mini\.json: field '{field}' of the device profile"):
        profile_from_json(text, "home/mini.json")


@pytest.mark.parametrize("field", sorted(asdict(PROFILE)))
def test_no_field_may_be_missing(field: str) -> None:
    document = json.loads(profile_to_json(PROFILE))
    del document[field]
    with pytest.raises(RequestError, match=f"'{field}'"):
        profile_from_json(json.dumps(document), "file")


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_what_is_no_profile_is_told_by_file(text: str) -> None:
    with pytest.raises(RequestError, match=r"mini\.json of the device profile"):
        profile_from_json(text, "mini.json")


@pytest.mark.parametrize(
    ("model_type", "quantize", "expected"),
    [
        ("llama", None, WeightFormat("f32")),
        ("llama", "q8", WeightFormat("f32", Quantization(8, 32, "affine"))),
        ("llama", "mxfp4", WeightFormat("f32", Quantization(4, 32, "mxfp4"))),
        ("mixtral", "q4", WeightFormat("f32", Quantization(4, 32, "affine"))),
    ],
)
def test_the_request_has_the_models_format_and_arithmetic(
    tmp_path: Path, model_type: str, quantize: str | None, expected: WeightFormat
) -> None:
    checkpoint = read_checkpoint(write_tiny_model(model_type, tmp_path / "model", quantize=quantize))
    model = profile_model(checkpoint)
    request = request_for(model, checkpoint.config, 512)
    assert request.formats == (expected,)
    assert expected.name == model.weight_format
    shape = request.shape
    attention = 2 * shape.hidden * shape.head_dim * (shape.num_heads + shape.num_kv_heads)
    flops = 2 * (attention + 3 * shape.hidden * shape.intermediate)
    assert flops == pytest.approx(model.layers[0].flops_per_token, rel=0.05)


@pytest.mark.parametrize(
    ("layer_bytes", "expected"),
    [(1, 1 << 20), (5_000_000, 5_013_504), (16384 * 306, 16384 * 306), (1 << 30, 32 << 20)],
)
def test_the_disk_is_read_by_layers(layer_bytes: int, expected: int, tmp_path: Path) -> None:
    """Whole pages of a middle layer, within what a disk shows at all."""
    checkpoint = read_checkpoint(write_tiny_model("llama", tmp_path / "model"))
    model = profile_model(checkpoint)
    layers = tuple(replace(layer, weight_bytes=layer_bytes) for layer in model.layers)
    request = request_for(replace(model, layers=layers), checkpoint.config, 512)
    assert request.disk_read_size_bytes == expected


def test_every_format_of_a_mixed_model_is_measured(tmp_path: Path) -> None:
    untied = {"tie_word_embeddings": False}
    directory = write_tiny_model("llama", tmp_path / "model", quantize="mixed", overrides=untied)
    checkpoint = read_checkpoint(directory)
    model = profile_model(checkpoint)
    assert {layer.weight_format for layer in model.layers} == {model.weight_format} == {"q4"}
    assert model.head_weight_format == "q8"
    assert request_for(model, checkpoint.config, 64).formats == (
        WeightFormat("f32", Quantization(4, 32, "affine")),
        WeightFormat("f32", Quantization(8, 64, "affine")),
    )


def test_sixteen_bit_models(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(write_tiny_model("llama", tmp_path / "a", dtype="bfloat16"))
    assert request_for(profile_model(checkpoint), checkpoint.config, 64).formats == (WeightFormat("bf16"),)
    checkpoint = read_checkpoint(write_tiny_model("llama", tmp_path / "b", dtype="float16", quantize="q4"))
    asked = request_for(profile_model(checkpoint), checkpoint.config, 64).formats
    assert asked == (WeightFormat("f16", Quantization(4, 32, "affine")),)
