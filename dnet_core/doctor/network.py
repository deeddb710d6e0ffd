"""This machine among others: ports, multicast, and the devices of the cluster, in both directions."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from email.utils import parsedate_to_datetime

from dnet_core import __version__
from dnet_core.cluster_options import ClusterOptions
from dnet_core.describe import announcement_of
from dnet_core.discover import mdns
from dnet_core.discover.announcement import Announcement, new_id
from dnet_core.discover.interfaces import Network, host_towards, read_network, resolve
from dnet_core.discover.local import LocalOptions, local_shard
from dnet_core.discover.peers import Discovery, PeerSeen, PeerVanished
from dnet_core.discover.sightings import Membership
from dnet_core.discover.static import StaticTarget
from dnet_core.discover.thunderbolt import hop_addresses
from dnet_core.doctor.finding import Finding, Level
from dnet_core.errors import DnetError
from dnet_core.settings import inherited_cluster_key, paths
from dnet_core.tasks import beside
from dnet_core.transport import tls
from dnet_core.transport.control import Hop, ShardStatus
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import open_channel
from dnet_core.types.devices import PROTOCOL_VERSION, Medium, Peer, grpc_target

LISTEN_S = 5.0
"""Twice the time in which every shard that is alive has answered the question for all."""
HEAR_S = 5.0
ANSWER_S = 3.0
REACH_S = 15.0
MAX_ANSWER_BYTES = 1 << 16
CLOCK_TOLERANCE_S = 300.0
"""Certificates bear a day; clocks that differ by minutes are not set by the network any more."""

_OWN_HEALTH = (
    {"status", "version", "requests_in_flight"},  # dnet-api, dnet-tui
    {"status", "version", "name", "backend", "sessions", "active_bytes"},  # dnet-shard
)
"""What the answers of this program's own ports have; other programs tell a version there too."""

_HERE = "this device"


# ---- ports ----


async def ports(wanted: Sequence[tuple[int, str]]) -> list[Finding]:
    """Whether each of `wanted`, a port and the option that changes it, is free or taken by dnet itself."""
    return [await _port(port, option) for port, option in wanted]


async def _port(port: int, option: str) -> Finding:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        owner = await _dnet_at(port)
        if owner is not None:
            return Finding("ports", Level.GOOD, f"{port} is in use by {owner}, which runs already")
        text = f"{port} cannot be had: {error.strerror or error}"
        return Finding(
            "ports", Level.WARNING, text, f"end what uses it, or choose another port with {option}"
        )
    return Finding("ports", Level.GOOD, f"{port} is free")


async def _dnet_at(port: int) -> str | None:
    """The dnet program that answers at `port` on this machine; None: something else does."""
    told = await _health("127.0.0.1", port)
    if told is not None and any(marks <= told[0].keys() for marks in _OWN_HEALTH):
        return f"dnet {told[0]['version']}"
    with suppress(DnetError):
        return f"the shard '{(await _describe(f'127.0.0.1:{port}', _key())).name}'"
    return None


async def _health(host: str, port: int) -> tuple[dict[str, object], str] | None:
    """The body of `GET /health` and its `Date`; None when nothing answers like that."""
    request = f"GET /health HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request.encode())
                answer = b""
                while len(answer) < MAX_ANSWER_BYTES and (piece := await reader.read(MAX_ANSWER_BYTES)):
                    answer += piece
            finally:
                writer.close()
        head, _, body = answer.decode().partition("\r\n\r\n")
        told = json.loads(body)
    except (OSError, ValueError, RecursionError, TimeoutError):
        return None
    dates = [line[6:] for line in head.split("\r\n") if line.lower().startswith("date: ")]
    return (told, dates[0] if dates else "") if isinstance(told, dict) else None


# ---- multicast ----


