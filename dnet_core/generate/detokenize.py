"""Tokens to text, one at a time: the pieces put together are the text of all tokens decoded at once.

Almost every language model has one of two decoders, and for both a token is bytes and nothing else:

    byte level     "Ġcaf" "Ã" "©"            ->  20 63 61 66 | C3 | A9
    sentencepiece  "▁caf" "<0xC3>" "<0xA9>"  ->  20 63 61 66 | C3 | A9   (first space of the text dropped)

so text is those bytes through an incremental UTF-8 decoder: constant work per token, an incomplete character
waits for its rest, and what was shown is never taken back. Other decoders (Metaspace, WordPiece, ...) look at
neighbours: there a window of tokens is decoded again for each new one.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Collection
from functools import cache

from dnet_core.generate.tokenizer import Tokenizer

WINDOW_TOKENS = 256
"""How far back a decoder that is not plain bytes may look; it is given at most three times as many tokens."""

REPLACEMENT = "\ufffd"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Detokenizer:
    """The text of one answer. Owned by one generation.

    Special and end-of-sequence tokens have no text, but those in `shown` have their spelling: formats of
    tool calls and reasoning are written with them.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._shown = tokenizer.hidden_token_ids & set(shown)
        self._text = _text_stream(tokenizer)

    def add(self, token: int) -> str:
        """Return the text that `token` completes: empty while a character is incomplete."""
        if token in self._shown:
            return self._text.flush() + (self._tokenizer.token_text(token) or "")
        return "" if token in self._tokenizer.hidden_token_ids else self._text.add(token)

    def flush(self) -> str:
        """Return what is left at the end: U+FFFD for the bytes of a character that never became complete."""
        return self._text.flush()


class TokenBytes:
    """The bytes that single tokens stand for, as log-probabilities are told. Immutable."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        stream = _text_stream(tokenizer)
        self._to_bytes = stream.to_bytes if isinstance(stream, _ByteStream) else None

    def __call__(self, token: int) -> bytes:
        """Return the bytes of `token`: of a special one its spelling, of an id without a text none."""
        spelling = self._tokenizer.token_text(token)
        if spelling is None:
            return b""
        if token in self._tokenizer.hidden_token_ids:
            return spelling.encode()
        if self._to_bytes is not None:
            return self._to_bytes(spelling)
        return self._tokenizer.decode([token]).encode()


def _text_stream(tokenizer: Tokenizer) -> _ByteStream | _WindowStream:
    match tokenizer.decoder_spec:
        case {"type": "ByteLevel"} | {"type": "Sequence", "decoders": [{"type": "ByteLevel"}]}:
            return _ByteStream(tokenizer, _byte_level, errors="replace", strip_spaces=0)
        case {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        }:
            match strip:
                case []:
                    return _ByteStream(tokenizer, _sentencepiece, errors=EACH_BYTE, strip_spaces=0)
                case [{"type": "Strip", "content": " ", "start": int(start), "stop": 0}]:
                    return _ByteStream(tokenizer, _sentencepiece, errors=EACH_BYTE, strip_spaces=start)
    return _WindowStream(tokenizer)


class _ByteStream:
    """Text of tokens that are bytes."""

    def __init__(
        self, tokenizer: Tokenizer, to_bytes: Callable[[str], bytes], *, errors: str, strip_spaces: int
    ) -> None:
        self._tokenizer = tokenizer
        self.to_bytes = to_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors)
        self._strip_spaces = strip_spaces  # how many more leading spaces of the whole text to drop

    def add(self, token: int) -> str:
        text = self._tokenizer.token_text(token)
        # A model's table may be padded beyond the vocabulary; such a token has no text.
        return "" if text is None else self._strip(self._utf8.decode(self.to_bytes(text)))

    def flush(self) -> str:
        return self._strip(self._utf8.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        while self._strip_spaces and text:
            if text[0] != " ":
                self._strip_spaces = 0
                return text
            text = text[1:]
            self._strip_spaces -= 1
        return text


class _WindowStream:
    """Text of tokens whose decoder looks at neighbours: decode the last tokens, show what is new.

    The first `_num_shown` characters of the window's text have been returned. A full window loses the tokens
    before `_cut`, a place between two characters.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_shown = 0
        self._cut: int | None = None

    def add(self, token: int) -> str:
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) < 3 * WINDOW_TOKENS:
            return ""  # an incomplete character: its rest follows, or these bytes are just wrong
        new = text[self._num_shown :]
        self._num_shown = max(self._num_shown, len(text))
        if self._cut is None and len(self._window) >= WINDOW_TOKENS:
            self._cut = len(self._window)
        if len(self._window) >= 2 * WINDOW_TOKENS:
            self._window, self._cut = self._window[self._cut :], None
            self._num_shown = len(self._tokenizer.decode(self._window))
        return new

    def flush(self) -> str:
        rest = self._tokenizer.decode(self._window)[self._num_shown :]
        self._window, self._num_shown, self._cut = [], 0, None
        return rest


@cache
def _byte_of_char() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters stand for themselves, the others for U+0100 and up."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    table = _byte_of_char()
    if all(char in table for char in token):
        return bytes(table[char] for char in token)
    return token.encode()  # an added token, spelled as it is


def _sentencepiece(token: str) -> bytes:
    if match := BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace("▁", " ").encode()


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError), "a handler for decoding"
    return REPLACEMENT * (error.end - error.start), error.end


EACH_BYTE = "dnet-each-byte"
"""Sentencepiece shows one U+FFFD per wrong byte. `tokenizers` would also replace the right characters beside
it, which is known only after the last byte token: a stream that waited for that would stall in scripts that a
vocabulary spells in bytes."""
codecs.register_error(EACH_BYTE, _replace_each_byte)
