"""Which medium an interface is, how an address is reached, and that changes and waking up are noticed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from dnet_core.discover.interfaces import (
    WAKE_GAP_S,
    Interface,
    Network,
    linux_medium,
    network_changes,
    parse_hardware_ports,
    reached_over,
    read_network,
    resolve,
)
from dnet_core.types.devices import Medium, PeerAddress

HARDWARE_PORTS = """\

Hardware Port: Ethernet Adapter (en4)
Device: en4
Ethernet Address: 02:00:00:00:00:04

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 02:00:00:00:00:01

Hardware Port: Wi-Fi
Device: en0
Ethernet Address: 02:00:00:00:00:05

Hardware Port: Thunderbolt 1
Device: en1
Ethernet Address: 02:00:00:00:00:01

Hardware Port: Thunderbolt Ethernet Slot 2
Device: en7
Ethernet Address: 02:00:00:00:00:07

Hardware Port: USB 10/100/1000 LAN
Device: en8
Ethernet Address: 02:00:00:00:00:08

Hardware Port: iPhone USB
Device: en9
Ethernet Address: 02:00:00:00:00:09

VLAN Configurations
===================
"""


def test_hardware_ports_of_a_mac() -> None:
    assert parse_hardware_ports(HARDWARE_PORTS) == {
        "en4": Medium.ETHERNET,
        "bridge0": Medium.THUNDERBOLT,
        "en0": Medium.WIFI,
        "en1": Medium.THUNDERBOLT,
        "en7": Medium.ETHERNET,
        "en8": Medium.ETHERNET,
        "en9": Medium.UNKNOWN,
    }


def test_linux_interfaces(tmp_path: Path) -> None:
    for name, kind in (("eth0", "1"), ("wlan0", "1"), ("thunderbolt0", "1"), ("tun0", "65534")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "type").write_text(f"{kind}\n")
    (tmp_path / "wlan0" / "phy80211").mkdir()
    (tmp_path / "thunderbolt0" / "device").mkdir()
    (tmp_path / "thunderbolt0" / "device" / "driver").symlink_to(
        "/sys/bus/thunderbolt/drivers/thunderbolt-net"
    )
    media = {path.name: linux_medium(path) for path in tmp_path.iterdir()}
    assert media == {
        "eth0": Medium.ETHERNET,
        "wlan0": Medium.WIFI,
        "thunderbolt0": Medium.THUNDERBOLT,
        "tun0": Medium.UNKNOWN,
    }


def test_what_is_announced() -> None:
    network = Network(
        (
            Interface("lo0", Medium.LOOPBACK, ("127.0.0.1", "::1")),
            Interface("en0", Medium.WIFI, ("10.0.0.5", "2001:db8::5", "fe80::5%en0")),
            Interface("bridge0", Medium.THUNDERBOLT, ("169.254.7.7", "fe80::7%bridge0")),
        )
    )
    assert network.announced == (
        PeerAddress("10.0.0.5", Medium.WIFI),
        PeerAddress("2001:db8::5", Medium.WIFI),
        PeerAddress("169.254.7.7", Medium.THUNDERBOLT),
    )
    assert network.ipv4_hosts == ["127.0.0.1", "10.0.0.5", "169.254.7.7"]
    assert network.medium_of_own("fe80::7%bridge0") is Medium.THUNDERBOLT
    assert network.medium_of_own("10.0.0.6") is None


async def test_this_host() -> None:
    network = await read_network()
    assert network.medium_of_own("127.0.0.1") is Medium.LOOPBACK
    assert "127.0.0.1" in network.ipv4_hosts
    assert reached_over("127.0.0.1", network) is Medium.LOOPBACK
    for own in network.announced:
        assert reached_over(own.host, network) is Medium.LOOPBACK
    assert reached_over("not an address", network) is None


async def test_names_are_resolved() -> None:
    assert await resolve("localhost") in ("127.0.0.1", "::1")
    assert await resolve("10.1.2.3") == "10.1.2.3"
    assert await resolve("no such host.invalid") is None
    assert await resolve("mac..local") is None
    assert await resolve("a" * 70) is None


async def test_waking_up_is_a_change() -> None:
    """In sleep the wall clock goes on and the monotonic one stands still."""
    slept_s = 0.0
    changes = network_changes(0.01, clock=lambda: time.time() + slept_s)
    first = await anext(changes)
    waiting = asyncio.ensure_future(anext(changes))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done, "nothing changed, and yet a change was told"
    slept_s = 2 * WAKE_GAP_S
    async with asyncio.timeout(5):
        assert await waiting == first


async def test_waking_up_after_the_clock_was_set_back_is_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = asyncio.Event()

    def addresses() -> dict[str, object]:
        looked.set()
        return {}

    monkeypatch.setattr("psutil.net_if_addrs", addresses)
    offset_s = 0.0
    changes = network_changes(0.01, clock=lambda: time.time() + offset_s)
    await anext(changes)
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    offset_s = -3600.0
    for _ in range(2):  # the second look has taken note of the first
        looked.clear()
        await looked.wait()
    offset_s += 2 * WAKE_GAP_S
    async with asyncio.timeout(5):
        await waiting


async def test_addresses_that_come_are_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil's answer is the one thing here that cannot be changed without root; tests/net changes it."""
    changes = network_changes(0.01)
    await anext(changes)
    waiting = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    monkeypatch.setattr("psutil.net_if_addrs", dict)
    async with asyncio.timeout(5):
        assert (await waiting).interfaces == ()
