"""A small shard or watcher as a process of its own, for tests over real networks.

    shard NAME ID PORT [--mdns]                  answers at PORT what it is; prints {"ready": its name}
    watch [--mdns] [--peer HOST:PORT ...]        prints every change of discovery as one line of JSON

The question over the wire is one TCP connection: the shard sends its words as JSON and closes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import asdict

from dnet_core.discover.announcement import Announcement
from dnet_core.discover.mdns import Advertisement
from dnet_core.discover.peers import Discovery, PeerSeen, PeerVanished
from dnet_core.discover.sightings import Membership
from dnet_core.discover.static import parse_target
from dnet_core.types.devices import Medium, PeerAddress

CLUSTER = "net-test"
VERSION = "0.1.0"


def words(announcement: Announcement) -> bytes:
    """What the shard answers."""
    return json.dumps(asdict(announcement)).encode()


async def describe(target: str) -> Announcement:
    """Ask a shard of this file what it is. Raises OSError when it does not answer."""
    where = parse_target(target)
    reader, writer = await asyncio.open_connection(where.host, where.grpc_port)
    try:
        answer = json.loads(await reader.read())
    finally:
        writer.close()
    answer["addresses"] = tuple(PeerAddress(a["host"], Medium(a["medium"])) for a in answer["addresses"])
    return Announcement(**{**answer, "thunderbolt": ()})


async def serve(announcement: Announcement) -> asyncio.Server:
    """Answer everybody who connects to the announced port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(words(announcement))
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, port=announcement.grpc_port)


def say(**words: object) -> None:
    print(json.dumps(words), flush=True)


async def run_shard(name: str, shard_id: str, port: int, mdns: bool) -> None:
    announcement = Announcement(shard_id, name, VERSION, 1, port, port + 1, CLUSTER)
    server = await serve(announcement)
    if not mdns:
        say(ready=name)
        await server.serve_forever()
    async with Advertisement(announcement) as advertisement:
        say(ready=advertisement.name)
        await server.serve_forever()


async def run_watch(mdns: bool, peers: list[str]) -> None:
    targets = [parse_target(peer) for peer in peers]
    member = Membership(CLUSTER, VERSION)
    async with Discovery(member, describe, targets, mdns_enabled=mdns) as discovery:
        say(ready="watch")
        async for change in discovery.watch():
            match change:
                case PeerSeen(peer):
                    hosts = [address.host for address in peer.addresses]
                    say(seen=peer.name, hosts=hosts, source=peer.source, cannot_join=peer.cannot_join)
                case PeerVanished(name, reason):
                    say(vanished=name, reason=reason)


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    shard = commands.add_parser("shard")
    shard.add_argument("name")
    shard.add_argument("id")
    shard.add_argument("port", type=int)
    shard.add_argument("--mdns", action="store_true")
    watch = commands.add_parser("watch")
    watch.add_argument("--mdns", action="store_true")
    watch.add_argument("--peer", action="append", default=[])
    options = parser.parse_args()
    if options.command == "shard":
        asyncio.run(run_shard(options.name, options.id, options.port, options.mdns))
    else:
        asyncio.run(run_watch(options.mdns, options.peer))


if __name__ == "__main__":
    main()
