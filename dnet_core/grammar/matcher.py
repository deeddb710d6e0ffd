"""The tail's view of a grammar: which tokens may come next, and which must.

    tokens so far -> allowed() -> mask over the vocabulary -> sampler -> token -> take(token) -> forced tokens

llguidance works on bytes: it knows the text of every token, and moves a parser over the bytes of the answer.
Where only one text can follow it also knows how the model would write it: those tokens need no sampling.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from dnet_core.errors import GrammarError
from dnet_core.grammar.build import without_forcing
from dnet_core.grammar.limits import MAX_FORCED_TOKENS, check_bounds, parser_limits
from dnet_core.store.tokenizer_files import read_tokenizer_files

Mask = NDArray[np.bool_]

_DEAD_END = "the model has no token for what the grammar allows next"


class GrammarTokenizer:
    """The vocabulary of one model as llguidance needs it. Immutable; takes 0.1 s to 1 s and holds the GIL."""

    def __init__(self, model_dir: Path) -> None:
        """Read the tokenizer in `model_dir`. Raises LoadError for broken files, GrammarError for a kind of
        tokenizer that llguidance does not know."""
        files = read_tokenizer_files(model_dir)
        if not files.eos_token_ids:
            raise GrammarError("no answer of this model can be bound: it has no end-of-sequence token")
        try:
            self._tokenizer = LLTokenizer(files.backend.to_str(), eos_token=list(files.eos_token_ids))
        except ValueError as error:
            raise GrammarError(f"no answer of this model can be bound: {error}") from error

    def matcher(self, grammar: str, answered: tuple[int, ...] = ()) -> Matcher:
        """Compile `grammar`, for an answer of which the tokens `answered` are there already.

        Raises GrammarError. May take seconds, without the GIL.
        """
        check_bounds(grammar)
        return Matcher(self._tokenizer, grammar, answered)


class Matcher:
    """Follows one answer. Owned by the thread that samples it."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str, answered: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._grammar = grammar
        self._tokens = list(answered)
        self._forces = True
        self._matcher = self._compile(grammar)
        self._mask: bytes | None = None
        self._vocabulary = 0  # as far as known: the model's table of logits
        self._check()
        if not self.is_done:
            self._forced()  # to know whether they can be

    @property
    def is_done(self) -> bool:
        """Whether nothing may follow."""
        return self._matcher.is_stopped()

    def prepare(self) -> None:
        """Compute the next mask now: then it costs nothing when the logits are there. Raises GrammarError."""
        if self._mask is None:
            self._mask = self._matcher.compute_bitmask()
            self._check()

    def allowed(self, vocabulary: int) -> Mask:
        """Which of `vocabulary` tokens may come next, `[vocabulary]`. Raises GrammarError when none may."""
        self.prepare()
        assert self._mask is not None, "it is prepared"
        bits = np.frombuffer(self._mask, np.uint8)
        # A model's table may be longer than its vocabulary: what is beyond it stands for nothing.
        mask = np.unpackbits(bits, count=vocabulary, bitorder="little").view(np.bool_)
        if not mask.any():
            raise GrammarError(_DEAD_END)
        self._vocabulary = vocabulary
        return mask

    def take(self, token: int) -> tuple[int, ...]:
        """Go on by `token`, one of those that `allowed` told; return the tokens that must follow it, after
        going on by them, too.

        Raises GrammarError when the grammar has become too complex to follow, or leads nowhere.
        """
        self._mask = None
        self._go_on([token])
        if self.is_done:
            return ()
        forced = self._forced()[:MAX_FORCED_TOKENS]
        if max(forced, default=0) >= self._vocabulary:
            raise GrammarError(_DEAD_END)
        self._go_on(forced)
        return tuple(forced)

    def _forced(self) -> list[int]:
        """The tokens that must follow now.

        A text that spells a control token would be written with that token, which the grammar does not allow
        there. Such an answer is followed without forcing, so that the text is sampled piece by piece.
        """
        if not self._forces:
            return []
        forced = self._matcher.compute_ff_tokens()
        if self._matcher.validate_tokens(forced) == len(forced):
            return forced
        self._forces = False
        self._matcher = self._compile(without_forcing(self._grammar))
        self._check()
        return []

    def _compile(self, grammar: str) -> LLMatcher:
        """A matcher that has followed the answer so far."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=parser_limits())
        matcher.consume_tokens(self._tokens)
        return matcher

    def _go_on(self, tokens: list[int]) -> None:
        self._tokens += tokens
        self._matcher.consume_tokens(tokens)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error())
