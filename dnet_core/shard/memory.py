"""The memory of this device that a shard may take."""

from __future__ import annotations

import psutil

from dnet_core.memory_option import MemoryLimit
from dnet_core.profile.device import HostFacts, memory_budget_bytes
from dnet_core.profile.microbench import mlx_facts


def budget_bytes(limit: MemoryLimit | None) -> int:
    """What models may take here: by `limit`, or what a profile made now would say."""
    memory = psutil.virtual_memory()
    if limit is not None:
        return limit.of(memory.total)
    host = HostFacts("", "", memory.total, memory.available)
    return memory_budget_bytes(host, mlx_facts().recommended_working_set_bytes)
