"""The Macs of a demonstration: chips with figures as such machines have them, and what connects them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dnet_core import __version__
from dnet_core.types.devices import PROTOCOL_VERSION, Medium, Peer, PeerAddress, PeerSource
from dnet_core.types.profiles import DeviceProfile, FormatSpeed, LinkProfile

MIB = 1 << 20
MOST_MACS = 16

_BUDGET_SHARE = 0.75  # macOS lets a model wire about three quarters of the memory
_AVAILABLE_SHARE = 0.85
_PREFILL_CHUNK_TOKENS = 512
_WEIGHT_FORMATS = ("q4", "q8", "bf16")


@dataclass(frozen=True, slots=True)
class Mac:
    """One machine of the desk; `medium` is how it is connected."""

    name: str
    chip: str
    memory_gb: int
    memory_gb_per_s: float
    tflops: float
    disk_gb_per_s: float
    medium: Medium


_DESK = (
    Mac("studio", "Apple M2 Max 38c", 96, 400, 13.5, 6.1, Medium.THUNDERBOLT),
    Mac("mbp-16", "Apple M3 Max 40c", 48, 400, 14.2, 5.8, Medium.THUNDERBOLT),
    Mac("mini", "Apple M4 Pro 20c", 24, 273, 9.2, 5.2, Medium.THUNDERBOLT),
    Mac("air", "Apple M2 10c", 16, 100, 3.6, 2.9, Medium.WIFI),
    Mac("studio-2", "Apple M1 Ultra 64c", 128, 800, 21.0, 5.5, Medium.ETHERNET),
    Mac("mbp-14", "Apple M1 Pro 16c", 32, 200, 5.3, 5.0, Medium.ETHERNET),
    Mac("mini-2", "Apple M1 8c", 16, 68, 2.6, 2.8, Medium.ETHERNET),
    Mac("air-2", "Apple M3 10c", 24, 100, 4.1, 3.1, Medium.WIFI),
)
_LATENCY_S = {Medium.THUNDERBOLT: 0.15e-3, Medium.ETHERNET: 0.45e-3, Medium.WIFI: 2.0e-3}
_BYTES_PER_S = {Medium.THUNDERBOLT: 2.6e9, Medium.ETHERNET: 1.1e9, Medium.WIFI: 0.06e9}


def desk(count: int) -> tuple[Mac, ...]:
    """The first `count` Macs; from the ninth on they repeat with another number."""
    if not 1 <= count <= MOST_MACS:
        raise ValueError(f"a demonstration has 1 to {MOST_MACS} Macs, not {count}")
    macs = [replace(mac, name=f"{mac.name}-b") for mac in _DESK]
    return (*_DESK, *macs)[:count]


def peer(mac: Mac, index: int) -> Peer:
    """`mac` as discovery would tell it; the first is the machine of the screen."""
    local = index == 0
    subnet = 2 if mac.medium is Medium.THUNDERBOLT else 1
    address = PeerAddress("127.0.0.1", Medium.LOOPBACK)
    if not local:
        address = PeerAddress(f"192.168.{subnet}.{20 + index}", mac.medium)
    return Peer(
        name=mac.name,
        addresses=(address,),
        grpc_port=58081,
        http_port=8081,
        version=__version__,
        protocol_version=PROTOCOL_VERSION,
        cluster="demo",
        source=PeerSource.LOCAL if local else PeerSource.MDNS,
    )


def profile(mac: Mac) -> DeviceProfile:
    """`mac` as it would measure itself."""
    total = mac.memory_gb * 10**9
    return DeviceProfile(
        peer=mac.name,
        chip=mac.chip,
        os="macOS 26",
        mlx_version="0.32",
        backend="metal",
        memory_total_bytes=total,
        memory_available_bytes=int(total * _AVAILABLE_SHARE),
        memory_budget_bytes=int(total * _BUDGET_SHARE),
        memory_bytes_per_s=mac.memory_gb_per_s * 1e9,
        disk_read_bytes_per_s=mac.disk_gb_per_s * 1e9,
        disk_read_size_bytes=16 * MIB,
        layer_overhead_s=30e-6,
        speeds=tuple(
            FormatSpeed(
                weight_format=name,
                decode_flops_per_s=mac.tflops * 0.6e12,
                decode_bytes_per_s=mac.memory_gb_per_s * 0.78e9,
                prefill_flops_per_s=mac.tflops * 1e12,
                prefill_chunk_tokens=_PREFILL_CHUNK_TOKENS,
            )
            for name in _WEIGHT_FORMATS
        ),
        fingerprint=f"demo {mac.chip}",
        measured_at_unix_s=0.0,
    )


def links(macs: tuple[Mac, ...]) -> tuple[LinkProfile, ...]:
    """Every ordered pair, over the slower of the two ends."""
    return tuple(_link(a, b) for a in macs for b in macs if a is not b)


def _link(source: Mac, target: Mac) -> LinkProfile:
    medium = max((source.medium, target.medium), key=_LATENCY_S.__getitem__)
    return LinkProfile(
        source=source.name,
        target=target.name,
        address=f"{target.name}.local",
        medium=medium,
        latency_s=_LATENCY_S[medium],
        bytes_per_s=_BYTES_PER_S[medium],
    )
