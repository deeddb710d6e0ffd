"""The memory that a shard may take, and who has it.

    budget   |-- weights, buffers, tables --|-- workspace --|-- KV: session, session, ...     free --|
             what MLX holds after the load    one chunk's     set aside whole when a session opens

A session takes what its order allows (prompt and answer), whether or not it will be used: so none that has
begun can run out of memory. One that would pass the budget is refused before anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import psutil

from dnet_core.errors import NoRoom, RequestError
from dnet_core.memory_option import MemoryLimit
from dnet_core.profile.device import HostFacts, memory_budget_bytes
from dnet_core.profile.mlx_facts import mlx_facts

if TYPE_CHECKING:  # it imports mlx-lm, which takes its time
    from dnet_core.slices.kv import CacheSize


def budget_bytes(limit: MemoryLimit | None) -> int:
    """What models may take here: by `limit`, or what a profile made now would say."""
    memory = psutil.virtual_memory()
    if limit is not None:
        return limit.of(memory.total)
    host = HostFacts("", "", memory.total, memory.available)
    return memory_budget_bytes(host, mlx_facts().recommended_working_set_bytes)


@dataclass(frozen=True, slots=True)
class MlxLimits:
    """What MLX is told: how much it may have, how much of that it may keep free, and how much is wired."""

    memory_bytes: int
    cache_bytes: int
    wired_bytes: int | None  # None: there is no such thing here


def mlx_limits(budget: int, workspace: int, working_set: int | None) -> MlxLimits:
    """The limits of a load; `working_set` is what Metal recommends, None elsewhere.

    Memory that computing has freed is kept for the next chunk, which needs the same, and no more than that.
    Metal refuses to wire more than it recommends.
    """
    wired = None if working_set is None else min(budget, working_set)
    return MlxLimits(budget, min(workspace, budget), wired)


def set_limits(limits: MlxLimits) -> MlxLimits:
    """Let MLX keep `limits`; returns those that it had. On the compute thread."""
    return MlxLimits(
        mx.set_memory_limit(limits.memory_bytes),
        mx.set_cache_limit(limits.cache_bytes),
        None if limits.wired_bytes is None else mx.set_wired_limit(limits.wired_bytes),
    )


class KvRoom:
    """KV memory of one loaded model, session by session. Owned by the compute thread."""

    def __init__(self, peer: str, budget: int, room: int, sizes: tuple[CacheSize, ...]) -> None:
        """Of `budget` bytes `room` are for KV; `sizes` are of the caches that a session has here."""
        self._peer = peer
        self._budget_bytes = budget
        self._room_bytes = max(0, room)
        self._sizes = sizes
        self._taken: dict[str, int] = {}
        self._taken_bytes = 0

    @property
    def room_bytes(self) -> int:
        return self._room_bytes

    @property
    def taken_bytes(self) -> int:
        return self._taken_bytes

    @property
    def free_bytes(self) -> int:
        """What no session has: prefixes may be kept in it until one needs it."""
        return self._room_bytes - self._taken_bytes

    def bytes_of(self, tokens: int) -> int:
        """What the caches of a session of `tokens` take here."""
        return sum(size.of(tokens) for size in self._sizes)

    def take(self, session: str, tokens: int) -> None:
        """Set memory aside for `session`. Raises NoRoom, or RequestError when it could never fit."""
        assert session not in self._taken, f"session {session} has its memory already"
        need = self.bytes_of(tokens)
        if need > self._room_bytes:
            raise RequestError(
                f"{self._peer} cannot hold {tokens:,} tokens: their KV cache takes {_megabytes(need)}, and of"
                f" its memory budget of {_megabytes(self._budget_bytes)} the model leaves"
                f" {_megabytes(self._room_bytes)}. Ask for a shorter answer (max_tokens), or load the model"
                " with a shorter context, with a KV cache of 8 or 4 bits, or with more --memory"
            )
        if need > self.free_bytes:
            raise NoRoom(
                self._peer,
                f"{tokens:,} tokens take {_megabytes(need)} of KV cache, and {_megabytes(self.free_bytes)} of"
                f" {_megabytes(self._room_bytes)} are free",
            )
        self._taken[session] = need
        self._taken_bytes += need

    def give_back(self, session: str) -> None:
        self._taken_bytes -= self._taken.pop(session)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
