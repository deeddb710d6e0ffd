"""A shard's answer to "profile yourself": from the cache, or measured now.

host facts -> fingerprint -> cache? --yes--> with today's memory
                               '--no--> matrices, then disk -> kept
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from dnet_core.profile import microbench
from dnet_core.profile.cache import ProfileCache
from dnet_core.profile.device import HostFacts, fingerprint, host_facts, memory_budget_bytes
from dnet_core.profile.disk import measure_disk
from dnet_core.profile.microbench import measure_arithmetic
from dnet_core.profile.mlx_facts import MlxFacts, mlx_facts
from dnet_core.types.profiles import DeviceProfile, ProfileRequest

log = logging.getLogger(__name__)


def profile_device(
    peer: str,
    request: ProfileRequest,
    *,
    store: Path,
    cache: ProfileCache,
    fresh: bool = False,
    budget_s: float = microbench.BUDGET_S,
) -> DeviceProfile:
    """The profile of this device under the name `peer`; `store` is where its models lie.

    Blocks for about `budget_s` and a second more (milliseconds from the cache, unless `fresh`): call it on
    the compute thread while no model is loaded, `thread.call(lambda: profile_device(...))`. Matrices and disk
    are measured one after the other so that neither slows the other. Raises ProfileError.
    """
    host, mlx = host_facts(peer), mlx_facts()
    if mlx.backend == "cuda":  # the chip that computes is the one to name
        host = replace(host, chip=mlx.device_name)
    mark = fingerprint(host, mlx.version, mlx.backend)
    known = None if fresh else cache.get(request, mark, time.time())
    if known is not None:
        return replace(
            known,
            peer=peer,
            memory_available_bytes=host.memory_available_bytes,
            memory_budget_bytes=memory_budget_bytes(host, mlx.recommended_working_set_bytes),
        )
    profile = _measure(peer, request, host, mlx, mark, store, budget_s)
    cache.put(request, profile)
    return profile


def _measure(
    peer: str,
    request: ProfileRequest,
    host: HostFacts,
    mlx: MlxFacts,
    mark: str,
    store: Path,
    budget_s: float,
) -> DeviceProfile:
    began = time.perf_counter()
    arithmetic = measure_arithmetic(peer, request, budget_s=budget_s)
    disk = measure_disk(peer, store, read_size_bytes=request.disk_read_size_bytes)
    log.info(
        "profiled in %.1f s; %d disk reads by %s", time.perf_counter() - began, disk.num_reads, disk.method
    )
    return DeviceProfile(
        peer=peer,
        chip=host.chip,
        os=host.os,
        mlx_version=mlx.version,
        backend=mlx.backend,
        memory_total_bytes=host.memory_total_bytes,
        memory_available_bytes=host.memory_available_bytes,
        memory_budget_bytes=memory_budget_bytes(host, mlx.recommended_working_set_bytes),
        memory_bytes_per_s=arithmetic.memory_bytes_per_s,
        disk_read_bytes_per_s=disk.bytes_per_s,
        disk_read_size_bytes=disk.read_size_bytes,
        layer_overhead_s=arithmetic.layer_overhead_s,
        speeds=arithmetic.speeds,
        fingerprint=mark,
        measured_at_unix_s=time.time(),
    )
