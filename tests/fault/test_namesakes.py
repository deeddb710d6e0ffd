"""A shard on the network that is called like one of this head's own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.discover.static import parse_target
from dnet_core.events import Event, PeerJoined, PeerLeft
from dnet_core.types.devices import Peer
from tests.ring.processes import local_process, shard_process


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def joined(events: AsyncIterator[Event], name: str) -> Peer:
    async for event in events:
        if isinstance(event, PeerJoined) and event.peer.name == name:
            return event.peer
    raise AssertionError("events do not end")


async def left(events: AsyncIterator[Event], name: str) -> str:
    """Return why it left."""
    async for event in events:
        if isinstance(event, PeerLeft) and event.name == name:
            return event.reason
    raise AssertionError("events do not end")


async def test_it_is_shown_apart_and_leaves_also_when_its_namesake_has_gone() -> None:
    port = free_port()
    options = ClusterOptions(local_shards=1, static=(parse_target(f"127.0.0.1:{port}"),))
    async with asyncio.timeout(120), Coordinator(options) as ring, ring.subscribe() as events:
        await ring.wait_for_local_shards()
        (own,) = ring.peers
        async with shard_process(own.name, port):
            other = await joined(events, f"{own.name} (other)")
            assert other.cannot_join is not None
            local_process(ring, own.name).kill()
            assert await left(events, own.name) == "its process was killed by SIGKILL"
            await joined(events, own.name)  # it is started once more
            local_process(ring, own.name).kill()
            assert "for the second time: start dnet again" in await left(events, own.name)
        await left(events, other.name)
        assert ring.peers == ()
