"""This host's network interfaces: their addresses, what they run over, and when they change.

macOS names the medium of an interface in `networksetup -listallhardwareports`, Linux in `/sys/class/net`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import psutil

from dnet_core.types.devices import Medium, PeerAddress

SYS_CLASS_NET = Path("/sys/class/net")
WAKE_GAP_S = 5.0
"""A wall clock that gained this much on the monotonic one, which stands still in sleep, means: woken up."""

_ARPHRD_ETHER = "1"  # linux/if_arp.h
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface that is up. `hosts` are its addresses, link-local IPv6 with its `%scope`."""

    name: str
    medium: Medium
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Network:
    """The interfaces of this host at one moment."""

    interfaces: tuple[Interface, ...]

    @property
    def ipv4_hosts(self) -> list[str]:
        """Every IPv4 address, loopback included: where multicast is sent and heard."""
        return [h for i in self.interfaces for h in i.hosts if ":" not in h]

    @property
    def announced(self) -> tuple[PeerAddress, ...]:
        """The addresses that make sense on another host: no loopback, no link-local IPv6."""
        return tuple(
            PeerAddress(host, interface.medium)
            for interface in self.interfaces
            for host in interface.hosts
            if interface.medium is not Medium.LOOPBACK and _is_global_or_ipv4(host)
        )

    def medium_of_own(self, host: str) -> Medium | None:
        """What the interface with this address runs over; None when no interface has it."""
        return next((i.medium for i in self.interfaces if host in i.hosts), None)


def _is_global_or_ipv4(host: str) -> bool:
    address = _parse(host)
    return address is not None and (address.version == 4 or not address.is_link_local)


def _parse(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def reached_over(host: str, network: Network) -> Medium | None:
    """Say what this host's packets to the IP address `host` leave over; None: there is no way there.

    The kernel's routing table answers: connecting a UDP socket picks the local address and sends nothing.
    """
    address = _parse(host)
    if address is None:
        return None
    if address.is_loopback or network.medium_of_own(host) is not None:
        return Medium.LOOPBACK
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # "discard"; any port does
            local: str = probe.getsockname()[0]
    except OSError:
        return None
    return network.medium_of_own(local) or Medium.UNKNOWN


async def resolve(host: str) -> str | None:
    """The first IP address of a host name (an address is its own); None when the name is not known."""
    if _parse(host) is not None:
        return host
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):  # the latter: "mac..local", or a part of more than 63 characters
        return None
    return str(found[0][4][0])


async def read_network() -> Network:
    """Look at the interfaces of this host."""
    return await _named_media(_hosts_by_interface())


async def _named_media(up: dict[str, tuple[str, ...]]) -> Network:
    ports = await _hardware_ports() if sys.platform == "darwin" else {}
    return Network(
        tuple(Interface(name, _medium(name, hosts, ports), hosts) for name, hosts in sorted(up.items()))
    )


async def network_changes(
    poll_s: float,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Network]:
    """Yield the network now, and again whenever its addresses change or the machine wakes from sleep.

    There is no portable notice of either, so this looks every `poll_s` (a look costs about 0.2 ms).
    """
    while True:
        seen = _hosts_by_interface()
        ahead_s = clock() - time.monotonic()
        yield await _named_media(seen)
        while True:
            now_ahead_s = clock() - time.monotonic()
            if _hosts_by_interface() != seen or now_ahead_s - ahead_s >= WAKE_GAP_S:
                break
            ahead_s = now_ahead_s  # from look to look: a clock that was set back must not hide a sleep
            await asyncio.sleep(poll_s)


def _hosts_by_interface() -> dict[str, tuple[str, ...]]:
    """The IP addresses of each interface that is up."""
    stats = psutil.net_if_stats()
    found = {
        name: tuple(sorted(a.address for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6)))
        for name, addresses in psutil.net_if_addrs().items()
        if name in stats and stats[name].isup
    }
    return {name: hosts for name, hosts in found.items() if hosts}


def _medium(name: str, hosts: tuple[str, ...], ports: dict[str, Medium]) -> Medium:
    if all((address := _parse(host)) is not None and address.is_loopback for host in hosts):
        return Medium.LOOPBACK
    if sys.platform == "darwin":
        return ports.get(name, Medium.UNKNOWN)
    return linux_medium(SYS_CLASS_NET / name)


def linux_medium(interface: Path) -> Medium:
    """Read the medium of one `/sys/class/net/NAME` folder."""
    if (interface / "wireless").exists() or (interface / "phy80211").exists():
        return Medium.WIFI
    driver = interface / "device" / "driver"
    if driver.is_symlink() and driver.readlink().name == "thunderbolt-net":
        return Medium.THUNDERBOLT
    kind = interface / "type"
    if kind.exists() and kind.read_text().strip() == _ARPHRD_ETHER:
        return Medium.ETHERNET
    return Medium.UNKNOWN


async def _hardware_ports() -> dict[str, Medium]:
    process = await asyncio.create_subprocess_exec(
        "networksetup",
        "-listallhardwareports",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        _log.warning(
            "networksetup ended with %s: the media of the interfaces are unknown", process.returncode
        )
        return {}
    return parse_hardware_ports(output.decode(errors="replace"))


def parse_hardware_ports(text: str) -> dict[str, Medium]:
    """Read `networksetup -listallhardwareports`: interface name -> medium."""
    media: dict[str, Medium] = {}
    port = ""
    for line in text.splitlines():
        key, _, value = line.partition(": ")
        if key == "Hardware Port":
            port = value.strip()
        elif key == "Device" and port:
            media[value.strip()] = _medium_of_port(port)
    return media


def _medium_of_port(port: str) -> Medium:
    """A hardware port's medium by its name, which macOS does not translate for these."""
    if port in ("Wi-Fi", "AirPort"):
        return Medium.WIFI
    # "Thunderbolt Ethernet" is Apple's adapter: a wire to a switch, not to another Mac.
    if port.startswith("Thunderbolt") and "Ethernet" not in port:
        return Medium.THUNDERBOLT
    if "Ethernet" in port or port.endswith("LAN"):
        return Medium.ETHERNET
    return Medium.UNKNOWN


def host_towards(host: str) -> str:
    """The address of this machine that packets to `host` leave from; nothing is sent.

    Raises OSError when there is no way to it.
    """
    family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        own: str = probe.getsockname()[0]
    return own
