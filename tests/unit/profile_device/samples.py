"""A device profile and the request that it answers."""

from __future__ import annotations

from dnet_core.types.profiles import (
    DeviceProfile,
    FormatSpeed,
    LayerShape,
    ProfileRequest,
    Quantization,
    WeightFormat,
)

Q4 = WeightFormat("bf16", Quantization(4, 64, "affine"))
REQUEST = ProfileRequest(
    shape=LayerShape(hidden=4096, intermediate=14336, num_heads=32, num_kv_heads=8, head_dim=128),
    formats=(Q4,),
    chunk_tokens=512,
    disk_read_size_bytes=8 << 20,
)
PROFILE = DeviceProfile(
    peer="studio",
    chip="Apple M2 Max (12 CPU and 38 GPU cores)",
    os="macOS 15.1",
    mlx_version="0.32.4",
    backend="metal",
    memory_total_bytes=64 << 30,
    memory_available_bytes=40 << 30,
    memory_budget_bytes=48 << 30,
    memory_bytes_per_s=380e9,
    disk_read_bytes_per_s=5.2e9,
    disk_read_size_bytes=8 << 20,
    layer_overhead_s=55e-6,
    speeds=(FormatSpeed("q4", 1.2e12, 340e9, 11e12, 512),),
    fingerprint="0123456789abcdef",
    measured_at_unix_s=1_760_000_000.5,
)
