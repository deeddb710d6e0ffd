"""One sequence on one shard: its caches, how far each window has come; on the tail its sampler or pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx

from dnet_core.errors import ProtocolError
from dnet_core.grammar.matcher import Matcher
from dnet_core.shard.sampler import Draw, Sampler
from dnet_core.slices.kv import capacity_for, make_room, quantize_caches
from dnet_core.transport.control import SessionOrder
from dnet_core.types.generation import FinishReason, StageTime
from dnet_core.types.ring import LayerWindow


@dataclass(frozen=True, slots=True)
class Taken:
    """A token that was picked, and those that must follow it; `finish`: why the last one is the last."""

    tokens: tuple[int, ...]
    finish: FinishReason | None


class MeanPool:
    """The mean of a prompt's hidden states, summed up in float32 chunk by chunk."""

    def __init__(self) -> None:
        self._sum: mx.array | None = None
        self._num_tokens = 0

    def add(self, hidden: mx.array) -> None:
        """Take `hidden` `[1, tokens, hidden]`, and compute it: chunks may be many."""
        chunk = hidden[0].astype(mx.float32).sum(axis=0)
        self._sum = chunk if self._sum is None else self._sum + chunk
        self._num_tokens += hidden.shape[1]
        mx.eval(self._sum)

    def mean(self) -> tuple[float, ...]:
        assert self._sum is not None, "a prompt has at least one token"
        return tuple(cast("list[float]", (self._sum / self._num_tokens).tolist()))


class Session:
    """Owned by the compute thread; only `cancelled` is also set by the event loop."""

    def __init__(
        self, driver: str, order: SessionOrder, cache: list[Any], matcher: Matcher | None = None
    ) -> None:
        """`matcher` binds the answer; only the tail has it."""
        self.driver = driver
        self.order = order
        self.cache = cache
        self.cancelled = False  # or finished: nothing more is computed
        self.is_torn = False  # a step has not come to its end: some layers have its positions, others do not
        self.counted_until_s = 0.0  # monotonic; up to here compute time has been told
        self._reached: dict[LayerWindow, int] = {}
        self._capacity: dict[LayerWindow, int] = {}
        self._sampler: Sampler | None = None
        self._matcher = matcher
        self.pool = MeanPool()  # filled only to embed, and only on the tail
        self.waiting: tuple[int, ...] = ()  # on the tail: picked and forced, and still to be sent round
        self.stages: tuple[StageTime, ...] = ()  # on the tail: laps since a token was last told

    @property
    def name(self) -> str:
        return self.order.session

    def advance(self, window: LayerWindow, position: int, num_tokens: int) -> None:
        """Note that `window` now runs `[position, position + num_tokens)`.

        Raises ProtocolError unless this follows on what it has run: a gap or a repetition would leave the KV
        cache silently wrong.
        """
        reached = self._reached.get(window, 0)
        if position != reached:
            raise ProtocolError(
                f"layers {window} are at position {reached}, but a frame begins at {position}"
            )
        stop = position + num_tokens
        if stop > self.most_tokens:
            raise ProtocolError(
                f"a frame of layers {window} reaches to position {stop}, but the session is opened for"
                f" {self.most_tokens} tokens"
            )
        self._reached[window] = stop

    def begin_with(self, caches: Mapping[LayerWindow, Mapping[int, Any]], num_tokens: int) -> None:
        """Take `caches`, window by window and slot by slot, as what `[0, num_tokens)` has left behind."""
        for window, own in caches.items():
            self._reached[window] = num_tokens
            for slot, cache in own.items():
                self.cache[slot] = cache

    @property
    def reached(self) -> Mapping[LayerWindow, int]:
        """How many positions each window has run."""
        return self._reached

    @property
    def most_tokens(self) -> int:
        """How many positions the session may have: memory is set aside for so many."""
        return self.order.prompt_tokens + self.order.max_tokens

    def make_room(self, window: LayerWindow, slots: tuple[int, ...], kv_bits: int) -> None:
        """Let the caches at `slots`, those of `window`, have room for what it now runs, and for more."""
        stop = self._reached[window]
        if stop > self._capacity.get(window, 0):
            capacity = capacity_for(stop, self.order.prompt_tokens, self.most_tokens)
            make_room(self.cache, slots, capacity, self.order.prompt_tokens, kv_bits)
            self._capacity[window] = capacity

    def quantize(self, window: LayerWindow, slots: tuple[int, ...], kv_bits: int) -> None:
        """Keep what `window` has added to the caches at `slots` in `kv_bits`."""
        quantize_caches(self.cache, slots, kv_bits, self._capacity[window])

    def sample(self, logits: mx.array, position: int) -> Draw:
        """Pick the token of `position` from the last row of `logits` `[1, rows, vocabulary]`."""
        if self._sampler is None:
            self._sampler = Sampler(self.order, logits.shape[-1])
        allowed = None if self._matcher is None else self._matcher.allowed(logits.shape[-1])
        return self._sampler(logits[:, -1, :], position, allowed)

    @property
    def is_bound(self) -> bool:
        """Whether a token must be known before the next one can be picked."""
        return self._matcher is not None

    def is_last(self, position: int) -> bool:
        """Whether the token of `position` is the last that may be generated."""
        return position + 1 >= self.most_tokens

    def take(self, token: int, position: int) -> Taken:
        """Go on by `token`, picked for `position`. Raises GrammarError."""
        if token in self.order.stop_tokens:
            return Taken((token,), FinishReason.STOP)
        forced = () if self._matcher is None else self._matcher.take(token)
        room = self.most_tokens - position
        tokens = (token, *forced)[:room]
        if forced:
            assert self._sampler is not None, "it has picked the token"
            self._sampler.note(tokens[1:])
        if self._matcher is not None and self._matcher.is_done and len(tokens) == 1 + len(forced):
            return Taken(tokens, FinishReason.STOP)
        return Taken(tokens, FinishReason.LENGTH if len(tokens) == room else None)

    def prepare(self) -> None:
        """Do what the next `sample` needs beside logits. Raises GrammarError."""
        if self._matcher is not None:
            self._matcher.prepare()
