"""What keeps `dnet-api` from serving is told in one line, with an exit code and without a traceback."""

from __future__ import annotations

import socket

import pytest

from dnet_core.main import main


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--model", "no-such-model"), 1, "no-such-model"),
        (("--host", "0.0.0.0"), 1, "API key"),
        (("--api-key-file", "no-such-file"), 1, "no-such-file"),
        (("--shards", "0"), 2, "at least 1"),
        (("--http-port", "65536"), 2, "between 0 and 65535"),
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
