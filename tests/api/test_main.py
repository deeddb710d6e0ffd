"""What keeps `dnet-api` from serving is told in one line, with an exit code and without a traceback."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dnet_core.errors import StartError
from dnet_core.main import main, read_keys


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--model", "no-such-model"), 1, "no-such-model"),
        (("--host", "0.0.0.0"), 1, "API key"),
        (("--api-key-file", "no-such-file"), 1, "no-such-file"),
        (("--shards", "0"), 2, "at least 1"),
        (("--http-port", "65536"), 2, "between 0 and 65535"),
        (("--queue", "random"), 2, "queue"),
    ],
)
def test_a_wrong_option(
    arguments: tuple[str, ...], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--http-port", "0", "--no-mdns", *arguments])
    assert caught.value.code == code
    *usage, last = capsys.readouterr().err.splitlines()
    assert last.startswith("dnet-api: ")
    assert said in last
    assert code == 2 or not usage


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as caught:
            main(["--http-port", str(port), "--no-mdns"])
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"dnet-api: cannot listen on 127.0.0.1 port {port}")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert "examples:" in told
    assert "curl http://127.0.0.1:8080/v1/chat/completions" in told


def test_keys_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("one\n\n two \n")
    monkeypatch.setenv("DNET_API_KEYS", "three, four,")
    assert read_keys(tmp_path / "keys") == ("one", "two")
    assert read_keys(None) == ("three", "four")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(StartError, match="no API key"):
        read_keys(tmp_path / "empty")
