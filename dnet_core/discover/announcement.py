"""What a shard says of itself, in the TXT record of its service and when it is asked to describe itself.

id=1c9f...  name=studio  version=0.1.0  protocol=1  grpc=58081  http=8081  cluster=home
thunderbolt=169.254.10.2  ethernet=10.0.0.5  wifi=10.0.0.6        addresses by what they run over
tb0=OWN-UUID>OTHER-UUID  tb1=OWN-UUID                             Thunderbolt ports, and what is on them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

from dnet_core.types.devices import Medium, PeerAddress, ThunderboltPort

MAX_TXT_VALUE_BYTES = 200  # one TXT string is at most 255 bytes, key included
MAX_NAME_BYTES = 50  # to be announced: a DNS label has at most 63, and a part of the id is in it too
MAX_THUNDERBOLT_PORTS = 16
MAX_CONNECTED = 4  # per port: five uuids of 36 characters fit one TXT string

_MEDIA = (Medium.THUNDERBOLT, Medium.ETHERNET, Medium.WIFI)


@dataclass(frozen=True, slots=True)
class Announcement:
    """A shard in its own words.

    `id` is drawn when the process starts and says that two sightings are the same process, whatever its
    name. A port of 0 means that it serves none. `addresses` are those of its interfaces and may be empty (a
    shard that does not know them).
    Raises ValueError when a field is not lawful: the words may come from anybody on the network.
    """

    id: str
    name: str
    version: str
    protocol_version: int
    grpc_port: int
    http_port: int
    cluster: str
    addresses: tuple[PeerAddress, ...] = ()
    thunderbolt: tuple[ThunderboltPort, ...] = ()

    def __post_init__(self) -> None:
        for field in ("id", "name", "version", "cluster"):
            value = getattr(self, field)
            # These words are drawn on terminals: no escape sequences, no line breaks.
            if not value or not value.isprintable() or len(value.encode()) > MAX_TXT_VALUE_BYTES:
                raise ValueError(
                    f"{value!r} is no {field}: use 1 to {MAX_TXT_VALUE_BYTES} bytes of printable text"
                )
        for field in ("grpc_port", "http_port"):
            if not 0 <= getattr(self, field) < 65536:
                raise ValueError(f"not a port: {field} = {getattr(self, field)}")


def new_id() -> str:
    """Draw the identity of a shard process."""
    return uuid4().hex


def to_txt(announcement: Announcement) -> dict[str, str]:
    """The TXT record; addresses that do not fit one string are left out (they are in the A records)."""
    txt = {
        "id": announcement.id,
        "name": announcement.name,
        "version": announcement.version,
        "protocol": str(announcement.protocol_version),
        "grpc": str(announcement.grpc_port),
        "http": str(announcement.http_port),
        "cluster": announcement.cluster,
    }
    for medium in _MEDIA:
        hosts = _as_many_as_fit([a.host for a in announcement.addresses if a.medium is medium])
        if hosts:
            txt[medium.value] = hosts
    for index, port in enumerate(announcement.thunderbolt[:MAX_THUNDERBOLT_PORTS]):
        txt[f"tb{index}"] = ">".join((port.domain, *port.connected[:MAX_CONNECTED]))
    return txt


def from_txt(txt: Mapping[str, str | None], hosts: list[str]) -> Announcement:
    """Read a TXT record; `hosts` are the addresses of the A and AAAA records.

    Raises ValueError when a key is missing or its value is not lawful.
    """
    try:
        media = {host: medium for medium in _MEDIA for host in (txt.get(medium.value) or "").split(",")}
        return Announcement(
            id=txt["id"] or "",
            name=txt["name"] or "",
            version=txt["version"] or "",
            protocol_version=int(txt["protocol"] or ""),
            grpc_port=int(txt["grpc"] or ""),
            http_port=int(txt["http"] or ""),
            cluster=txt["cluster"] or "",
            addresses=tuple(PeerAddress(host, media.get(host, Medium.UNKNOWN)) for host in hosts),
            thunderbolt=_thunderbolt(txt),
        )
    except KeyError as missing:
        raise ValueError(f"the TXT record has no {missing}") from missing


def _as_many_as_fit(hosts: list[str]) -> str:
    joined = ""
    for host in hosts:
        longer = f"{joined},{host}" if joined else host
        if len(longer) > MAX_TXT_VALUE_BYTES:
            break
        joined = longer
    return joined


def _thunderbolt(txt: Mapping[str, str | None]) -> tuple[ThunderboltPort, ...]:
    ports = []
    for index in range(MAX_THUNDERBOLT_PORTS):
        value = txt.get(f"tb{index}")
        if value:
            domain, *connected = value.split(">")
            ports.append(ThunderboltPort(domain, tuple(connected)))
    return tuple(ports)
