"""The Thunderbolt parser on reports as macOS prints them, and which hops may use the cable."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnet_core.discover.thunderbolt import bridged, hop_addresses, parse_thunderbolt, share_cable
from dnet_core.types.devices import Medium, Peer, PeerAddress, PeerSource, ThunderboltPort

REPORTS = Path(__file__).parents[2] / "data" / "thunderbolt"


def report(name: str) -> tuple[ThunderboltPort, ...]:
    return parse_thunderbolt((REPORTS / f"{name}.json").read_bytes())


def peer(name: str) -> Peer:
    """A Mac with Ethernet (preferred by the peer's own order) and a Thunderbolt bridge."""
    addresses = (PeerAddress("10.0.0.1", Medium.ETHERNET), PeerAddress("169.254.1.1", Medium.THUNDERBOLT))
    return Peer(name, addresses, 58081, 8081, "0.1.0", 1, "home", PeerSource.MDNS, thunderbolt=report(name))


def first_hop(source: str, target: str, *others: str) -> Medium:
    ends = peer(source), peer(target)
    return hop_addresses(*ends, [*ends, *map(peer, others)])[0].medium


def test_two_macs_name_each_other() -> None:
    studio, mini = report("two-macs-studio"), report("two-macs-mini")
    assert len(studio) == 3
    assert len(mini) == 2
    joined = {(port.domain, other) for port in studio for other in port.connected}
    assert joined == {(other, port.domain) for port in mini for other in port.connected}
    assert len(joined) == 1  # the disk on the studio's other port has no domain
    assert share_cable(studio, mini)
    assert share_cable(mini, studio)


def test_one_end_is_enough() -> None:
    """The other end's report may be from before the cable was plugged in."""
    before = tuple(ThunderboltPort(port.domain) for port in report("two-macs-mini"))
    assert share_cable(report("two-macs-studio"), before)
    assert share_cable(before, report("two-macs-studio"))


def test_chain_is_bridged_end_to_end_but_shares_no_cable() -> None:
    first, middle, last = report("chain-first"), report("chain-middle"), report("chain-last")
    assert share_cable(first, middle)
    assert share_cable(middle, last)
    assert not share_cable(first, last)
    ends = peer("chain-first"), peer("chain-last")
    assert bridged(*ends, [*ends, peer("chain-middle")])
    assert not bridged(*ends, ends)


def test_mac_behind_a_hub() -> None:
    left, right = report("hub-left"), report("hub-right")
    assert share_cable(left, right)
    assert left[0].connected == (right[0].domain,)


def test_nothing_connected() -> None:
    ports = report("nothing-connected")
    assert [port.connected for port in ports] == [(), (), ()]
    assert not share_cable(ports, report("two-macs-mini"))


@pytest.mark.parametrize(
    "text",
    [
        (REPORTS / "malformed.json").read_text(),
        "",
        "{}",
        "[]",
        '{"SPThunderboltDataType": {}}',
        '{"SPThunderboltDataType": [{"domain_uuid_key": 7}]}',
        '{"SPThunderboltDataType": [{"_items": "none"}]}',
    ],
)
def test_malformed_reports_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a Thunderbolt report"):
        parse_thunderbolt(text)


def test_a_mac_without_thunderbolt_has_no_ports() -> None:
    assert parse_thunderbolt('{"SPThunderboltDataType": []}') == ()
    assert parse_thunderbolt('{"SPThunderboltDataType": [{"_name": "no_hardware"}]}') == ()


def test_hops_use_the_cable_where_there_is_one() -> None:
    assert first_hop("two-macs-studio", "two-macs-mini") is Medium.THUNDERBOLT
    assert first_hop("chain-first", "chain-last", "chain-middle") is Medium.THUNDERBOLT
    assert first_hop("hub-right", "hub-left") is Medium.THUNDERBOLT


def test_hops_without_a_cable_do_not_try_self_assigned_addresses_first() -> None:
    assert first_hop("two-macs-studio", "chain-first", "two-macs-mini", "chain-middle") is Medium.ETHERNET
    assert first_hop("nothing-connected", "two-macs-mini") is Medium.ETHERNET
