"""Sightings of shards -> peers: a pure function of what is known now, in whatever order it came.

A sighting is one shard seen in one way (heard by multicast, or answering at a target). Sightings with the
same id are one peer with all the addresses; peers keep their names apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from dnet_core.discover.announcement import Announcement
from dnet_core.types.devices import PROTOCOL_VERSION, Medium, Peer, PeerAddress, PeerSource


@dataclass(frozen=True, slots=True)
class Route:
    """An address of a shard, by its own word, and what packets from here leave over (None: no way)."""

    address: PeerAddress
    leaves_over: Medium | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """A shard seen in one way. `refusal` is why it did not want to talk to us, if it did not."""

    source: PeerSource
    shard: Announcement
    routes: tuple[Route, ...]
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    """What a peer must match to join: the cluster's name and this program's version."""

    cluster: str
    version: str
    protocol_version: int = PROTOCOL_VERSION

    def objection(self, shard: Announcement) -> str | None:
        """Why `shard` cannot join; None when it can. Patch releases mix, other versions do not."""
        if shard.cluster != self.cluster:
            return f"belongs to cluster '{shard.cluster}', this is '{self.cluster}'"
        if shard.protocol_version != self.protocol_version or _series(shard.version) != _series(self.version):
            return (
                f"runs version {shard.version} (protocol {shard.protocol_version}), this is {self.version}"
                f" (protocol {self.protocol_version}): install the same version on both"
            )
        return None


def _series(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])


_SOURCE_ORDER = (PeerSource.LOCAL, PeerSource.STATIC, PeerSource.MDNS)
"""Whose word counts when sightings of one shard differ: what was answered just now before what was heard."""

_SPEED = (Medium.LOOPBACK, Medium.THUNDERBOLT, Medium.ETHERNET, Medium.WIFI, Medium.UNKNOWN)
_NOT_REACHED = len(_SPEED)


def routes_to(
    addresses: Iterable[PeerAddress], leaves_over: Callable[[str], Medium | None]
) -> tuple[Route, ...]:
    """Pair every address with what it is reached over from here.

    A shard on this host has only addresses of this host. One elsewhere may share some with it (virtual
    machine bridges have the same address everywhere): those would lead back here and are dropped.
    """
    routes = [Route(address, leaves_over(address.host)) for address in addresses]
    elsewhere = [route for route in routes if route.leaves_over is not Medium.LOOPBACK]
    return tuple(elsewhere or routes)


def route_order(route: Route) -> tuple[int, bool, str]:
    """Sorts routes best first: by the slower end of the way, then IPv4, then the address itself."""
    here, there = route.leaves_over, route.address.medium
    host = route.address.host
    if here is None or (there is Medium.THUNDERBOLT and here not in (there, Medium.LOOPBACK)):
        return _NOT_REACHED, ":" in host, host  # a Thunderbolt address is only good on the cable
    if here is Medium.LOOPBACK:
        return 0, ":" in host, host
    known = [medium for medium in (here, there) if medium is not Medium.UNKNOWN]
    return max((_SPEED.index(m) for m in known), default=_SPEED.index(Medium.UNKNOWN)), ":" in host, host


def merge(sightings: Iterable[Sighting], member: Membership) -> dict[str, Peer]:
    """Make one peer of all sightings with the same shard id; the result is keyed by peer name.

    Order of `sightings` does not matter. Of two shards with one name the one with the smaller id keeps it;
    the other is shown under `name (first digits of its id)` and cannot join.
    """
    by_id: dict[str, list[Sighting]] = {}
    for sighting in sightings:
        by_id.setdefault(sighting.shard.id, []).append(sighting)
    peers: dict[str, Peer] = {}
    for shard_id in sorted(by_id):
        peer = _one_peer(by_id[shard_id], member)
        if peer.name in peers:
            reason = f"another shard is called '{peer.name}' too: start it with another --name"
            names = (f"{peer.name} ({shard_id[:digits]})" for digits in range(6, len(shard_id)))
            free = next((name for name in names if name not in peers), f"{peer.name} ({shard_id})")
            peer = replace(peer, name=free, cannot_join=reason)
        peers[peer.name] = peer
    return peers


def _one_peer(sightings: list[Sighting], member: Membership) -> Peer:
    sightings = sorted(sightings, key=lambda s: (_SOURCE_ORDER.index(s.source), repr(s)))
    best = sightings[0]
    # An address is only good with the port it was seen with (a forwarded port is not the shard's own).
    same_port = [s for s in sightings if s.shard.grpc_port == best.shard.grpc_port]
    routes = sorted((route for s in same_port for route in s.routes), key=lambda r: (route_order(r), repr(r)))
    by_host: dict[str, PeerAddress] = {}
    for route in routes:
        by_host.setdefault(route.address.host, _labelled(route))
    return Peer(
        name=best.shard.name,
        addresses=tuple(by_host.values()),
        grpc_port=best.shard.grpc_port,
        http_port=best.shard.http_port,
        version=best.shard.version,
        protocol_version=best.shard.protocol_version,
        cluster=best.shard.cluster,
        source=best.source,
        cannot_join=best.refusal or member.objection(best.shard),
        thunderbolt=best.shard.thunderbolt,
    )


def _labelled(route: Route) -> PeerAddress:
    """The address with the medium its owner named; where it named none, the one it is reached over."""
    if route.address.medium is Medium.UNKNOWN and route.leaves_over is not None:
        return replace(route.address, medium=route.leaves_over)
    return route.address
