"""The command line: what it takes, what it refuses, and how its errors read."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest

from dnet_core.types.generation import SamplingParams
from dnet_tui import main as command
from dnet_tui.chat import ChatSettings
from dnet_tui.wishes import EndpointWish


def parse(*arguments: str) -> ChatSettings:
    return command.chat_overrides(command.options_parser().parse_args(arguments)).over(ChatSettings())


def test_every_chat_option_reaches_the_settings() -> None:
    assert parse() == ChatSettings()
    settings = parse(
        "--temperature", "0.2", "--top-p", "0.5", "--seed", "7", "--max-tokens", "9", "--system", "Be brief."
    )
    assert settings == ChatSettings(
        SamplingParams(temperature=0.2, top_p=0.5, seed=7, max_tokens=9), "Be brief."
    )


def test_the_endpoint_options_reach_what_is_wished_for() -> None:
    def wish(*arguments: str) -> EndpointWish:
        return command.endpoint_wish(command.options_parser().parse_args(arguments))

    assert wish() == EndpointWish()
    assert wish("--http-port", "0", "--sessions", "2", "--waiting", "3") == EndpointWish(
        port=0, sessions=2, waiting=3
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--temperature", "-1"], "temperature must be between 0 and 100"),
        (["--max-tokens", "0"], "max_tokens must be at least 1"),
        (["--shards", "0"], "--no-local-shard"),
        (["--sessions", "0"], "at least 1, not 0"),
        (["--peer", "mini:port"], "--peer"),
        (["--peer", "mini:99999"], "99999 is not a port"),
        (["--hostfile", "/no/such/file"], "/no/such/file"),
        (["--no-local-shard", "--no-mdns"], "needs at least one --peer"),
        (["--grpc-port", "58081", "--no-mdns"], "leave out --no-mdns, or add --peer"),
        (["--grpc-port", "58081", "--no-local-shard"], "this head has no shard"),
        (["--demo", "17"], "between 1 and 16"),
        (
            ["--demo", "4", "--shards", "2"],
            "--demo shows simulated Macs and starts nothing: leave out --shards",
        ),
        (["--demo", "2", "--peer", "10.0.0.7", "--memory", "8GB"], "leave out --memory and --peer"),
        (["--temp", "0"], "unrecognized arguments"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dnet-tui", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.options_parser().parse_args(["--help"])
    text = capsys.readouterr().out
    for example in ("dnet-tui --shards 2", "--peer 192.168.1.20:58081", "dnet-shard --join KEY"):
        assert example in text


def test_c_level_writes_go_to_the_log_and_not_to_the_screen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "dnet-tui.log"
    original = sys.__stderr__
    with command.log_instead_of_screen(log):
        os.write(2, b"E0000 grpc says something\n")
        logging.getLogger("dnet_core").error("and so does logging")
        assert sys.__stderr__ is not None
        sys.__stderr__.write("the screen")
    assert sys.__stderr__ is original
    os.write(2, b" and after\n")
    assert capfd.readouterr().err == "the screen and after\n"
    text = log.read_text(encoding="utf-8")
    assert "E0000 grpc says something" in text
    assert "ERROR dnet_core: and so does logging" in text
