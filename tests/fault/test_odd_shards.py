"""A shard that says of itself what no shard can be, and one that no way leads to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import cast

import pytest

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.discover.static import parse_target
from dnet_core.errors import PeerAbsent
from dnet_core.events import PeerLeft
from dnet_core.transport import tls
from dnet_core.transport.control import ShardService, ShardStatus
from dnet_core.transport.grpc_server import Endpoints, serve
from dnet_core.transport.tls import ClusterKey
from dnet_core.types.devices import Medium, PeerAddress, PeerSource
from tests.fault.test_namesakes import free_port, joined
from tests.ring.processes import local_process

STATUS = ShardStatus(
    id="1", name="odd", version="9", protocol_version=1, cluster="default", grpc_port=1, http_port=70_000,
    addresses=(), thunderbolt=(), backend="cpu", active_bytes=0, peak_bytes=0, memory_total_bytes=1,
    budget_bytes=1, model=None, num_resident=0, num_streamed=0, sessions=(), prefixes=(), prefix_bytes=0,
    steps=0, read_bytes=0, read_s=0.0, kv_room_bytes=0, kv_taken_bytes=0,
)  # fmt: skip


class Odd:
    """Another version of the program, or a broken one: only its status is asked for here."""

    def status(self) -> ShardStatus:
        return STATUS


async def test_it_is_shown_with_the_reason_and_discovery_goes_on() -> None:
    target = f"127.0.0.1:{free_port()}"
    options = ClusterOptions(local_shards=1, static=(parse_target(target),))
    async with asyncio.timeout(60), Coordinator(options) as ring, ring.subscribe() as events:
        key = ClusterKey.from_text(ring.cluster_key)
        credentials = tls.server_credentials(tls.issue(key, "odd"))
        port = int(target.rpartition(":")[2])
        async with serve(cast("ShardService", Odd()), Endpoints("127.0.0.1", port, None, credentials)):
            odd = await joined(events, target)
            assert (
                odd.cannot_join
                == f"{target} says of itself what no shard can be: not a port: http_port = 70000"
            )
        await ring.wait_for_local_shards()


async def test_a_device_that_no_way_leads_to_has_no_links_and_costs_the_others_none() -> None:
    options = ClusterOptions(local_shards=2, grpc_port=0)
    async with asyncio.timeout(60), Coordinator(options) as ring:
        await ring.wait_for_local_shards()
        here = ring.peers
        away = replace(
            here[0],
            name="away",
            source=PeerSource.STATIC,
            addresses=(PeerAddress("no-such-host.invalid", Medium.UNKNOWN),),
        )
        ring._cluster._peers["away"] = away
        links = await ring._cluster.links((*here, away))
        assert {(link.source, link.target) for link in links} == {
            (here[0].name, here[1].name),
            (here[1].name, here[0].name),
        }
        ring._cluster._peers["away"] = local = replace(here[0], name="away")
        assert {here[0].name, "away"} in [
            {link.source, link.target} for link in await ring._cluster.links((here[0], local))
        ], "that no way led to it was of that moment"


async def test_nothing_is_kept_of_links_to_a_device_that_left_meanwhile() -> None:
    async with asyncio.timeout(60), Coordinator(ClusterOptions(local_shards=2)) as ring:
        await ring.wait_for_local_shards()
        (here, gone) = ring.peers
        async with ring.subscribe() as events:
            local_process(ring, gone.name).kill()
            while not isinstance(await anext(events), PeerLeft):
                pass
        with pytest.raises(PeerAbsent):
            await ring._cluster.links((here, gone))
        assert ring._cluster._links == {}
