"""Random clusters and models for the solver's tests, with numbers like those of real Macs."""

from __future__ import annotations

import random

from dnet_core.types.profiles import (
    DeviceProfile,
    FormatSpeed,
    KVKind,
    KVProfile,
    LayerProfile,
    LinkProfile,
    ModelProfile,
)

MIB = 1 << 20
GIB = 1 << 30


def layer(
    weight_bytes: int, kv_bytes_per_token: int = 4096, active_share: float = 1.0, kind: KVKind = KVKind.FULL
) -> LayerProfile:
    """A decoder layer in 4 bits: two FLOPs per weight, half a byte each."""
    return LayerProfile(
        weight_bytes=weight_bytes,
        active_weight_bytes=int(weight_bytes * active_share),
        flops_per_token=int(4 * weight_bytes * active_share),
        attention_flops_per_token_pair=4 * 4096,
        weight_format="q4",
        kv=KVProfile(kind, kv_bytes_per_token, 0, window_tokens=4096 if kind is KVKind.SLIDING else 1 << 17),
    )


def model(layers: list[LayerProfile], table_bytes: int = 256 * MIB, hidden_size: int = 4096) -> ModelProfile:
    """A model of these layers; embedding and head of `table_bytes` each."""
    return ModelProfile(
        model="test/model",
        model_type="llama",
        layers=tuple(layers),
        embedding_bytes=table_bytes,
        head_bytes=table_bytes,
        head_flops_per_token=4 * table_bytes,
        hidden_size=hidden_size,
        vocab_size=32_000,
        activation_bytes_per_token=2 * hidden_size,
        context_tokens=1 << 17,
        weight_format="q4",
        head_weight_format="q4",
    )


def device(
    peer: str,
    budget_bytes: int,
    memory_gb_per_s: float = 200.0,
    disk_gb_per_s: float = 5.0,
    tflops: float = 10.0,
) -> DeviceProfile:
    """A Mac by its memory, memory bandwidth, disk and arithmetic."""
    return DeviceProfile(
        peer=peer,
        chip="M",
        os="macOS",
        mlx_version="0.32",
        backend="metal",
        memory_total_bytes=2 * budget_bytes,
        memory_available_bytes=budget_bytes,
        memory_budget_bytes=budget_bytes,
        memory_bytes_per_s=memory_gb_per_s * 1e9,
        disk_read_bytes_per_s=disk_gb_per_s * 1e9,
        disk_read_size_bytes=16 * MIB,
        layer_overhead_s=20e-6,
        speeds=(
            FormatSpeed(
                weight_format="q4",
                decode_flops_per_s=tflops * 0.7e12,
                decode_bytes_per_s=memory_gb_per_s * 0.8e9,
                prefill_flops_per_s=tflops * 1e12,
                prefill_chunk_tokens=512,
            ),
        ),
        fingerprint=peer,
        measured_at_unix_s=0.0,
    )


def link(source: str, target: str, latency_s: float = 300e-6, gb_per_s: float = 1.0) -> LinkProfile:
    return LinkProfile(source, target, "10.0.0.1", "thunderbolt", latency_s, gb_per_s * 1e9)


def mesh(
    devices: list[DeviceProfile], latency_s: float = 300e-6, gb_per_s: float = 1.0
) -> tuple[LinkProfile, ...]:
    """Every ordered pair over the same kind of link."""
    return tuple(link(a.peer, b.peer, latency_s, gb_per_s) for a in devices for b in devices if a is not b)


def random_devices(rng: random.Random, count: int, low_bytes: int, high_bytes: int) -> list[DeviceProfile]:
    """Devices whose budgets lie between the two sizes, speeds like an M1 Air's to an M3 Ultra's."""
    return [
        device(
            f"mac{i}",
            rng.randint(low_bytes, high_bytes),
            memory_gb_per_s=rng.choice([68.0, 100.0, 150.0, 273.0, 400.0, 546.0, 800.0]),
            disk_gb_per_s=rng.choice([1.5, 3.0, 5.0, 7.0]),
            tflops=rng.choice([2.5, 5.0, 10.0, 14.0, 28.0]),
        )
        for i in range(count)
    ]


def random_links(rng: random.Random, devices: list[DeviceProfile]) -> tuple[LinkProfile, ...]:
    """A directed link for every pair: Thunderbolt, Ethernet or Wi-Fi."""
    return tuple(
        link(a.peer, b.peer, rng.choice([80e-6, 250e-6, 600e-6, 3e-3]), rng.choice([0.05, 0.11, 1.1, 4.0]))
        for a in devices
        for b in devices
        if a is not b
    )
