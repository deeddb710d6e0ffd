"""Log-probabilities as OpenAI writes them: each token with its text and its bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from dnet_core.generate.detokenize import Detokenizer, TokenBytes
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.types.generation import TokenText

TokenEntry = dict[str, object]
"""A token with its text, bytes, log-probability and the likeliest tokens in its place."""


class HeldLogprobs:
    """Entries of one answer, each given out once its token's text is: what a stop string hides stays hidden.

    text shown   |-----------------|
    tokens       [ The][ cat][ sat][ END]        the last entry waits, and is dropped at a stop string
    """

    def __init__(self, tokenizer: Tokenizer, shown: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._bytes_of = TokenBytes(tokenizer)
        self._detokenizer = Detokenizer(tokenizer, shown)
        self._held: deque[tuple[int, TokenEntry]] = deque()  # characters before the token, its entry
        self._token_chars = 0
        self._shown_chars = 0

    def add(self, event: TokenText) -> list[TokenEntry]:
        """Take a token; return the entries whose text has been shown by now."""
        if event.token not in self._tokenizer.eos_token_ids:
            self._held.append((self._token_chars, self._entry(event)))
            self._token_chars += len(self._detokenizer.add(event.token))
        self._shown_chars += len(event.text)
        shown = []
        while self._held and self._held[0][0] < self._shown_chars:
            shown.append(self._held.popleft()[1])
        return shown

    def _entry(self, event: TokenText) -> TokenEntry:
        assert event.logprob is not None, "the session was opened with log-probabilities"
        top = [self._token(entry.token, entry.logprob) for entry in event.top_logprobs]
        return {**self._token(event.token, event.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> TokenEntry:
        raw = self._bytes_of(token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": [*raw]}
