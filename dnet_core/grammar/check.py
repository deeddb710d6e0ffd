"""The head's view of a grammar: whether it is one.

The whole vocabulary would take a second and a hundred megabytes, to no use: whether a grammar is lawful does
not depend on how a model cuts text. So it is compiled for a vocabulary of single bytes, in which only the
tokens that a grammar may name are the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from dnet_core.errors import GrammarError
from dnet_core.grammar.limits import check_bounds, parser_limits


class GrammarChecker:
    """Checks grammars for one model. Immutable; made in some milliseconds."""

    def __init__(self, vocabulary: int, control: Mapping[int, str], eos_token_ids: Sequence[int]) -> None:
        """`control` are the tokens that a grammar may name, with their names."""
        size = max(vocabulary, 256 + len(control) + len(eos_token_ids))
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Bytes(size, control, eos_token_ids)), eos_token=self._eos_token_ids or [0]
        )

    def check(self, grammar: str) -> None:
        """Raise GrammarError with llguidance's message unless `grammar` can bind an answer.

        May take a second, without the GIL.
        """
        if not self._eos_token_ids:
            raise GrammarError("no answer of this model can be bound: it has no end-of-sequence token")
        check_bounds(grammar)
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=parser_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # some regular expressions only show here that they are too complex
        if matcher.is_error():
            raise GrammarError(matcher.get_error().strip())


class _Bytes:
    """A vocabulary as TokenizerWrapper wants it."""

    def __init__(self, size: int, control: Mapping[int, str], eos_token_ids: Sequence[int]) -> None:
        self.eos_token_id = eos_token_ids[0] if eos_token_ids else 0
        self.bos_token_id = None
        self.special_token_ids = sorted({*control, *eos_token_ids})
        self.tokens = [b""] * size
        named = {token: f"<end {token}>" for token in eos_token_ids} | dict(control)
        for token, name in named.items():
            self.tokens[token] = name.encode()
        free = (token for token in range(size) if token not in named)
        for byte, token in zip(range(256), free, strict=False):
            self.tokens[token] = bytes([byte])
        self._id_of_byte = {text[0]: token for token, text in enumerate(self.tokens) if len(text) == 1}

    def __call__(self, text: bytes | str) -> list[int]:
        encoded = text.encode() if isinstance(text, str) else text
        return [self._id_of_byte[byte] for byte in encoded]
