"""What a seeded session must answer, computed in this process from mlx-lm's model, samplers and processors.

Nothing of `dnet_core.shard` is used: the key of a token is mixed here once more, from its definition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import (
    allocate_token_bitmask,
    apply_token_bitmask_inplace,
    fill_next_token_bitmask,
)
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler
from mlx_lm.utils import load_model
from transformers import AutoTokenizer

from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.types.generation import SamplingParams


@dataclass(frozen=True, slots=True)
class ReferenceToken:
    """A token, and the log-probability of every token of the vocabulary at its place."""

    token: int
    logprobs: tuple[float, ...]


def splitmix64(seed: int, index: int) -> int:
    """Number `index` of SplitMix64's stream from `seed` (Steele, Lea, Flood 2014)."""
    state = (seed + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
    return state ^ state >> 31


def answer_penalised(logits: mx.array, answer: Sequence[int], s: SamplingParams) -> mx.array:
    """OpenAI's formula: mu[j] - c[j] * frequency - (c[j] > 0) * presence, c[j] counted over the answer."""
    counts = Counter(answer)
    for token, count in counts.items():
        lost = np.float32(0)
        if s.presence_context_tokens is None:
            lost += np.float32(s.presence_penalty)
        if s.frequency_context_tokens is None:
            lost += np.float32(s.frequency_penalty) * np.float32(count)
        logits[0, token] -= mx.array(lost).astype(logits.dtype)
    return logits


def reference_answer(
    directory: Path, prompt: Sequence[int], sampling: SamplingParams, chunk_tokens: int
) -> list[ReferenceToken]:
    """The whole answer to `prompt`; `sampling` must name `seed` and `max_tokens`."""
    s = sampling
    assert s.seed is not None, "a reference needs its seed"
    assert s.max_tokens is not None, "a reference needs its length"
    model, _ = load_model(directory)
    tokenizer = Tokenizer.load(directory)
    sampler = make_sampler(
        temp=s.temperature,
        top_p=s.top_p,
        min_p=s.min_p,
        min_tokens_to_keep=s.min_tokens_to_keep,
        top_k=s.top_k,
        xtc_probability=s.xtc_probability,
        xtc_threshold=s.xtc_threshold,
        xtc_special_tokens=[
            *tokenizer.encode("\n", add_special_tokens=False),
            *tokenizer.eos_token_ids,
        ],
    )
    processors = make_logits_processors(
        dict(s.logit_bias),
        s.repetition_penalty,
        s.repetition_context_tokens,
        s.presence_penalty if s.presence_context_tokens else None,
        s.presence_context_tokens,
        s.frequency_penalty if s.frequency_context_tokens else None,
        s.frequency_context_tokens,
    )
    matcher = None if s.grammar is None else _matcher(directory, s.grammar)
    cache = make_prompt_cache(model)
    tokens = list(prompt)
    for start in range(0, len(prompt) - 1, chunk_tokens):
        model(mx.array([tokens[start : min(start + chunk_tokens, len(prompt) - 1)]]), cache=cache)
        mx.eval([c.state for c in cache])
    answer: list[ReferenceToken] = []
    while len(answer) < s.max_tokens:
        logits = model(mx.array([tokens[-1:]]), cache=cache)[:, -1, :]
        for process in processors:
            logits = process(mx.array(tokens), logits)
        logits = answer_penalised(logits, tokens[len(prompt) :], s)
        if matcher is not None:
            logits = mx.array(_masked(logits, matcher))
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        mx.random.seed(splitmix64(s.seed, len(tokens)))
        token = int(sampler(logprobs).item())
        answer.append(ReferenceToken(token, tuple(logprobs[0].tolist())))
        tokens.append(token)
        if token in tokenizer.eos_token_ids:
            break
        if matcher is not None:
            assert matcher.consume_token(token), matcher.get_error()
            if matcher.is_stopped():
                break
    return answer


def _matcher(directory: Path, grammar: str) -> LLMatcher:
    """llguidance as its own adapter for transformers makes it."""
    backend = AutoTokenizer.from_pretrained(directory)
    eos = list(Tokenizer.load(directory).eos_token_ids)
    return LLMatcher(from_tokenizer(backend, eos_token=eos), grammar, log_level=0)


def _masked(logits: mx.array, matcher: LLMatcher) -> np.ndarray:
    """`logits` as llguidance's own kernel for numpy masks them."""
    own = np.array(logits.astype(mx.float32))
    mask = allocate_token_bitmask(1, own.shape[-1])
    fill_next_token_bitmask(matcher, mask)
    apply_token_bitmask_inplace(own, mask)
    return own
