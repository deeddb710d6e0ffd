"""Shards and heads as processes of their own, as a person starts them: over TCP with the cluster's key."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from dnet_core.coordinator import Coordinator
from dnet_core.settings import paths
from dnet_core.transport import tls
from dnet_core.transport.control import ShardStatus
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import open_channel
from dnet_core.types.devices import UNIX

SHARD = (sys.executable, "-m", "dnet_core.shard.main", "--host", "127.0.0.1", "--no-mdns")
READY = re.compile(r"gRPC on (\d+), http://localhost:(\d+)/health")


@dataclass(frozen=True, slots=True)
class ShardProcess:
    """A `dnet-shard` that serves."""

    name: str
    process: Process
    grpc_port: int
    http_port: int

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @asynccontextmanager
    async def client(self) -> AsyncIterator[ShardClient]:
        key = tls.find_key(None, paths().cluster_key)
        credentials = tls.channel_credentials(tls.issue(key, "test"))
        async with open_channel(self.target, credentials) as channel:
            yield ShardClient(self.name, channel)

    async def describe(self) -> ShardStatus:
        async with self.client() as client:
            return await client.describe()

    async def ended(self) -> int:
        """The exit code, once the process has ended."""
        return await self.process.wait()


@asynccontextmanager
async def shard_process(name: str, grpc_port: int = 0) -> AsyncIterator[ShardProcess]:
    """A `dnet-shard` on free ports, or that one, until the block ends; yields when it answers."""
    process = await asyncio.create_subprocess_exec(
        *SHARD, "--name", name, "--grpc-port", str(grpc_port), "--http-port", "0", stdout=PIPE, stderr=DEVNULL
    )
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        ports = READY.search(line)
        assert ports is not None, f"{name} does not say where it is ready: {line!r}"
        yield ShardProcess(name, process, int(ports[1]), int(ports[2]))
    finally:
        await _kill(process)


@dataclass(frozen=True, slots=True)
class HeadProcess:
    """A head that generates; see head_process.py."""

    process: Process

    async def tokens(self, count: int) -> list[int]:
        """The next `count` tokens of its answer."""
        assert self.process.stdout is not None
        return [int(await self.process.stdout.readline()) for _ in range(count)]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)


@asynccontextmanager
async def head_process(
    model: Path,
    targets: tuple[str, ...],
    prompt: tuple[int, ...],
    *,
    ends: tuple[int, ...] = (3, 5),
    num_buffers: int = 0,
    chunk_tokens: int = 4,
) -> AsyncIterator[HeadProcess]:
    """A head that loads `model` over the shards at `targets` and answers `prompt`, until the block ends.

    Windows end at `ends`; all layers are streamed through `num_buffers` buffers each, none when that is 0.
    """
    job = json.dumps(
        {
            "model": str(model),
            "targets": targets,
            "prompt": prompt,
            "ends": ends,
            "num_buffers": num_buffers,
            "chunk_tokens": chunk_tokens,
        }
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.ring.head_process", job, stdout=PIPE
    )
    try:
        yield HeadProcess(process)
    finally:
        await _kill(process)


async def _kill(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def local_process(coordinator: Coordinator, name: str) -> psutil.Process:
    """The process of the coordinator's own shard `name`, found by its socket file."""
    (peer,) = (peer for peer in coordinator.peers if peer.name == name)
    socket = peer.addresses[0].host.removeprefix(UNIX)
    (found,) = (child for child in psutil.Process().children() if _is_told(child, socket))
    return found


def _is_told(process: psutil.Process, word: str) -> bool:
    """Whether `word` is on its command line; one that was killed just now has none."""
    try:
        return word in process.cmdline()
    except psutil.ZombieProcess:
        return False
