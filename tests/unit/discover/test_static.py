"""`--peer` and hostfiles: what is read, and that every mistake names its file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnet_core.discover.static import (
    DEFAULT_GRPC_PORT,
    StaticTarget,
    parse_peer_option,
    read_hostfile,
)
from dnet_core.errors import StartError


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("10.0.0.5:7000", "10.0.0.5", 7000, "10.0.0.5:7000"),
        ("10.0.0.5", "10.0.0.5", DEFAULT_GRPC_PORT, f"10.0.0.5:{DEFAULT_GRPC_PORT}"),
        ("mini.local:1", "mini.local", 1, "mini.local:1"),
        ("[2001:db8::7]:65535", "2001:db8::7", 65535, "[2001:db8::7]:65535"),
        ("[::1]", "::1", DEFAULT_GRPC_PORT, f"[::1]:{DEFAULT_GRPC_PORT}"),
        ("[fe80::1%en5]:7000", "fe80::1%en5", 7000, "[fe80::1%en5]:7000"),
        ("[fe80::1%eth0.7]:7000", "fe80::1%eth0.7", 7000, "[fe80::1%eth0.7]:7000"),
    ],
)
def test_peer_option(text: str, host: str, port: int, target: str) -> None:
    assert parse_peer_option(text) == StaticTarget(host, port)
    assert parse_peer_option(text).target == target


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not host"),
        ("10.0.0.5:", "not host"),
        ("10.0.0.5:0", "0 is not a port"),
        ("10.0.0.5:70000", "70000 is not a port"),
        ("2001:db8::7", r"needs brackets, \[2001:db8::7\]"),
        ("[2001:db8::7", "not host"),
        ("a b", "not host"),
        ("evil\x1b[2J", "not"),
    ],
)
def test_wrong_peer_options(text: str, says: str) -> None:
    with pytest.raises(StartError, match=says):
        parse_peer_option(text)


def test_text_hostfile(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# my Macs\n\n10.0.0.5:7000  studio # the big one\n[2001:db8::7]\n  mini.local\tmini\n")
    assert read_hostfile(path) == (
        StaticTarget("10.0.0.5", 7000, "studio"),
        StaticTarget("2001:db8::7"),
        StaticTarget("mini.local", DEFAULT_GRPC_PORT, "mini"),
    )


def test_text_hostfile_may_begin_with_a_bracket(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("[2001:db8::7]:7000\n")
    assert read_hostfile(path) == (StaticTarget("2001:db8::7", 7000),)


@pytest.mark.parametrize("name", ["hosts.json", "hosts"])
def test_json_hostfile(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('[\n {"host": "10.0.0.5", "grpc_port": 7000, "name": "studio"},\n {"host": "::1"}\n]\n')
    assert read_hostfile(path) == (StaticTarget("10.0.0.5", 7000, "studio"), StaticTarget("::1"))


@pytest.mark.parametrize(
    ("name", "text", "line", "says"),
    [
        ("hosts", "10.0.0.5\n10.0.0.6:x\n", 2, "not host"),
        ("hosts", "# one\n\n10.0.0.5 studio please\n", 3, "not 3 words"),
        ("hosts", "10.0.0.5\n10.0.0.6\n10.0.0.5:58081\n", 3, "there twice"),
        ("h.json", '[\n {"host": "a"},\n {"host": "b", "port": 1}\n]', 3, "port: Extra inputs"),
        ("h.json", '[\n {"host": "a{"},\n\n {"host": ""}\n]', 4, "host: "),
        ("h.json", '[\n {"host": "a"},\n {"host": "b", "grpc_port": "1"}\n]', 3, "grpc_port: "),
        ("h.json", '[\n {"host": "a"},\n {"name": "b"}\n]', 3, "host: Field required"),
        ("h.json", '[\n {"host": "a"},\n {"host": "a"}\n]', 3, "there twice"),
        ("h.json", '[\n {"host": "a"},\n {"host" "b"}\n]', 3, "delimiter"),
        ("h.json", '{"host": "a"}', 1, "valid array"),
        ("h.json", '[\n {"host": "a"},\n {"host": "10.0.0.5:58081"}\n]', 3, "its port goes into 'grpc_port'"),
        ("h.json", '[\n {"host": "[::1]"}\n]', 2, "'[::1]' is not a host name or an IP address"),
        ("hosts", "10.0.0.5\n[::::]:1\n", 2, "'::::' is not a host name or an IP address"),
    ],
)
def test_mistakes_in_hostfiles(tmp_path: Path, name: str, text: str, line: int, says: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(StartError) as raised:
        read_hostfile(path)
    assert str(raised.value).startswith(f"{path}:{line}: ")
    assert says in str(raised.value)


def test_hostfiles_that_are_not_there_or_name_nobody(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot read the hostfile"):
        read_hostfile(tmp_path / "missing")
    empty = tmp_path / "empty"
    empty.write_text("# nobody yet\n")
    with pytest.raises(StartError, match="names no host"):
        read_hostfile(empty)


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"host": "a", "grpc_port": ' + "9" * 5000 + "}]"])
def test_json_beyond_all_measure_is_refused_too(tmp_path: Path, text: str) -> None:
    (tmp_path / "h.json").write_text(text)
    with pytest.raises(StartError, match=r"h\.json"):
        read_hostfile(tmp_path / "h.json")


def test_json_host_with_escape_sequences_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.json"
    path.write_text('[\n {"host": "a\\u001b[2J"}\n]')
    with pytest.raises(StartError, match=":2: "):
        read_hostfile(path)
