"""What the doctor says of ports, multicast and other devices: real sockets, real shards."""

from __future__ import annotations

import json
import socket
import sys
import threading
from asyncio import create_subprocess_exec
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dnet_core.cluster_options import ClusterOptions
from dnet_core.discover.interfaces import Network, read_network
from dnet_core.discover.static import StaticTarget
from dnet_core.doctor import main, network
from dnet_core.doctor.finding import Finding, Level
from dnet_core.doctor.network import clock_finding
from dnet_core.types.devices import Medium, Peer, PeerAddress, PeerSource
from tests.ring.processes import shard_process


async def test_a_port_is_free_or_taken() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        port = other.getsockname()[1]
    (free,) = await network.ports([(port, "--http-port")])
    assert free == Finding("ports", Level.GOOD, f"{port} is free")
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        (taken,) = await network.ports([(port, "--grpc-port")])
    assert taken.level is Level.WARNING
    assert taken.advice is not None
    assert "--grpc-port" in taken.advice


@contextmanager
def answering(body: bytes, date: str = "Thu, 01 Jan 2026 00:00:00 GMT") -> Iterator[int]:
    """Another program's HTTP server, which answers everything with `body`; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_arguments: object) -> None:
            """Nobody reads it."""

        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", date)
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "body", [b'{"status": "pass", "name": "influxdb", "version": "v2.7"}', b"[" * 60_000, b"\xff", b"[]"]
)
async def test_another_program_is_not_taken_for_dnet(body: bytes) -> None:
    with answering(body) as port:
        (found,) = await network.ports([(port, "--http-port")])
    assert found.level is Level.WARNING


@pytest.mark.parametrize("date", ["yesterday", "", "Thu, 99 Jan 2026 00:00:00 GMT"])
async def test_a_clock_that_tells_no_time_is_passed_over(date: str) -> None:
    with answering(b"{}", date) as http_port:
        here = (PeerAddress("127.0.0.1", Medium.LOOPBACK),)
        peer = Peer("studio", here, 1, http_port, "0.1.0", 1, "home", PeerSource.MDNS)
        assert await network._peer_clock(peer) == []


async def test_devices_in_both_directions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with shard_process("studio") as studio, shard_process("mini") as mini:
        (running,) = await network.ports([(studio.http_port, "--http-port")])
        assert (running.level, "runs already" in running.text) == (Level.GOOD, True)
        (running,) = await network.ports([(studio.grpc_port, "--grpc-port")])
        assert (running.level, "'studio'" in running.text) == (Level.GOOD, True)

        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # bound, but nobody listens
            port = nobody.getsockname()[1]
            targets = [StaticTarget("127.0.0.1", p) for p in (studio.grpc_port, mini.grpc_port, port)]
            found = await network.peers(ClusterOptions(static=tuple(targets), grpc_port=0))
        broken = [finding for finding in found if finding.level is not Level.GOOD]
        assert [finding.text.split(" does not answer")[0] for finding in broken] == [f"127.0.0.1:{port}"]
        ways = {finding.text.split(":")[0] for finding in found if " -> " in finding.text}
        both = ("studio -> mini", "mini -> studio", "studio -> this device", "mini -> this device")
        assert ways == set(both)
        assert sum(finding.check == "clock" for finding in found) == 2

        monkeypatch.setenv("DNET_HOME", str(tmp_path))  # another key
        (stranger,) = await network.peers(ClusterOptions(static=(targets[0],), grpc_port=0))
        assert stranger.level is Level.BROKEN
        assert "cluster key" in stranger.text


@pytest.mark.parametrize(
    ("ahead_s", "level"),
    [(1, Level.GOOD), (-299, Level.GOOD), (600, Level.WARNING), (-90_000, Level.BROKEN)],
)
def test_the_clock_of_another_device(ahead_s: float, level: Level) -> None:
    found = clock_finding("mini", ahead_s)
    assert found.level is level
    assert ("ahead" in found.text) == (ahead_s > 299)


async def test_multicast_is_sent_and_heard() -> None:
    here = await read_network()
    outside = [i for i in here.interfaces if i.medium is not Medium.LOOPBACK]
    if not Network(tuple(outside)).ipv4_hosts:
        pytest.skip("this machine is on no network")
    (found,) = await network.multicast(here)
    assert found.level is Level.GOOD, found.text


async def test_without_a_network() -> None:
    (found,) = await network.multicast(Network(()))
    assert (found.level, "no IPv4 address" in found.text) == (Level.WARNING, True)


async def doctor(module: str, home: Path, *options: str) -> tuple[int | None, str]:
    from dnet_core.settings import child_environment

    process = await create_subprocess_exec(
        *(sys.executable, "-m", module, "doctor", *options),
        stdout=PIPE,
        env=child_environment(DNET_HOME=str(home)),
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


@pytest.mark.parametrize("module", ["dnet_core.main", "dnet_core.shard.main", "dnet_tui.main"])
async def test_the_word_of_each_command(module: str, tmp_path: Path) -> None:
    code, output = await doctor(module, tmp_path, "--no-mdns", "--json")
    told: list[dict[str, Any]] = json.loads(output)
    assert code == any(finding["level"] == "broken" for finding in told)
    checks = {finding["check"] for finding in told}
    assert {"software", "mlx", "memory", "disk", "models", "cluster key", "clock", "multicast"} <= checks
    assert ("ports" in checks) == (module != "dnet_tui.main")


async def test_something_broken_ends_with_1_and_says_what_to_do(tmp_path: Path) -> None:
    key = tmp_path / "config" / "cluster.key"
    key.parent.mkdir()
    key.write_text("nonsense")
    key.chmod(0o644)
    code, output = await doctor("dnet_tui.main", tmp_path, "--no-mdns")
    assert code == 1
    assert "✗ cluster key" in output
    assert "chmod 600" in output
    assert output.splitlines()[-1].startswith("1 broken")


def test_lines_fit_the_terminal() -> None:
    found = [
        Finding("it", Level.WARNING, "word " * 40, "advice " * 30),
        Finding("much longer", Level.BROKEN, "short"),
    ]
    told = list(main.lines(found))
    assert max(map(len, told)) <= main.COLUMNS
    assert told[0].startswith("! it")
    assert any(line.strip().startswith("→ advice") for line in told)
    assert told[-1] == "1 broken, 1 to look at"
    assert list(main.lines([Finding("it", Level.GOOD, "fine")]))[-1] == "all is well"
