"""Discovery over real networks: two machines made of network namespaces, with a switch between them.

    [desk] 10.77.0.1 -- veth -- [switch: a bridge] -- veth -- 10.77.0.2 [studio]

Pulling the cable at the switch leaves both interfaces up, so nobody is told: only silence says it. Taking
the link down is what a Mac that sleeps or leaves the Wi-Fi does.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dnet_core.discover.pace import PACE
from dnet_core.settings import child_environment

CHILD = Path(__file__).with_name("discovery_process.py")
START_S = 20.0  # for a Python process on a busy machine
PORT = 58081


def why_not() -> str | None:
    """Why namespaces cannot be made here; None when they can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are a Linux thing"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    if shutil.which("ip") is None:
        return "iproute2 (the command ip) is not installed"
    name = f"dnet-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"ip netns add: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Lan:
    """Two namespaces and a switch. `pull` and `plug` move the studio's cable at the switch."""

    def __init__(self) -> None:
        self.desk, self.studio, self.switch = (
            f"dnet-{os.getpid()}-{name}" for name in ("desk", "studio", "sw")
        )

    def build(self) -> None:
        for name in (self.switch, self.desk, self.studio):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for name, port, address in ((self.desk, "desk", "10.77.0.1"), (self.studio, "studio", "10.77.0.2")):
            ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")

    def remove(self) -> None:
        for name in (self.desk, self.studio, self.switch):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def pull(self) -> None:
        ip("-n", self.switch, "link", "set", "studio", "nomaster")

    def plug(self) -> None:
        ip("-n", self.switch, "link", "set", "studio", "master", "br0")

    def link_down(self) -> None:
        ip("-n", self.studio, "link", "set", "eth0", "down")

    def link_up(self) -> None:
        ip("-n", self.studio, "link", "set", "eth0", "up")


@pytest.fixture
def lan() -> Iterator[Lan]:
    made = Lan()
    try:
        made.build()
        yield made
    finally:
        made.remove()


class Child:
    """A process of discovery_process.py in a namespace; `next` is its next line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def next(self, within_s: float) -> dict[str, object]:
        assert self.process.stdout is not None
        async with asyncio.timeout(within_s):
            line = await self.process.stdout.readline()
        assert line, "the child ended"
        words: dict[str, object] = json.loads(line)
        return words


@asynccontextmanager
async def child(namespace: str, *words: str) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        "ip", "netns", "exec", namespace, sys.executable, str(CHILD), *words, stdout=asyncio.subprocess.PIPE
    )
    try:
        started = Child(process)
        assert "ready" in await started.next(START_S)
        yield started
    finally:
        process.kill()
        await process.wait()


async def follow_the_cable(lan: Lan, watch: Child, source: str) -> None:
    """The studio is seen, lost with its cable and with its link, and back again both times."""
    seen = await watch.next(PACE.return_s)
    assert (seen["seen"], seen["source"], seen["cannot_join"]) == ("studio", source, None)
    assert seen["hosts"] == ["10.77.0.2"]
    for cut, mend in ((lan.pull, lan.plug), (lan.link_down, lan.link_up)):
        cut()
        cut_at_s = time.monotonic()
        assert (await watch.next(PACE.vanish_s))["vanished"] == "studio"
        lost_after_s = time.monotonic() - cut_at_s
        mend()
        mended_at_s = time.monotonic()
        assert (await watch.next(PACE.return_s))["seen"] == "studio"
        print(f"{source}: lost after {lost_after_s:.1f} s, back after {time.monotonic() - mended_at_s:.1f} s")


async def test_found_by_mdns_lost_and_back(lan: Lan) -> None:
    async with (
        child(lan.studio, "shard", "studio", "id-1", str(PORT), "--mdns"),
        child(lan.desk, "watch", "--mdns") as watch,
    ):
        await follow_the_cable(lan, watch, "mdns")


async def test_found_by_address_without_multicast(lan: Lan) -> None:
    async with (
        child(lan.studio, "shard", "studio", "id-1", str(PORT)),
        child(lan.desk, "watch", "--peer", f"10.77.0.2:{PORT}") as watch,
    ):
        await follow_the_cable(lan, watch, "static")


@asynccontextmanager
async def dnet(namespace: str, home: Path, module: str, *words: str) -> AsyncIterator[None]:
    """One of the real commands in a namespace, from the line in which it says that it is ready."""
    command = ("ip", "netns", "exec", namespace, sys.executable, "-m", module, "--cluster", "netns", *words)
    environment = child_environment(DNET_HOME=str(home))
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(2 * START_S):
            assert await process.stdout.readline(), "the command ended"
        yield
    finally:
        process.kill()
        await process.wait()


async def devices(namespace: str) -> list[str]:
    """The devices that the head in `namespace` tells of."""
    asking = await asyncio.create_subprocess_exec(
        *("ip", "netns", "exec", namespace, sys.executable, "-c", ASK), stdout=asyncio.subprocess.PIPE
    )
    answer, _ = await asking.communicate()
    return sorted(json.loads(answer)["devices"])


async def until(namespace: str, wanted: list[str]) -> None:
    async with asyncio.timeout(START_S):
        while await devices(namespace) != wanted:
            pass


ASK = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/v1/devices').read().decode())"


@pytest.mark.parametrize("how", ["mdns", "hostfile"])
async def test_a_real_shard_and_head_find_each_other(lan: Lan, tmp_path: Path, how: str) -> None:
    """`dnet-shard` on one machine and `dnet-api` on the other: gRPC, TLS and all; cut off, and back."""
    (tmp_path / "hosts").write_text("10.77.0.2 studio\n")
    head = ("--no-local-shard", "--no-load")
    silent = ("--no-mdns",) if how == "hostfile" else ()
    named = ("--hostfile", str(tmp_path / "hosts"), "--no-mdns") if how == "hostfile" else ()
    async with (
        dnet(lan.studio, tmp_path, "dnet_core.shard.main", "--name", "studio", *silent),
        dnet(lan.desk, tmp_path, "dnet_core.main", *head, *named),
    ):
        await until(lan.desk, ["studio"])
        lan.pull()
        await until(lan.desk, [])
        lan.plug()
        await until(lan.desk, ["studio"])


async def test_one_name_on_two_machines(lan: Lan) -> None:
    async with (
        child(lan.desk, "shard", "mac", "id-1", str(PORT), "--mdns"),
        child(lan.studio, "shard", "mac", "id-2", str(PORT), "--mdns"),
        child(lan.desk, "watch", "--mdns") as watch,
    ):
        names = {str((await watch.next(PACE.return_s))["seen"]) for _ in range(2)}
    assert names == {"mac", "mac-2"}
