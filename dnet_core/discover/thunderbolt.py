"""Which devices share a Thunderbolt cable: `system_profiler SPThunderboltDataType -json`, both ends matched.

Every bus of a Mac has a domain uuid; below it hang the devices on its port. Another Mac there shows the
domain uuid of *its* bus at the other end of the cable, so each end names the other:

    studio: bus A1  _items: [mini's B2]          mini: bus B2  _items: [studio's A1]

Hubs and disks have a switch uid and no domain; a Mac behind a hub hangs below the hub.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dnet_core.types.devices import Medium, Peer, PeerAddress, ThunderboltPort

_log = logging.getLogger(__name__)


class _Item(BaseModel):
    """One entry of the report; Apple adds keys with every release, so unknown ones are skipped."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    domain: str | None = Field(default=None, alias="domain_uuid_key")
    items: list[_Item] = Field(default=[], alias="_items")


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    buses: list[_Item] = Field(alias="SPThunderboltDataType")


def parse_thunderbolt(text: str | bytes) -> tuple[ThunderboltPort, ...]:
    """Read the JSON of system_profiler: one port per bus, in its order, with the Macs that hang on it.

    Raises ValueError when this is not such a report.
    """
    try:
        report = _Report.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(f"not a Thunderbolt report: {error.errors()[0]['msg']}") from error
    return tuple(
        ThunderboltPort(bus.domain, tuple(sorted(set(_domains(bus.items)))))
        for bus in report.buses
        if bus.domain is not None
    )


def _domains(items: Iterable[_Item]) -> Iterator[str]:
    for item in items:
        if item.domain is not None:
            yield item.domain
        yield from _domains(item.items)


async def read_thunderbolt() -> tuple[ThunderboltPort, ...]:
    """The Thunderbolt ports of this Mac; empty on other systems. Takes up to a second: run it beside."""
    if sys.platform != "darwin":
        return ()
    process = await asyncio.create_subprocess_exec(
        "system_profiler",
        "SPThunderboltDataType",
        "-json",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    try:
        return parse_thunderbolt(output)
    except ValueError as error:
        _log.warning("Thunderbolt links are unknown: %s", error)
        return ()


def share_cable(left: Sequence[ThunderboltPort], right: Sequence[ThunderboltPort]) -> bool:
    """Whether a cable (or a hub) joins two devices. One end's word is enough: the other may be older news."""
    return _names(left, right) or _names(right, left)


def _names(here: Sequence[ThunderboltPort], there: Sequence[ThunderboltPort]) -> bool:
    domains = {port.domain for port in there}
    return any(not domains.isdisjoint(port.connected) for port in here)


def bridged(source: Peer, target: Peer, peers: Iterable[Peer]) -> bool:
    """Whether cables lead from `source` to `target`, over other peers if need be: Macs bridge their ports."""
    others = [peer for peer in peers if peer.name not in (source.name, target.name)]
    reached = [source]
    for here in reached:
        if share_cable(here.thunderbolt, target.thunderbolt):
            return True
        next_ones = [peer for peer in others if share_cable(here.thunderbolt, peer.thunderbolt)]
        reached += next_ones
        others = [peer for peer in others if peer not in next_ones]
    return False


def hop_addresses(source: Peer, target: Peer, peers: Iterable[Peer]) -> tuple[PeerAddress, ...]:
    """The addresses of `target` in the order in which `source` should try them for the hop.

    Thunderbolt comes first when cables lead there (a direct one before a bridged one makes no difference to
    the address: both are the target's bridge). Without a proven cable its Thunderbolt addresses come last:
    every Mac has a self-assigned 169.254 address there, reachable or not.
    """
    leads_there = bridged(source, target, peers)

    def rank(address: PeerAddress) -> int:
        if address.medium is Medium.THUNDERBOLT:
            return 0 if leads_there else 2
        return 1

    return tuple(sorted(target.addresses, key=rank))  # stable: otherwise as the peer's own order says
