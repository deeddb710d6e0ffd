"""The command-line options by which a head says where its devices are; shared by dnet-tui and dnet-api.

Imports nothing slow: a terminal application reads its options before it draws.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dnet_core.errors import StartError
from dnet_core.memory_option import MemoryLimit, memory_limit
from dnet_core.option_types import a_name, port, whole_number

if TYPE_CHECKING:
    from dnet_core.discover.static import StaticTarget


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where devices come from.

    `local_shards` child processes on this machine; `static` targets; `mdns` listens for announcements.
    `grpc_port` is where other machines reach the first local shard (0: any free port); None when the local
    shards work for this machine alone. `memory` limits each local shard.
    """

    local_shards: int = 1
    name: str = "default"
    static: tuple[StaticTarget, ...] = ()
    mdns: bool = False
    grpc_port: int | None = None
    memory: MemoryLimit | None = None

    @property
    def looks_around(self) -> bool:
        return self.mdns or bool(self.static)


def add_cluster_options(parser: argparse.ArgumentParser, grpc_port: int = 0) -> None:
    """Add the group of options that `read_cluster_options` reads; `grpc_port` 0: any free one."""
    group = parser.add_argument_group("devices")
    group.add_argument(
        "--shards",
        type=_count,
        default=1,
        metavar="N",
        help="shard processes to start on this device (default: %(default)s)",
    )
    group.add_argument(
        "--memory",
        type=memory_limit,
        metavar="8GB|60%",
        help="memory that models may take here, in each shard (default: what is free, less a reserve)",
    )
    group.add_argument(
        "--no-local-shard", action="store_true", help="start none here; use other devices only"
    )
    group.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="HOST:PORT",
        help="a shard on another device, by its gRPC port; may be given several times",
    )
    group.add_argument(
        "--hostfile", type=Path, metavar="FILE", help="more of them: lines 'HOST[:PORT] [NAME]', or JSON"
    )
    group.add_argument(
        "--cluster", type=a_name, default="default", metavar="NAME", help="see only shards of this cluster"
    )
    group.add_argument("--no-mdns", action="store_true", help="do not look for devices on the network")
    group.add_argument(
        "--grpc-port",
        type=port,
        metavar="PORT",
        help=f"where other devices reach the shard here (default: {grpc_port or 'any free port'})",
    )
    parser.set_defaults(default_grpc_port=grpc_port)


def read_cluster_options(options: argparse.Namespace) -> ClusterOptions:
    """Raises StartError that names the option, or the file and line, that is wrong."""
    static: list[StaticTarget] = []
    if options.peer or options.hostfile:
        from dnet_core.discover.static import parse_peer_option, read_hostfile  # noqa: PLC0415 - pydantic

        static += [parse_peer_option(text) for text in options.peer]
        if options.hostfile:
            static += read_hostfile(options.hostfile)
    found = ClusterOptions(
        local_shards=0 if options.no_local_shard else options.shards,
        name=options.cluster,
        static=tuple(static),
        mdns=not options.no_mdns,
        memory=options.memory,
    )
    if options.grpc_port is not None and not (found.looks_around and found.local_shards):
        lack = "looks for none: leave out --no-mdns, or add --peer" if found.local_shards else "has no shard"
        raise StartError(f"--grpc-port is for other devices, but this head {lack}")
    grpc_port = options.default_grpc_port if options.grpc_port is None else options.grpc_port
    return replace(found, grpc_port=grpc_port) if found.looks_around else found


def _count(text: str) -> int:
    number = whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1 (to start none here: --no-local-shard)")
    return number
