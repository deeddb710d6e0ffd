"""Shards on this machine: child processes that live exactly as long as their parent wants them.

The child's standard input is a pipe that the parent holds open. However the parent ends, the pipe closes and
the child ends itself; nothing has to be cleaned up.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from dnet_core import __version__
from dnet_core.errors import StartError
from dnet_core.settings import TIMEOUTS, child_environment, paths
from dnet_core.types.devices import PROTOCOL_VERSION, Medium, Peer, PeerAddress, PeerSource

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class LocalShard:
    """A running child: how to reach it, and `exited`, which waits for its end and tells the exit code."""

    peer: Peer
    process: Process

    async def exited(self) -> int:
        return await self.process.wait()


@asynccontextmanager
async def local_shard(name: str, cluster: str) -> AsyncIterator[LocalShard]:
    """Run a `dnet-shard` on loopback until the block ends; yields when it answers.

    What it writes goes to a log file of its own. Raises StartError naming that file when it does not start.
    """
    log = paths().logs / f"shard-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dnet_core.shard.main", "--child", "--no-http"]
    command += ["--name", name, "--cluster", cluster, "--host", LOOPBACK, "--grpc-port", "0"]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=stderr, env=child_environment(), start_new_session=True
        )
    try:
        peer = Peer(
            name=name,
            addresses=(PeerAddress(LOOPBACK, Medium.LOOPBACK),),
            grpc_port=await _announced_port(process, name, str(log)),
            http_port=0,
            version=__version__,
            protocol_version=PROTOCOL_VERSION,
            cluster=cluster,
            source=PeerSource.LOCAL,
        )
        yield LocalShard(peer, process)
    finally:
        await _stop(process)


async def _announced_port(process: Process, name: str, log: str) -> int:
    assert process.stdout is not None, "the child was started with a pipe"
    try:
        async with asyncio.timeout(TIMEOUTS.start_shard_s):
            line = await process.stdout.readline()
    except TimeoutError:
        line = b""
    if not line:
        raise StartError(f"the local shard '{name}' did not start: see {log}")
    port: int = json.loads(line)["grpc_port"]
    return port


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    assert process.stdin is not None, "the child was started with a pipe"
    process.stdin.close()
    try:
        async with asyncio.timeout(TIMEOUTS.stop_child_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
