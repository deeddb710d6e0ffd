"""Announcing and hearing with real multicast on the loopback interface; a process that dies or sleeps."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import uuid4

import pytest
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from dnet_core.discover.announcement import MAX_NAME_BYTES, Announcement, new_id
from dnet_core.discover.interfaces import Interface, Network
from dnet_core.discover.mdns import SERVICE_TYPE, Advertisement, free_name
from dnet_core.discover.pace import Pace
from dnet_core.discover.peers import Discovery, PeerChange, PeerSeen, PeerVanished
from dnet_core.discover.sightings import Membership
from dnet_core.errors import PeerLost, StartError
from dnet_core.types.devices import Medium, Peer, PeerAddress
from tests.net import discovery_process

LOOPBACK = Network((Interface("lo", Medium.LOOPBACK, ("127.0.0.1",)),))
SLOW_S = 30.0  # a deadline of the test, far from every bound that is tested
# A responder may wait a second before it repeats itself, so silence has to be longer than that.
QUICK = Pace(probe_s=0.3, lost_after_s=2.0, answer_s=0.3, retry_max_s=0.5, network_poll_s=0.3)


async def loopback() -> AsyncIterator[Network]:
    """A network that never changes."""
    yield LOOPBACK
    await asyncio.Event().wait()


async def nobody(target: str) -> Announcement:
    raise PeerLost(target, "nobody is there")


@pytest.fixture
def cluster() -> str:
    """A cluster of its own, so that tests that run side by side do not see each other."""
    return f"test-{uuid4().hex[:8]}"


def shard(cluster: str, name: str = "studio", version: str = "0.1.0") -> Announcement:
    return Announcement(new_id(), name, version, 1, 58081, 8081, cluster)


class Watch:
    """The changes that a discovery tells, one after the other."""

    def __init__(self, changes: AsyncIterator[PeerChange]) -> None:
        self._changes = changes

    async def seen(self, within_s: float = SLOW_S) -> Peer:
        change = await self._next(within_s)
        assert isinstance(change, PeerSeen), change
        return change.peer

    async def vanished(self, within_s: float = SLOW_S) -> PeerVanished:
        change = await self._next(within_s)
        assert isinstance(change, PeerVanished), change
        return change

    async def _next(self, within_s: float) -> PeerChange:
        async with asyncio.timeout(within_s):
            return await anext(self._changes)


@asynccontextmanager
async def watching(
    cluster: str, describe: Callable[[str], Awaitable[Announcement]] = nobody
) -> AsyncIterator[Watch]:
    member = Membership(cluster, "0.1.0")
    async with Discovery(member, describe, networks=loopback, pace=QUICK) as discovery:
        yield Watch(discovery.watch())


def advertise(announcement: Announcement) -> Advertisement:
    return Advertisement(announcement, loopback, QUICK)


async def test_appears_and_says_goodbye(cluster: str) -> None:
    async with watching(cluster) as watch:
        async with advertise(shard(cluster)) as advertisement:
            assert advertisement.name == "studio"
            peer = await watch.seen()
            assert (peer.name, peer.target, peer.http_port) == ("studio", "127.0.0.1:58081", 8081)
            assert (peer.version, peer.cluster, peer.cannot_join) == ("0.1.0", cluster, None)
            assert peer.addresses == (PeerAddress("127.0.0.1", Medium.LOOPBACK),)
        assert await watch.vanished() == PeerVanished("studio", "it said goodbye")


async def test_one_that_was_there_before_is_found(cluster: str) -> None:
    async with advertise(shard(cluster)), watching(cluster) as watch:
        assert (await watch.seen()).name == "studio"


async def test_only_its_own_cluster_and_any_version(cluster: str) -> None:
    async with (
        watching(cluster) as watch,
        advertise(shard("somebody else's", "stranger")),
        advertise(shard(cluster, "old", version="0.0.9")),
        advertise(shard(cluster, "new")),
    ):
        peers = {peer.name: peer for peer in (await watch.seen(), await watch.seen())}
    assert peers.keys() == {"old", "new"}
    assert "runs version 0.0.9 (protocol 1), this is 0.1.0" in str(peers["old"].cannot_join), "both are told"
    assert peers["new"].cannot_join is None


async def test_new_addresses_are_announced(cluster: str) -> None:
    cable_is_in = asyncio.Event()
    cable = Interface("bridge0", Medium.THUNDERBOLT, ("169.254.77.7",))

    async def networks() -> AsyncIterator[Network]:
        yield LOOPBACK
        await cable_is_in.wait()
        yield Network((*LOOPBACK.interfaces, cable))
        await asyncio.Event().wait()

    async with watching(cluster) as watch, Advertisement(shard(cluster), networks, QUICK) as advertisement:
        assert [address.host for address in (await watch.seen()).addresses] == ["127.0.0.1"]
        cable_is_in.set()
        assert (await watch.seen()).addresses == (PeerAddress("169.254.77.7", Medium.THUNDERBOLT),)
        assert advertisement.announcement.addresses == (PeerAddress("169.254.77.7", Medium.THUNDERBOLT),)


async def test_a_network_that_comes_later_is_used(cluster: str) -> None:
    """Opening does not wait for a network: a shard starts, and is found, without Wi-Fi and with it later."""
    wifi_is_on = asyncio.Event()

    async def networks() -> AsyncIterator[Network]:
        yield Network((Interface("en0", Medium.WIFI, ("192.0.2.123",)),))  # not an address of this host
        await wifi_is_on.wait()
        yield LOOPBACK
        await asyncio.Event().wait()

    async with watching(cluster) as watch, Advertisement(shard(cluster), networks, QUICK):
        wifi_is_on.set()
        assert (await watch.seen()).name == "studio"


async def test_names_stay_apart_when_shards_start_at_once(cluster: str) -> None:
    adverts = [advertise(shard(cluster)) for _ in range(3)]
    async with asyncio.timeout(SLOW_S), adverts[0], adverts[1], adverts[2]:
        pass  # one after the other: each one hears those before
    assert [advert.name for advert in adverts] == ["studio", "studio-2", "studio-3"]

    gathered: list[str] = []
    all_named = asyncio.Barrier(3)

    async def start_one() -> None:
        async with advertise(shard(cluster)) as advertisement:
            gathered.append(advertisement.name)
            await all_named.wait()

    async with asyncio.timeout(SLOW_S), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(start_one())
    assert sorted(gathered) == ["studio", "studio-2", "studio-3"]


def test_free_names() -> None:
    assert free_name("mac", set()) == "mac"
    assert free_name("mac", {"mac", "mac-2", "mac-4"}) == "mac-3"
    assert free_name("mac-2", {"mac-2"}) == "mac-2-2"


@pytest.mark.parametrize("name", ["mac.lan", "Kim’s MacBook Pro", "a.b._tcp.local."])
async def test_names_as_people_give_them(cluster: str, name: str) -> None:
    async with watching(cluster) as watch, advertise(shard(cluster, name)) as advertisement:
        assert advertisement.name == name
        assert (await watch.seen()).name == name


async def test_a_name_too_long_for_dns_is_refused(cluster: str) -> None:
    with pytest.raises(StartError, match="longer than"):
        advertise(shard(cluster, "ü" * MAX_NAME_BYTES))
    async with watching(cluster) as watch, advertise(shard(cluster, "ü" * (MAX_NAME_BYTES // 2))):
        assert (await watch.seen()).name == "ü" * (MAX_NAME_BYTES // 2)


NONSENSE: tuple[dict[str, str], ...] = (
    {},
    {"id": "x", "name": "a\x1b[2J", "version": "1", "protocol": "1", "grpc": "1", "http": "1"},
    {"id": "x", "name": "a", "version": "1", "protocol": "one", "grpc": "1", "http": "1"},
    {"id": "x", "name": "a", "version": "1", "protocol": "1", "grpc": "99999", "http": "1"},
)


async def test_nonsense_is_passed_over(cluster: str) -> None:
    async with watching(cluster) as watch, AsyncZeroconf(interfaces=["127.0.0.1"]) as zeroconf:
        for nonsense in NONSENSE:
            info = AsyncServiceInfo(
                SERVICE_TYPE,
                f"{uuid4().hex}.{SERVICE_TYPE}",
                port=1,
                properties={"cluster": cluster, **nonsense} if nonsense else {},
                parsed_addresses=["127.0.0.1"],
            )
            await (await zeroconf.async_register_service(info, cooperating_responders=True, strict=False))
        async with advertise(shard(cluster)):
            assert (await watch.seen()).name == "studio"


def dns_name(*labels: bytes) -> bytes:
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def send_pointer(alias: bytes) -> None:
    """Answer, on the loopback interface, that `alias` is a service of our type."""
    record = dns_name(b"_dnet_p2p", b"_tcp", b"local") + struct.pack(">HHIH", 12, 1, 4500, len(alias)) + alias
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sender.sendto(struct.pack(">HHHHHH", 0, 0x8400, 0, 1, 0, 0) + record, ("224.0.0.251", 5353))


@pytest.mark.parametrize(
    "alias",
    [
        dns_name(b"printer", b"_http", b"_tcp", b"local"),
        dns_name(b"x"),
        dns_name(b"\xff" * 63, b"_dnet_p2p", b"_tcp", b"local"),
        dns_name(b"a\x1bb", b"_dnet_p2p", b"_tcp", b"local"),
    ],
    ids=["another type", "no service", "not utf-8", "control characters"],
)
async def test_names_that_no_shard_can_have_are_passed_over(cluster: str, alias: bytes) -> None:
    """One packet of anybody on the network must not end discovery, on no device."""
    async with watching(cluster) as watch, advertise(shard(cluster, "before")):
        assert (await watch.seen()).name == "before"  # everybody listens now
        send_pointer(alias)
        async with advertise(shard(cluster, "after")):
            assert (await watch.seen()).name == "after"


async def test_the_bodys_own_error_comes_out_unwrapped(cluster: str) -> None:
    with pytest.raises(StartError, match="the port is taken"):
        async with watching(cluster), advertise(shard(cluster)):
            raise StartError("the port is taken")


async def test_cancelling_while_the_name_is_looked_for_leaves_nothing(cluster: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), advertise(shard(cluster)):
            pytest.fail("named sooner than others could answer")
    assert len(asyncio.all_tasks()) == 1


@asynccontextmanager
async def shard_process(*options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A shard of discovery_process.py; its cluster is that file's."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, discovery_process.__file__, "shard", *options, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SLOW_S):
            assert "ready" in json.loads(await process.stdout.readline())
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_process_that_sleeps_is_lost_and_comes_back(free_port: int) -> None:
    """Stopped, it answers neither multicast nor unicast: what a Mac does whose lid is closed."""
    name = f"mac-{uuid4().hex[:8]}"
    async with (
        watching_process() as watch,
        shard_process(name, new_id(), str(free_port), "--mdns") as process,
    ):
        assert (await watch.seen()).name == name
        process.send_signal(signal.SIGSTOP)
        try:
            vanished = await watch.vanished(QUICK.vanish_s + 2.0)  # 2 s for a busy machine
        finally:
            process.send_signal(signal.SIGCONT)
        assert vanished.name == name
        assert (await watch.seen()).name == name
        process.kill()
        assert (await watch.vanished()).name == name


@asynccontextmanager
async def watching_process() -> AsyncIterator[Watch]:
    """Watch the cluster of discovery_process.py on all interfaces, as its shards announce on all."""
    member = Membership(discovery_process.CLUSTER, discovery_process.VERSION)
    async with Discovery(member, discovery_process.describe, pace=QUICK) as discovery:
        yield Watch(discovery.watch())


async def test_silent_on_multicast_but_answering_is_not_lost(cluster: str) -> None:
    """An access point that drops multicast must not make peers come and go."""
    announcement = replace(shard(cluster), addresses=(PeerAddress("127.0.0.1", Medium.UNKNOWN),))
    asked = asyncio.Event()
    there = True

    async def describe(target: str) -> Announcement:
        if not there:
            raise PeerLost(target, "switched off")
        asked.set()
        return announcement

    async with watching(cluster, describe) as watch, AsyncZeroconf(interfaces=["127.0.0.1"]) as zeroconf:
        info = Advertisement(announcement, loopback)._info()
        await (await zeroconf.async_register_service(info, cooperating_responders=True, strict=False))
        assert (await watch.seen()).name == "studio"
        zeroconf.zeroconf.registry.async_remove(info)  # from now on it is silent, without a goodbye
        for _ in range(2):
            asked.clear()
            async with asyncio.timeout(SLOW_S):
                await asked.wait()
        there = False
        assert "not answered" in (await watch.vanished()).reason


async def test_those_that_fall_silent_together_are_asked_together(cluster: str) -> None:
    """A switch that loses power: the last one must not wait for the answers of all the others."""
    names = {"air", "mini", "studio"}
    all_asked = asyncio.Barrier(len(names))

    async def describe(target: str) -> Announcement:
        await all_asked.wait()
        raise PeerLost(target, "switched off")

    patient = replace(QUICK, answer_s=2 * SLOW_S)  # asked one after the other, they would wait for ever
    member = Membership(cluster, "0.1.0")
    async with (
        AsyncZeroconf(interfaces=["127.0.0.1"]) as zeroconf,
        Discovery(member, describe, networks=loopback, pace=patient) as discovery,
    ):
        watch = Watch(discovery.watch())
        for name in names:
            here = replace(shard(cluster, name), addresses=(PeerAddress("127.0.0.1", Medium.UNKNOWN),))
            info = Advertisement(here, loopback)._info()
            await (await zeroconf.async_register_service(info, cooperating_responders=True, strict=False))
        assert {(await watch.seen()).name for _ in names} == names
        for info in zeroconf.zeroconf.registry.async_get_service_infos():
            zeroconf.zeroconf.registry.async_remove(info)
        assert {(await watch.vanished()).name for _ in names} == names
