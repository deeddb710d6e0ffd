"""Peers: shard processes as others see them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

PROTOCOL_VERSION = 1
"""Bumped when the meaning of a message on the wire changes; peers with another one are shown, not used."""


UNIX = "unix:"
"""Begins the address of a shard on this machine that listens on a socket file."""


class Medium(StrEnum):
    THUNDERBOLT = "thunderbolt"
    ETHERNET = "ethernet"
    WIFI = "wifi"
    LOOPBACK = "loopback"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """One way to reach a peer: an IP address or host name, and what it runs over."""

    host: str
    medium: Medium


class PeerSource(StrEnum):
    """How a peer became known."""

    LOCAL = "local"  # a child process of this one
    STATIC = "static"  # --peer or a hostfile
    MDNS = "mdns"


@dataclass(frozen=True, slots=True)
class ThunderboltPort:
    """One Thunderbolt port of a device: its domain uuid, and those of the devices that hang on it.

    Two devices share a cable (or a hub) when the domain of one is in `connected` of the other.
    """

    domain: str
    connected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """A shard process that was found. `addresses` is never empty, best first as seen from here.

    `cannot_join` says why the peer is shown but cannot be used (another version, a wrong key); None: it can.
    """

    name: str
    addresses: tuple[PeerAddress, ...]
    grpc_port: int
    http_port: int
    version: str
    protocol_version: int
    cluster: str
    source: PeerSource
    cannot_join: str | None = None
    thunderbolt: tuple[ThunderboltPort, ...] = ()

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ValueError(f"{self.name} has no address")

    @property
    def target(self) -> str:
        """`host:port` of the best address, as gRPC wants it."""
        return grpc_target(self.addresses[0].host, self.grpc_port)


def grpc_target(host: str, port: int) -> str:
    """Join `host` and `port`; an IPv6 address gets its brackets. A `unix:` path needs no port."""
    if host.startswith(UNIX):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