async def multicast(network: Network | None = None) -> list[Finding]:
    """Announce a shard of a cluster nobody else is in, on every interface but loopback, and hear it."""
    network = network or await read_network()
    outside = Network(tuple(i for i in network.interfaces if i.medium is not Medium.LOOPBACK))
    if not outside.ipv4_hosts:
        text = "this device has no IPv4 address on any network"
        return [Finding("multicast", Level.WARNING, text, "connect it by cable or Wi-Fi")]
    myself = Announcement(
        new_id(), "doctor", __version__, PROTOCOL_VERSION, 9, 0, f"doctor-{new_id()}", outside.announced
    )
    heard = asyncio.Event()

    async def report(_instance: str, shard: Announcement | None, _reason: str) -> None:
        if shard is not None and shard.id == myself.id:
            heard.set()

    async def answers(_shard: Announcement) -> bool:
        return False

    async def networks() -> AsyncIterator[Network]:
        yield outside
        await asyncio.Event().wait()  # it does not change

    async with (
        mdns.Advertisement(myself, networks),
        beside(mdns.browse(myself.cluster, report, answers, networks)),
    ):
        try:
            async with asyncio.timeout(HEAR_S):
                await heard.wait()
        except TimeoutError:
            text = "this device does not hear its own announcement: devices will not find each other"
            return [Finding("multicast", Level.WARNING, text, _multicast_advice())]
    hosts = ", ".join(outside.ipv4_hosts)
    return [Finding("multicast", Level.GOOD, f"announcements are sent and heard on {hosts}")]


def _multicast_advice() -> str:
    if sys.platform == "darwin":
        return (
            "System Settings > Privacy & Security > Local Network: allow your terminal, then start it again;"
            " or name devices with --peer HOST:PORT"
        )
    return "let UDP port 5353 through the firewall, or name devices with --peer HOST:PORT"


# ---- peers ----


async def peers(options: ClusterOptions) -> list[Finding]:
    """Look for the devices of the cluster, ask each, and let each reach this one and the others."""
    if not options.looks_around:
        return []
    key = _key()
    async with AsyncExitStack() as stack:
        here = LocalOptions(options.name, key.text, "0.0.0.0", 0, None)  # noqa: S104 - mutual TLS guards it
        starting = await stack.enter_async_context(beside(_open(stack, here)))
        seen = await _listen(options, key)
        silent = [await _unheard(target, seen, key) for target in options.static]
        found = [finding for finding in silent if finding is not None]
        usable = [peer for peer in seen if peer.cannot_join is None]
        for peer in seen:
            found += await _peer(peer, key)
        if not seen and not found:
            text = f"no other device of the cluster '{options.name}' was seen within {LISTEN_S:g} s"
            advice = "start dnet-shard on one, in the same network, or name it with --peer HOST:PORT"
            return [Finding("devices", Level.WARNING, text, advice)]
        return found + await _directions(usable, await starting, key)


async def _open(stack: AsyncExitStack, options: LocalOptions) -> Peer | None:
    """A shard here for others to reach; None when none starts, which the check of MLX explains."""
    try:
        return (await stack.enter_async_context(local_shard("doctor", options))).peer
    except DnetError:
        return None


async def _listen(options: ClusterOptions, key: tls.ClusterKey) -> tuple[Peer, ...]:
    """The peers that are seen within `LISTEN_S`."""

    async def describe(target: str) -> Announcement:
        return announcement_of(await _describe(target, key), target)

    found: dict[str, Peer] = {}
    member = Membership(options.name, __version__)
    async with Discovery(member, describe, options.static, options.mdns) as discovery:
        with suppress(TimeoutError):
            async with asyncio.timeout(LISTEN_S):
                async for change in discovery.watch():
                    match change:
                        case PeerSeen(peer):
                            found[peer.name] = peer
                        case PeerVanished(name):
                            found.pop(name, None)
    return tuple(found.values())


async def _unheard(target: StaticTarget, seen: Sequence[Peer], key: tls.ClusterKey) -> Finding | None:
    """Why a named device was not seen; None when it was."""
    host = await resolve(target.host) or target.host
    wanted = grpc_target(host, target.grpc_port)
    if any(wanted == grpc_target(a.host, peer.grpc_port) for peer in seen for a in peer.addresses):
        return None
    try:
        await _describe(target.target, key)
    except DnetError as error:
        advice = "is dnet-shard running there, on that port, and does its firewall let it be reached?"
        return Finding("devices", Level.BROKEN, f"{target.target} does not answer: {error}", advice)
    return Finding("devices", Level.WARNING, f"{target.target} answers, but slowly", "look at its network")


