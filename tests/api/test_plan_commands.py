"""`dnet-api profile` and `dnet-api solve`: what is printed, and what is said when it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dnet_core import main as dnet_api
from dnet_core.errors import RequestError
from dnet_core.plan_tables import COLUMNS, size
from dnet_core.profile.device import profile_from_json, profile_to_json
from dnet_core.profile.model import profile_model
from dnet_core.profile.model_json import (
    links_from_json,
    links_to_json,
    model_profile_from_json,
    model_profile_to_json,
)
from dnet_core.solve.plan import solve
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.types.plan import SolveRequest
from tests.clusters import GIB, MIB, device, layer, link, mesh, model
from tests.tiny_configs import CONFIGS
from tests.tiny_models import write_tiny_model

STUDIO = device("studio", 14 * GIB, memory_gb_per_s=800, tflops=28)
MINI = device("mini-of-the-living-room", 6 * GIB)
AIR = device("air", 3 * GIB, memory_gb_per_s=68, tflops=2.5)
MODEL = model([layer(400 * MIB)] * 48)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Saved profiles of three devices, a model, and the links."""
    for profile in (STUDIO, MINI, AIR):
        (tmp_path / f"{profile.peer}.json").write_text(
            profile_to_json(replace(profile, measured_at_unix_s=1.0))
        )
    (tmp_path / "model.json").write_text(model_profile_to_json(MODEL))
    (tmp_path / "links.json").write_text(links_to_json(mesh([STUDIO, MINI, AIR])))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    dnet_api.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def failed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What is said on the way to exit code 1."""
    with pytest.raises(SystemExit) as caught:
        run(capsys, *arguments)
    assert caught.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


def solve_arguments(files: Path, *more: object) -> tuple[object, ...]:
    devices = [files / f"{profile.peer}.json" for profile in (STUDIO, MINI, AIR)]
    return ("solve", "--devices", *devices, "--model", files / "model.json", *more)


def test_a_plan_from_saved_profiles(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: dict[str, Any] = json.loads(
        run(capsys, *solve_arguments(files, "--links", files / "links.json", "--seq-len", 4096, "--json"))
    )
    devices = tuple(replace(d, measured_at_unix_s=1.0) for d in (STUDIO, MINI, AIR))
    expected = solve(
        SolveRequest(model=MODEL, devices=devices, links=mesh([STUDIO, MINI, AIR]), context_tokens=4096)
    )
    assert told["assumptions"] == []
    assert (told["model"], told["num_layers"], told["seq_len"]) == ("test/model", 48, 4096)
    assert {a["instance"]: a["layers"] for a in told["assignments"]} == {
        a.peer: [list(window.layers) for window in a.windows] for a in expected.plan.assignments
    }
    assert told["prediction"]["ms_per_token"] == pytest.approx(1e3 * expected.prediction.tpot_s)
    assert [row["instances"] for row in told["sizes"]] == [list(row.peers) for row in expected.sizes]


def test_the_tables_fit_the_terminal_and_say_everything(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run(capsys, *solve_arguments(files))
    told = json.loads(run(capsys, *solve_arguments(files, "--json")))
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert any(
        row["streamed_bytes_per_token"] for row in told["sizes"]
    )  # 19 GiB: one device alone must stream
    for reason in told["reasons"]:
        assert f"{reason['instance']}: {reason['text'].split()[0]} " in text
    for row in told["sizes"]:
        if row["streamed_bytes_per_token"]:
            assert size(row["streamed_bytes_per_token"]) in text
    assert f"({told['prediction']['tokens_per_s']:.1f} tokens/s)" in text
    for said in ("first token", "many clients", "memory", "budget", "why", "* the plan", "assumed"):
        assert said in text
    assert "like ethernet: 500 µs one way, 110 MB/s" in " ".join(text.split())


def test_streaming_is_told_device_by_device(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = ("solve", "--devices", files / "studio.json", "--model", files / "model.json")
    text = run(capsys, *alone)
    assert "layers from disk for every token, through" in " ".join(text.split())
    assert "assumed" not in text  # one device has no links
    error = failed(capsys, *alone, "--no-streaming")
    assert error.startswith("dnet-api: test/model does not fit 1 device(s)")
    assert "what would help: let layers stream from disk" in error


def test_wishes_reach_the_solver(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(
        run(
            capsys,
            *solve_arguments(
                files, "--exclude", "air", "--kv-bits", 8, "--batch", 2, "--assume-links", "wifi"
            ),
            *("--objective", "throughput", "--head", "mini-of-the-living-room", "--json"),
        )
    )
    assert (told["kv_bits"], told["max_batch_exp"]) == ("8bit", 1)
    assert told["assignments"][0]["instance"] == "mini-of-the-living-room"
    assert "air" not in [a["instance"] for a in told["assignments"]]
    assert "wifi" in told["assumptions"][0]


def test_what_cannot_be_read_is_said_in_one_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = files / "broken.json"
    broken.write_text("{")
    old = files / "old.json"
    old.write_text((files / "air.json").read_text().replace('"chip"', '"chop"'))
    air, ring = files / "air.json", files / "model.json"
    none, deep, odd, vast, heavy = (
        files / f"{n}.json" for n in ("none-there", "deep", "odd", "vast", "heavy")
    )
    none.write_text("[]")
    deep.write_text("[" * 100_000)
    odd.write_text(air.read_text().replace('"peer": "air"', '"peer": "air\\u001b[2J"'))
    vast.write_text(air.read_text().replace('"memory_budget_bytes": ', '"memory_budget_bytes": 1000000000'))
    heavy.write_text(ring.read_text().replace('"weight_bytes": ', '"weight_bytes": 1000000000', 1))
    for arguments, said in (
        (("--devices", files / "none.json", "--model", ring), "none.json: No such file"),
        (("--devices", broken, "--model", ring), "broken.json is not JSON"),
        (("--devices", old, "--model", ring), "field 'chip'"),
        (("--devices", air, "--model", broken), "of a model profile"),
        (("--devices", air, air, "--model", ring), "listed twice"),
        (("--devices", air, "--model", ring, "--links", ring), "of a list of links"),
        (("--devices", air, "--model", ring, "--head", "nobody"), "'nobody'"),
        (("--devices", air, "--model", "no-such-model"), "no-such-model"),
        (("--devices", none, "--model", ring), "hold no device"),
        (("--devices", air, "--model", ring, "--exclude", "aire"), "--exclude aire: no --devices file"),
        (("--devices", deep, "--model", ring), "deep.json is not JSON"),
        (("--devices", odd, "--model", ring), "field 'peer'"),
        (("--devices", vast, "--model", ring), "field 'memory_budget_bytes'"),
        (("--devices", air, "--model", heavy), "field 'layers.0.weight_bytes'"),
        (("--devices", air, "--model", ring, "--batch", 10**9), "petabytes"),
        (("--devices", air, "--model", "~nobody-of-that-name/model"), "it cannot be looked at"),
    ):
        error = failed(capsys, "solve", *arguments)
        assert error.startswith("dnet-api: ")
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("model_type", ["llama", "deepseek_v2", "gemma3_text", "mamba2", "qwen3_moe"])
def test_a_model_is_told_from_its_headers(
    model_type: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_type in CONFIGS
    directory = write_tiny_model(model_type, tmp_path / "tiny")
    expected = replace(profile_model(read_checkpoint(directory)), model=str(directory))
    told = run(capsys, "profile", "model", directory, "--json")
    assert model_profile_from_json(told, "stdout") == expected
    text = run(capsys, "profile", "model", directory)
    assert f"{expected.num_layers} layers" in text
    assert size(expected.embedding_bytes) in text
    for line in text.splitlines()[1:]:
        assert len(line) <= COLUMNS


def test_links_travel_as_json() -> None:
    links = (link("a", "b"), link("b", "a", latency_s=1e-3))
    assert links_from_json(links_to_json(links), "links") == links
    with pytest.raises(RequestError, match=r"links: field '1\.latency_s' of a list of links"):
        links_from_json(links_to_json(links).replace("0.001", "-1"), "links")


def test_this_device_is_measured_for_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_tiny_model("llama", tmp_path / "tiny")
    arguments = ("profile", "device", "--model", directory, "--name", "here")
    profile = profile_from_json(run(capsys, *arguments, "--json"), "stdout")
    assert (profile.peer, [speed.weight_format for speed in profile.speeds]) == ("here", ["f32"])
    text = run(capsys, *arguments)  # from the cache: what was measured is the same
    assert text.startswith(f"here: {profile.chip}")
    assert f"{size(profile.disk_read_bytes_per_s)}/s" in text


def test_the_links_of_a_ring_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    links = links_from_json(run(capsys, "profile", "links", "--shards", 2, "--no-mdns", "--json"), "stdout")
    (there, back) = links
    assert (there.source, there.target, there.medium) == (back.target, back.source, "loopback")
    assert 0 < there.latency_s < 1
    error = failed(capsys, "profile", "links", "--no-mdns")
    assert "name others with --peer" in error
