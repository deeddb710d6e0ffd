"""Which prefixes the shards of a ring have kept, by their tokens: where a prompt may begin.

    kept      S S S S u u a a a           a conversation: system prompt, question, answer
    prompt    S S S S u u a a a u u u     its next turn: reads three tokens
    prompt    S S S S v v v               another question: reads three, if the caches can go back

A computation depends in its last bits on how many tokens come at once. A prompt that is read afresh comes in
chunks of a fixed size, an answer token by token: so what is reused differs, in the last bits, from what would
be computed, except where it was read in the same chunks. Answers with a seed are promised to be the same each
time, so they reuse only that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from dnet_core.transport.control import Reuse

FEWEST_TOKENS = 8
"""Less than this is sooner read than looked up."""
MOST_PREFIXES = 256
"""A bound for the search; long before it the shards have no room."""


@dataclass(frozen=True, slots=True)
class KnownPrefix:
    """`tokens` are held by every shard; caches that cannot `trim` are of use only for all of them.

    The first `fresh_tokens` are as a prompt that is read afresh, in whole chunks, would have them;
    `prompt_tokens` is how long the prompt was, if all of it was read so.
    """

    tokens: tuple[int, ...]
    can_trim: bool
    fresh_tokens: int
    prompt_tokens: int | None


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a session begins with, as `reuse` tells the shards, and what is known of it.

    Another prefix may have taken its place before the session ends.
    """

    reuse: Reuse
    known: KnownPrefix


class PrefixIndex:
    """The prefixes of one ring, least recently used first. Owned by the driver."""

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._known: OrderedDict[str, KnownPrefix] = OrderedDict()

    def find(self, tokens: tuple[int, ...], *, same_bits: bool) -> Beginning | None:
        """The prefix that saves most of reading `tokens`, of which at least the last one must be read.

        With `same_bits` nothing may be computed otherwise than without it.
        """
        best: Beginning | None = None
        for name, known in self._known.items():
            usable = self._usable(known, tokens, same_bits)
            if usable >= max(FEWEST_TOKENS, best.reuse.num_tokens + 1 if best else 0):
                best = Beginning(Reuse(name, usable), known)
        if best is not None:
            self._known.move_to_end(best.reuse.prefix)
        return best

    def _usable(self, known: KnownPrefix, tokens: tuple[int, ...], same_bits: bool) -> int:
        most = len(tokens) - 1
        if known.tokens[:FEWEST_TOKENS] != tokens[:FEWEST_TOKENS]:
            return 0
        shared = common_length(known.tokens, tokens)
        if not known.can_trim:
            usable = len(known.tokens) if shared == len(known.tokens) <= most else 0
            return usable if not same_bits or self._is_fresh(known, usable, len(tokens)) else 0
        usable = min(shared, most)
        if not same_bits or self._is_fresh(known, usable, len(tokens)):
            return usable
        usable = min(usable, known.fresh_tokens)
        return usable - usable % self._chunk_tokens

    def _is_fresh(self, known: KnownPrefix, usable: int, prompt_tokens: int) -> bool:
        """Whether a prompt of so many tokens, read afresh, would have these bits in its first `usable`."""
        whole_chunks = usable <= known.fresh_tokens and usable % self._chunk_tokens == 0
        # The last chunk of a prompt is as long as it happens to be: the same for prompts of one length.
        return whole_chunks or (usable == prompt_tokens - 1 and known.prompt_tokens == prompt_tokens)

    def describe(
        self, tokens: tuple[int, ...], can_trim: bool, prompt_tokens: int, begun: Beginning | None
    ) -> KnownPrefix:
        """What is known of `tokens`, which began with a prompt of so many that was read after `begun`."""
        whole_chunks = (prompt_tokens - 1) - (prompt_tokens - 1) % self._chunk_tokens
        if begun is None or self._is_fresh(begun.known, begun.reuse.num_tokens, prompt_tokens):
            return KnownPrefix(tokens, can_trim, whole_chunks, prompt_tokens)
        return KnownPrefix(tokens, can_trim, min(begun.known.fresh_tokens, begun.reuse.num_tokens), None)

    def add(self, name: str, prefix: KnownPrefix) -> list[str]:
        """Know `prefix` from now on; returns the names of those that nobody needs any more."""
        self._known[name] = prefix
        needless = [
            other
            for other, known in self._known.items()
            if other != name and prefix.can_trim and _says_all(prefix, known)
        ]
        needless += list(self._known)[: max(0, len(self._known) - len(needless) - MOST_PREFIXES)]
        for other in needless:
            self.forget(other)
        return needless

    def forget(self, name: str) -> None:
        self._known.pop(name, None)


def _says_all(prefix: KnownPrefix, other: KnownPrefix) -> bool:
    """Whether `prefix` can stand for `other`, for answers with a seed, too."""
    return (
        len(other.tokens) <= len(prefix.tokens)
        and prefix.tokens[: len(other.tokens)] == other.tokens
        and prefix.fresh_tokens >= other.fresh_tokens
    )


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens the two begin with in common."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while low < high:  # a[:low] == b[:low], a[:high + 1] != b[:high + 1]
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
