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
from pathlib import Path
from tempfile import TemporaryDirectory

from dnet_core import __version__
from dnet_core.errors import StartError
from dnet_core.settings import CLUSTER_KEY, TIMEOUTS, child_environment, paths
from dnet_core.types.devices import PROTOCOL_VERSION, UNIX, Medium, Peer, PeerAddress, PeerSource


@dataclass(frozen=True, slots=True)
class LocalShard:
    """A running child: how to reach it, and `exited`, which waits for its end and tells the exit code."""

    peer: Peer
    process: Process

    async def exited(self) -> int:
        return await self.process.wait()


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What all local shards share. `key` is the cluster key's text; `grpc_port` None: this machine only."""

    cluster: str
    key: str
    host: str
    grpc_port: int | None
    memory: str | None  # as the option of dnet-shard takes it


@asynccontextmanager
async def local_shard(name: str, options: LocalOptions) -> AsyncIterator[LocalShard]:
    """Run a `dnet-shard` until the block ends; yields when it answers.

    Other processes of this user reach it by a socket file in a folder of its own, other machines (when it
    has a port) by mutual TLS. What it writes goes to a log file. Raises StartError naming that file when it
    does not start.
    """
    log = paths().logs / f"shard-{name}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise StartError(f"the log {log} of a local shard cannot be written: {error.strerror}") from error
    with TemporaryDirectory(prefix="dnet-") as folder:  # made for this user alone (mode 0700)
        socket = Path(folder) / "shard"
        process = await _start(name, options, socket, log)
        try:
            peer = Peer(
                name=name,
                addresses=(PeerAddress(f"{UNIX}{socket}", Medium.LOOPBACK),),
                grpc_port=await _announced_port(process, name, log),
                http_port=0,
                version=__version__,
                protocol_version=PROTOCOL_VERSION,
                cluster=options.cluster,
                source=PeerSource.LOCAL,
            )
            yield LocalShard(peer, process)
        finally:
            await _stop(process)


async def _start(name: str, options: LocalOptions, socket: Path, log: Path) -> Process:
    command = [sys.executable, "-m", "dnet_core.shard.main", "--child-socket", str(socket)]
    command += ["--name", name, "--cluster", options.cluster, "--host", options.host]
    if options.memory is not None:
        command += ["--memory", options.memory]
    if options.grpc_port is not None:
        command += ["--grpc-port", str(options.grpc_port)]
    with log.open("ab") as stderr:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=stderr,
            env=child_environment(**{CLUSTER_KEY: options.key}),
            start_new_session=True,  # Ctrl-C in the terminal is the head's business
        )


async def _announced_port(process: Process, name: str, log: Path) -> int:
    assert process.stdout is not None, "the child was started with a pipe"
    try:
        async with asyncio.timeout(TIMEOUTS.start_shard_s):
            line = await process.stdout.readline()
    except TimeoutError:
        line = b""
    if not line:
        raise StartError(f"the local shard '{name}' did not start: {_last_line(log)} (more in {log})")
    port: int = json.loads(line)["grpc_port"]
    return port


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "it wrote nothing")


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
