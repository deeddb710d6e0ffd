"""The prefixes that a shard has kept: KV of sequences that have ended, by the names their driver gave them.

A prefix never changes. It is dropped when its driver says so or goes, when a session needs the room, and with
the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dnet_core.errors import PrefixGone
from dnet_core.slices.prefix import can_trim, compact, fork
from dnet_core.transport.control import KeptPrefix, Reuse
from dnet_core.types.ring import LayerWindow


@dataclass(frozen=True, slots=True)
class KeptWindow:
    """One window's caches, which hold `[0, num_tokens)`, by their place in the cache list."""

    num_tokens: int
    caches: Mapping[int, Any]

    @property
    def can_trim(self) -> bool:
        return all(can_trim(cache) for cache in self.caches.values())

    def begin(self, num_tokens: int) -> dict[int, Any] | None:
        """Caches that hold `[0, num_tokens)`; None when these cannot be had."""
        surplus = self.num_tokens - num_tokens
        if surplus < 0 or (surplus and not self.can_trim):
            return None
        return {slot: fork(cache, surplus) for slot, cache in self.caches.items()}


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the windows of this shard hold of one sequence."""

    driver: str
    windows: Mapping[LayerWindow, KeptWindow]
    num_bytes: int

    @property
    def kept(self) -> KeptPrefix | None:
        """What of it can be used again; None: nothing, because its windows cannot meet at one position."""
        lengths = [window.num_tokens for window in self.windows.values()]
        if len(set(lengths)) > 1 and not all(w.can_trim for w in self.windows.values()):
            return None
        return KeptPrefix(min(lengths), all(w.can_trim for w in self.windows.values()))


def make_prefix(
    driver: str,
    cache: list[Any],
    reached: Mapping[LayerWindow, int],
    slots: Mapping[LayerWindow, Iterable[int]],
) -> Prefix:
    """Keep of `cache`, slot by slot, what is in it: it belongs to the prefix from now on."""
    windows = {}
    num_bytes = 0
    for window, num_tokens in reached.items():
        own = {slot: cache[slot] for slot in slots[window]}
        for part in own.values():
            compact(part)
            num_bytes += part.nbytes
        windows[window] = KeptWindow(num_tokens, own)
    return Prefix(driver, windows, num_bytes)


class Prefixes:
    """The kept ones, least recently used first. Owned by the compute thread."""

    def __init__(self, peer: str) -> None:
        self._peer = peer
        self._kept: dict[str, Prefix] = {}
        self._num_bytes = 0

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._kept)

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def begin(self, reuse: Reuse) -> dict[LayerWindow, dict[int, Any]]:
        """The caches of every window for a sequence that begins as `reuse` says. Raises PrefixGone."""
        prefix = self._kept.pop(reuse.prefix, None)
        if prefix is None:
            raise PrefixGone(self._peer)
        self._kept[reuse.prefix] = prefix  # the last to be dropped
        begun = {}
        for window, kept in prefix.windows.items():
            caches = kept.begin(reuse.num_tokens)
            if caches is None:
                raise PrefixGone(self._peer)
            begun[window] = caches
        return begun

    def add(self, name: str, prefix: Prefix) -> None:
        assert name not in self._kept, f"prefix {name} is kept already"
        self._kept[name] = prefix
        self._num_bytes += prefix.num_bytes

    def drop(self, names: Iterable[str]) -> None:
        """Forget these; unknown ones are gone already."""
        for name in names:
            prefix = self._kept.pop(name, None)
            if prefix is not None:
                self._num_bytes -= prefix.num_bytes

    def drop_of(self, driver: str) -> None:
        """Drop what `driver` had kept: nobody else knows the names."""
        self.drop([name for name, prefix in self._kept.items() if prefix.driver == driver])

    def shrink_to(self, num_bytes: int) -> None:
        """Drop the ones that were not used for longest until all take at most `num_bytes`."""
        while self._kept and self._num_bytes > num_bytes:
            self.drop((next(iter(self._kept)),))
