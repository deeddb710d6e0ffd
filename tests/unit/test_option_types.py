"""Options of every command: what cannot be used is refused in a sentence, before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest

from dnet_core import main as api
from dnet_core import plan_commands
from dnet_core.cluster_options import read_cluster_options
from dnet_core.errors import StartError
from dnet_core.settings import paths, read_keys
from dnet_core.shard import main as shard

Parse = Callable[[list[str]], object]


@pytest.mark.parametrize(
    ("parse", "words", "says"),
    [
        (api.parse, ["--http-port", "99999"], "a port is between 0 and 65535, not 99999"),
        (api.parse, ["--grpc-port", "-1"], "a port is between 0 and 65535, not -1"),
        (api.parse, ["--shards", "two"], "'two' is not a whole number"),
        (api.parse, ["--sessions", "0"], "at least 1, not 0"),
        (api.parse, ["--queue", "lifo"], "'lifo' is none of fair, fifo"),
        (shard.parse, ["--grpc-port", "1234567"], "a port is between 0 and 65535, not 1234567"),
        (shard.parse, ["--http-port", "-1"], "a port is between 0 and 65535, not -1"),
        (shard.parse, ["--http-port", "http"], "'http' is not a whole number"),
        (
            plan_commands.run,
            ["solve", "--devices", "d", "--model", "m", "--objective", "speed"],
            "'speed' is none of latency, throughput",
        ),
        (
            plan_commands.run,
            ["solve", "--devices", "d", "--model", "m", "--batch", "x"],
            "'x' is not a whole number",
        ),
        (
            plan_commands.run,
            ["solve", "--devices", "d", "--model", "m", "--max-rounds", "9" * 30],
            "at most 1,000,000,000",
        ),
        (plan_commands.run, ["profile", "device", "--name", "a\x1b[2J"], "bytes of printable text"),
        (api.parse, ["--cluster", ""], "'' is no name: use 1 to 50 bytes of printable text"),
    ],
)
def test_a_refusal_says_what_was_written_and_what_could_be(
    parse: Parse, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(says)


@pytest.mark.parametrize("parse", [api.parse, shard.parse])
def test_a_port_may_be_left_to_the_system(parse: Callable[[list[str]], argparse.Namespace]) -> None:
    assert parse(["--http-port", "0", "--grpc-port", "0"]).http_port == 0


def test_a_home_of_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNET_HOME", "~nobody-of-that-name/dnet")
    with pytest.raises(StartError, match="DNET_HOME is '~nobody-of-that-name/dnet'"):
        paths()


def test_unreadable_api_keys_are_named_once(tmp_path: Path) -> None:
    with pytest.raises(StartError) as refused:
        read_keys(tmp_path / "gone")
    assert (
        str(refused.value) == f"the API keys in {tmp_path / 'gone'} cannot be read: No such file or directory"
    )
    (tmp_path / "keys").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StartError, match="it is no text"):
        read_keys(tmp_path / "keys")


def test_the_endpoints_own_grpc_port_is_no_wish_of_the_user() -> None:
    """It is refused where nobody could use it only when it was asked for."""
    alone = read_cluster_options(api.parse(["--no-mdns"]))
    assert alone.grpc_port is None
    assert read_cluster_options(api.parse([])).grpc_port == api.GRPC_PORT
    assert read_cluster_options(api.parse(["--no-local-shard"])).local_shards == 0
    with pytest.raises(StartError, match="--grpc-port is for other devices"):
        read_cluster_options(api.parse(["--no-mdns", "--grpc-port", "58080"]))
