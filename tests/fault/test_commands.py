"""`dnet-shard` as a person or a supervisor meets it: options, ports, signals, and the death of a parent."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from dnet_core import __version__
from dnet_core.transport.control import Limits, LoadOrder, Purpose, SessionOrder
from dnet_core.transport.frames import Prompt
from dnet_core.transport.grpc_link import DRIVER_PREFIX, ring_link
from dnet_core.types.generation import SamplingParams
from dnet_core.types.ring import LayerWindow
from tests.ring.processes import SHARD, ShardProcess, shard_process
from tests.tiny_models import write_tiny_model

SOON_S = 2.0
ENDED_S = 10.0  # for what must happen, but not how fast


def shard_command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SHARD, *options], capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_help_names_every_option() -> None:
    done = shard_command("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("--name", "--cluster", "--host", "--grpc-port", "--http-port", "--log-level", "examples"):
        assert option in done.stdout
    assert "--child" not in done.stdout, "not for people"


def test_version() -> None:
    assert shard_command("--version").stdout == f"dnet-shard {__version__}\n"


@pytest.mark.parametrize("options", [("--no-such-option",), ("--grpc-port", "many")])
def test_a_bad_option_is_a_usage_error(options: tuple[str, ...]) -> None:
    done = shard_command(*options)
    assert done.returncode == 2
    assert options[0] in done.stderr
    assert done.stderr.startswith("usage: dnet-shard")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("option", "other"), [("--grpc-port", "--http-port"), ("--http-port", "--grpc-port")]
)
def test_a_taken_port_is_one_clear_line(option: str, other: str) -> None:
    with taken_port() as port:
        done = shard_command(option, str(port), other, "0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("dnet-shard: ")
    assert "cannot listen on" in line
    assert str(port) in line
    assert option in line, "what to do about it"


def test_a_name_that_cannot_be_announced_is_one_clear_line() -> None:
    command = [sys.executable, "-m", "dnet_core.shard.main", "--name", "n" * 51, "--grpc-port", "0"]
    done = subprocess.run(
        [*command, "--http-port", "0"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("dnet-shard: the name 'nnn")
    assert "--name" in done.stderr
    assert done.stderr.count("\n") == 1


def get_json(url: str) -> dict[str, object]:
    with urllib.request.urlopen(url, timeout=5) as reply:
        found: dict[str, object] = json.load(reply)
        return found


@pytest.fixture
def model(models: Path) -> Path:
    return write_tiny_model("llama", models / "commands")


async def compute(shard: ShardProcess, model: Path) -> None:
    """Load the model as a ring of one and leave the shard in the middle of a long answer."""
    async with shard.client() as client:
        order = LoadOrder(str(model), 5, (LayerWindow(0, 5),), (), 0, 100_000, 16, None, Limits(None, 0, 32))
        async for _ in client.load(order):
            pass
        driver = f"{DRIVER_PREFIX}test"
        lost = asyncio.Event()
        async with ring_link(
            client.channel, shard.name, driver, 5, lambda _frame: None, lambda _error: lost.set()
        ) as link:
            sampling = SamplingParams(max_tokens=90_000, seed=1)
            await client.open_session(
                driver, SessionOrder("s", 3, 90_000, (), (), (), sampling, 1, (), Purpose.ANSWER, None)
            )
            link.send(Prompt("s", 0, (5, 6, 7), True))
            while (await client.describe()).steps < 20:
                pass
            shard.process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            assert await shard.ended() == 0
            assert time.monotonic() - begun < SOON_S


async def test_health_and_the_end_by_ctrl_c(model: Path) -> None:
    async with shard_process("idle") as shard:
        url = f"http://127.0.0.1:{shard.http_port}/health"
        health = await asyncio.to_thread(get_json, url)
        assert health["status"] == "ok"
        assert (health["name"], health["version"]) == ("idle", __version__)
        assert (health["model"], health["sessions"]) == (None, 0)
        shard.process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        assert await shard.ended() == 0
        assert time.monotonic() - begun < SOON_S


async def test_sigterm_while_computing(model: Path) -> None:
    async with shard_process("busy") as shard:
        await compute(shard, model)


PARENT = """
import asyncio, sys
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator

async def main():
    async with Coordinator(ClusterOptions(local_shards=1)) as head:
        await head.wait_for_local_shards()
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        (child,) = psutil.Process(parent.pid).children()
        os.kill(parent.pid, signal.SIGKILL)
        gone, alive = psutil.wait_procs([child], timeout=ENDED_S)
        for left in alive:
            left.kill()
    assert gone == [child]