async def _peer(peer: Peer, key: tls.ClusterKey) -> list[Finding]:
    """One device that was seen: whether it can join, what it is, and its clock."""
    if peer.cannot_join is not None:
        return [Finding("devices", Level.BROKEN, f"{peer.name} cannot join: {peer.cannot_join}")]
    try:
        status = await _describe(peer.target, key)
    except DnetError as error:
        text = f"{peer.name} was seen, but does not answer at {peer.target}: {error}"
        return [Finding("devices", Level.BROKEN, text, "its firewall must let dnet-shard be reached")]
    over = peer.addresses[0].medium.value
    text = f"{peer.name} at {peer.target} over {over}: dnet {status.version}, {status.backend}"
    return [Finding("devices", Level.GOOD, text), *await _peer_clock(peer)]


async def _peer_clock(peer: Peer) -> list[Finding]:
    """How far the clock of `peer` is from this one, by the date its HTTP port states."""
    told = await _health(peer.addresses[0].host, peer.http_port) if peer.http_port else None
    if told is None:
        return []
    try:
        stated_unix_s = parsedate_to_datetime(told[1]).timestamp()
    except (ValueError, OverflowError):  # no date, or what is none: something else listens there
        return []
    return [clock_finding(peer.name, stated_unix_s - time.time())]


def clock_finding(peer: str, ahead_s: float) -> Finding:
    """Judge the clock of `peer`, which is `ahead_s` before this device's."""
    if abs(ahead_s) < CLOCK_TOLERANCE_S:
        return Finding("clock", Level.GOOD, f"{peer} has the same time")
    direction = "ahead" if ahead_s > 0 else "behind"
    level = Level.BROKEN if abs(ahead_s) > tls.CLOCK_SKEW.total_seconds() else Level.WARNING
    text = f"the clock of {peer} is {abs(ahead_s) / 60:.0f} minutes {direction} of this one"
    return Finding("clock", level, text, "let both systems set date and time by themselves")


async def _directions(usable: Sequence[Peer], here: Peer | None, key: tls.ClusterKey) -> list[Finding]:
    """Each device reaches this one, and each other one: a ring needs every hop to be open."""
    pairs: list[tuple[Peer, str, str]] = []
    for source in usable:
        if here is not None and here.grpc_port:
            with suppress(OSError):  # no way to it from here: that it does not answer is told already
                back = grpc_target(host_towards(source.addresses[0].host), here.grpc_port)
                pairs.append((source, _HERE, back))
        pairs += [
            (source, other.name, grpc_target(hop_addresses(source, other, usable)[0].host, other.grpc_port))
            for other in usable
            if other is not source
        ]
    return list(await asyncio.gather(*(_reaches(source, name, at, key) for source, name, at in pairs)))


async def _reaches(source: Peer, name: str, target: str, key: tls.ClusterKey) -> Finding:
    way = f"{source.name} -> {name}"
    try:
        async with asyncio.timeout(REACH_S), _shard(source.target, key) as shard:
            hop = Hop("doctor" if name == _HERE else name, target)
            link = await shard.measure_link(hop, Medium.UNKNOWN)
    except TimeoutError:
        why = f"no answer within {REACH_S:g} s"
    except DnetError as error:
        why = str(error)
    else:
        return Finding("devices", Level.GOOD, f"{way}: {link.latency_s * 1e3:.2f} ms one way")
    advice = f"let {name} be reached on TCP port {target.rpartition(':')[2]}: a firewall may be in the way"
    return Finding("devices", Level.BROKEN, f"{way} at {target} is closed: {why}", advice)


async def _describe(target: str, key: tls.ClusterKey) -> ShardStatus:
    async with _shard(target, key) as shard:
        return await shard.describe()


@asynccontextmanager
async def _shard(target: str, key: tls.ClusterKey) -> AsyncIterator[ShardClient]:
    async with open_channel(target, tls.channel_credentials(tls.issue(key, "doctor"))) as channel:
        yield ShardClient(target, channel)


def _key() -> tls.ClusterKey:
    """This device's key; where there is none yet, one that others will refuse, as they would the real one."""
    path = paths().cluster_key
    if inherited_cluster_key() is None and not path.exists():
        return tls.ClusterKey.generate()
    return tls.find_key(inherited_cluster_key(), path)
