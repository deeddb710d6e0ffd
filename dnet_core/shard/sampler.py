"""Logits to token, with mlx-lm's samplers and processors, composed once per session on the tail.

A grammar's mask comes after the processors and before the sampler: log-probabilities are those of the tokens
that were left to choose from.

The random key of a token is derived from (seed, position): a seeded answer is the same whatever else the
ring is doing, and the same again when a sequence is resumed in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from dnet_core.errors import RequestError
from dnet_core.grammar.matcher import Mask
from dnet_core.transport.control import SessionOrder
from dnet_core.types.generation import SamplingParams, TokenLogprob

_MASK = (1 << 64) - 1
_SMALLEST_TOP_P = 1e-6  # mlx-lm takes 0 for "off"; a caller means "only the likeliest token"


@dataclass(frozen=True, slots=True)
class Draw:
    """A sampled token, still lazy.

    token    [1]     its id
    logprob  [1]     of that token; None unless the session wants logprobs
    top      [n] x 2 ids and log-probabilities of the n likeliest tokens, best first; likewise
    """

    token: mx.array
    logprob: mx.array | None
    top: tuple[mx.array, mx.array] | None

    def begin(self) -> None:
        """Let MLX start computing without waiting for it."""
        mx.async_eval(self.token, self.logprob, self.top)  # type: ignore[no-untyped-call]

    def top_logprobs(self) -> tuple[TokenLogprob, ...]:
        if self.top is None:
            return ()
        ids, values = self.top
        pairs = zip(cast("list[int]", ids.tolist()), cast("list[float]", values.tolist()), strict=True)
        # A grammar may leave fewer tokens than were asked for.
        return tuple(TokenLogprob(token, value) for token, value in pairs if value > -math.inf)


class _AnswerCounts:
    """How often each token is in the answer so far, for OpenAI's penalties; lazy like the tokens."""

    def __init__(self, params: SamplingParams, answered: tuple[int, ...], vocabulary: int) -> None:
        self._presence, self._frequency = params.answer_penalties
        self._counts = mx.zeros((vocabulary,), mx.float32)
        if answered:
            self.add(mx.array(answered, mx.uint32))

    def penalised(self, logits: mx.array) -> mx.array:
        """`logits` `[1, vocabulary]` less what their tokens lose."""
        lost = self._presence * (self._counts > 0).astype(mx.float32) + self._frequency * self._counts
        return logits - lost.astype(logits.dtype)

    def add(self, tokens: mx.array) -> None:
        self._counts = self._counts.at[tokens].add(1.0)


class Sampler:
    """Picks the tokens of one session. Owned by the compute thread."""

    def __init__(self, order: SessionOrder, vocabulary: int) -> None:
        """Raises RequestError for token ids beyond `vocabulary`: MLX would read and write out of bounds."""
        s = order.sampling
        biased = [token for token, _ in s.logit_bias]
        for token in (*order.recent_tokens, *order.answered_tokens, *biased):
            if not 0 <= token < vocabulary:
                raise RequestError(f"token {token} does not exist: the model has {vocabulary}")
        self._seed = order.seed
        self._num_top = s.logprobs
        self._is_random = s.temperature > 0
        self._pick: Callable[[mx.array], mx.array] = make_sampler(
            temp=s.temperature,
            top_p=max(s.top_p, _SMALLEST_TOP_P),
            min_p=s.min_p,
            min_tokens_to_keep=s.min_tokens_to_keep,
            top_k=s.top_k if s.top_k < vocabulary else 0,
            xtc_probability=s.xtc_probability,
            xtc_threshold=s.xtc_threshold,
            xtc_special_tokens=[token for token in order.xtc_special_tokens if token < vocabulary],
        )
        self._processors = make_logits_processors(
            logit_bias=dict(s.logit_bias) or None,
            repetition_penalty=s.repetition_penalty if s.repetition_penalty != 1.0 else None,
            repetition_context_size=s.repetition_context_tokens,
            presence_penalty=s.presence_penalty if s.presence_context_tokens else None,
            presence_context_size=s.presence_context_tokens,
            frequency_penalty=s.frequency_penalty if s.frequency_context_tokens else None,
            frequency_context_size=s.frequency_context_tokens,
        )
        self._answer = (
            _AnswerCounts(s, order.answered_tokens, vocabulary) if any(s.answer_penalties) else None
        )
        self._context_tokens = s.penalty_context_tokens
        self._recent = mx.array(order.recent_tokens, mx.uint32)

    def __call__(self, logits: mx.array, position: int, allowed: Mask | None = None) -> Draw:
        """Pick the token of `position` from `logits` `[1, vocabulary]`; nothing is evaluated.

        Only tokens in `allowed` `[vocabulary]` are picked (None: all may be).
        """
        for process in self._processors:
            logits = process(self._recent, logits)
        if self._answer is not None:
            logits = self._answer.penalised(logits)
        if allowed is not None:
            logits = mx.where(mx.array(allowed), logits, mx.array(-math.inf, logits.dtype))
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if self._is_random:
            mx.random.seed(_token_key(self._seed, position))
        token = self._pick(logprobs)
        self._remember(token.astype(mx.uint32))
        if self._num_top is None:
            return Draw(token, None, None)
        chosen = mx.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0].astype(mx.float32)
        return Draw(token, chosen, _likeliest(logprobs[0], self._num_top))

    def note(self, tokens: tuple[int, ...]) -> None:
        """Remember tokens that were not picked here: penalties look at them like at all others."""
        self._remember(mx.array(tokens, mx.uint32))

    def _remember(self, tokens: mx.array) -> None:
        if self._context_tokens:
            self._recent = mx.concatenate([self._recent, tokens])[-self._context_tokens :]
        if self._answer is not None:
            self._answer.add(tokens)


def _likeliest(logprobs: mx.array, count: int) -> tuple[mx.array, mx.array] | None:
    if count == 0:
        return None
    count = min(count, logprobs.shape[0])
    ids = mx.argpartition(-logprobs, kth=count - 1)[:count]
    ids = ids[mx.argsort(-logprobs[ids])]
    return ids, logprobs[ids].astype(mx.float32)


def _token_key(seed: int, position: int) -> int:
    """Mix seed and position to 64 bits (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = (seed + 0x9E3779B97F4A7C15 * (position + 1)) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
