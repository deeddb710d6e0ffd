"""`dnet-shard cache`: the real command on a folder with layer files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dnet_core.settings import child_environment, paths
from dnet_core.store.repack import RawTensor, layer_path, write_layer


def cache(action: str, home: Path) -> str:
    command = [sys.executable, "-m", "dnet_core.shard.main", "cache", action]
    environment = child_environment(DNET_HOME=str(home))
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_layer_files_are_listed_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache("list", tmp_path) == "no layer files are kept here\n"
    monkeypatch.setenv("DNET_HOME", str(tmp_path))
    tensor = RawTensor("U8", (20_000_000,), memoryview(bytes(20_000_000)))
    folder = paths().cache / "layers" / "print"
    for layer in (0, 1):
        write_layer(layer_path(folder, layer), {"weight": tensor}, "source", "some/model")
    assert cache("list", tmp_path).split() == ["0.04", "GB", "2", "layers", "some/model"]
    assert cache("clear", tmp_path) == "removed 0.04 GB of layer files\n"
    assert not folder.exists()
    assert cache("clear", tmp_path) == "there are no layer files to remove\n"
    assert cache("list", tmp_path) == "no layer files are kept here\n"


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        cache("burn", tmp_path)
    assert "invalid choice: 'burn'" in refused.value.stderr
