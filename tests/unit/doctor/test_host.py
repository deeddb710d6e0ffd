"""What the doctor says of this machine, in each state that it can be in."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from pathlib import Path

import pytest

import dnet_core
from dnet_core.doctor import host
from dnet_core.doctor.finding import Check, Finding, Level, findings_of, in_thread
from dnet_core.doctor.host import LOW_DISK_BYTES, NO_DISK_BYTES, disk_finding, thunderbolt_finding
from dnet_core.errors import StartError
from dnet_core.settings import paths
from dnet_core.store.imports import ORIGIN_NAME
from dnet_core.transport.tls import ClusterKey, save_key
from tests.tiny_models import write_tiny_model


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNET_HOME", str(tmp_path))


def levels(findings: list[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


async def test_a_check_that_hangs_is_a_finding() -> None:
    async def forever() -> list[Finding]:
        await asyncio.Event().wait()
        return []

    (found,) = await findings_of(Check("slow", forever, deadline_s=0.05))
    assert (found.check, found.level) == ("slow", Level.BROKEN)
    assert "0.05 s" in found.text


async def test_a_check_that_blocks_is_not_waited_for() -> None:
    release = threading.Event()

    def block() -> list[Finding]:
        release.wait()
        return []

    check = Check("stuck", in_thread("stuck", block).look, deadline_s=0.05)
    try:
        assert levels(await findings_of(check)) == [Level.BROKEN]
    finally:
        release.set()


async def test_an_error_is_a_finding() -> None:
    async def fails() -> list[Finding]:
        raise StartError("no such thing")

    assert await findings_of(Check("it", fails)) == [Finding("it", Level.BROKEN, "no such thing")]


async def test_mlx_works_here() -> None:
    (found,) = await host.mlx()
    assert found.level is Level.GOOD
    assert "computes on" in found.text


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ImportError('no such library')", "ImportError: no such library"),
        ("import os; os.abort()", "the process ended with -6"),
    ],
)
async def test_mlx_that_does_not_work(code: str, said: str) -> None:
    (found,) = await host.mlx((sys.executable, "-c", code))
    assert (found.level, found.advice is None) == (Level.BROKEN, False)
    assert said in found.text


@pytest.mark.parametrize(
    ("free_bytes", "level"),
    [
        (NO_DISK_BYTES - 1, Level.BROKEN),
        (NO_DISK_BYTES, Level.WARNING),
        (LOW_DISK_BYTES - 1, Level.WARNING),
        (LOW_DISK_BYTES, Level.GOOD),
    ],
)
def test_room_on_the_disk(free_bytes: int, level: Level) -> None:
    found = disk_finding("/models", free_bytes)
    assert found.level is level
    assert (found.advice is None) == (level is Level.GOOD)


def test_both_places_of_models_are_told(tmp_path: Path) -> None:
    texts = " ".join(finding.text for finding in host.disk())
    assert str(paths().models) in texts
    assert "hub" in texts


@pytest.mark.parametrize("folder", ["/proc/models", "{file}/models"])
def test_a_folder_that_cannot_be_used_is_said(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that 0.0 GB are free there, which would send people to delete files."""
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("DNET_HOME", folder.format(file=file))
    found = next(f for f in host.disk() if "cannot be put" in f.text)
    assert found.level is Level.BROKEN
    assert str(paths().models) in found.text
    assert "set DNET_HOME" in (found.advice or "")
    assert not any(str(paths().models) in f.text and "are free" in f.text for f in host.disk())


def test_a_damaged_model_is_named() -> None:
    good, bad = paths().models / "good", paths().models / "bad"
    for directory in (good, bad):
        write_tiny_model("llama", directory)
        (directory / ORIGIN_NAME).write_text("{}")
    assert set(levels(host.store())) == {Level.GOOD}
    weights = bad / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (damaged,) = [finding for finding in host.store() if finding.level is not Level.GOOD]
    assert damaged.text.startswith("bad is damaged")
    assert damaged.advice is not None
    assert str(bad) in damaged.advice


def test_the_cluster_key_in_every_state() -> None:
    path = paths().cluster_key
    (none,) = host.cluster_key()
    assert (none.level, path.exists()) == (Level.GOOD, False)  # looking makes none
    save_key(ClusterKey.generate(), path)
    assert levels(host.cluster_key()) == [Level.GOOD]
    path.chmod(0o644)
    (open_to_all,) = host.cluster_key()
    assert open_to_all.level is Level.BROKEN
    assert "chmod 600" in open_to_all.text
    path.chmod(0o600)
    path.write_text("nonsense")
    assert levels(host.cluster_key()) == [Level.BROKEN]


def test_a_clock_that_is_behind() -> None:
    installed = Path(dnet_core.__file__).stat().st_mtime
    (behind,) = host.clock(installed - 3 * 86400)
    assert behind.level is Level.BROKEN
    assert "3.0 days behind" in behind.text
    assert levels(host.clock(time.time())) == [Level.GOOD]


@pytest.mark.parametrize(
    ("cables", "has_address", "level"),
    [(0, False, Level.GOOD), (1, False, Level.WARNING), (2, True, Level.GOOD)],
)
def test_the_thunderbolt_bridge(cables: int, has_address: bool, level: Level) -> None:
    assert thunderbolt_finding(cables, has_address).level is level


async def test_the_rest_of_this_machine() -> None:
    assert levels(host.software()) == [Level.GOOD]
    (memory,) = host.memory()
    assert "for a model" in memory.text
    if sys.platform != "darwin":
        assert await host.thunderbolt() == []
