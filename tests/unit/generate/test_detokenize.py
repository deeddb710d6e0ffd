"""Tokens to text, by example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dnet_core.generate.detokenize import WINDOW_TOKENS, Detokenizer, TokenBytes
from dnet_core.generate.tokenizer import Tokenizer
from tests import tiny_tokenizers


def test_an_incomplete_character_waits_for_its_rest(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizers.llama_like(tmp_path))
    ids = tokenizer.encode("fox 東!", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(i) for i in ids]
    assert "".join(pieces) == "fox 東!"
    assert pieces[-4:] == ["", "", "東", "!"]  # 東 is three bytes and "!" one


def test_bytes_that_never_become_a_character_are_shown_at_the_end(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizers.byte_level(tmp_path))
    ids = tokenizer.encode("\u0904", add_special_tokens=False)  # not in the corpus: one token per byte
    assert len(ids) == 3
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(i) for i in ids[:2]] == ["", ""]
    assert detokenizer.flush() == "\ufffd"


def test_special_and_end_tokens_have_no_text(tmp_path: Path) -> None:
    directory = tiny_tokenizers.byte_level(tmp_path)
    plain = Tokenizer.load(directory)
    (end,) = plain.encode(".", add_special_tokens=False)
    tiny_tokenizers.write_json(directory / "generation_config.json", {"eos_token_id": end})
    tokenizer = Tokenizer.load(directory)
    ids = tokenizer.encode("<think>fox<|im_end|>.", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    assert "".join(detokenizer.add(i) for i in ids) == "<think>fox"


def test_a_long_answer_costs_the_same_per_token(tmp_path: Path) -> None:
    """A decoder that looks at neighbours is given two windows of tokens at most."""
    tokenizer = Tokenizer.load(tiny_tokenizers.neighbours(tmp_path, "metaspace"))
    longest = 0

    class Watched(Tokenizer):
        def decode(self, ids: object) -> str:
            nonlocal longest
            assert isinstance(ids, list)
            longest = max(longest, len(ids))
            return super().decode(ids)

    tokenizer.__class__ = Watched
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.add(token % 10) for token in range(20 * WINDOW_TOKENS)) + detokenizer.flush()
    assert text == Tokenizer.decode(tokenizer, [token % 10 for token in range(20 * WINDOW_TOKENS)])
    assert longest == 2 * WINDOW_TOKENS


def test_wrong_bytes_do_not_stall_the_stream(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizers.neighbours(tmp_path, "bytes and metaspace"))
    detokenizer = Detokenizer(tokenizer)
    wrong = tiny_tokenizers.NEIGHBOURS_FIRST_BYTE + 0xFF
    shown = [detokenizer.add(wrong) for _ in range(8 * WINDOW_TOKENS)]
    assert max(i for i, piece in enumerate(shown) if piece) > 4 * WINDOW_TOKENS
    assert detokenizer.add(1).endswith(" fox")


def test_special_tokens_are_spelled_where_they_are_wanted(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizers.byte_level(tmp_path))
    start, end = (tokenizer.token_id(text) for text in ("<|im_start|>", "<|im_end|>"))
    assert start is not None
    assert end is not None
    ids = (*tokenizer.encode("é", add_special_tokens=False)[:1], start, end)
    plain, shown = Detokenizer(tokenizer), Detokenizer(tokenizer, {start})
    assert "".join(map(plain.add, ids)) + plain.flush() == "\ufffd"
    assert "".join(map(shown.add, ids)) + shown.flush() == "\ufffd<|im_start|>"


@pytest.mark.parametrize("make", [tiny_tokenizers.byte_level, tiny_tokenizers.llama_like])
def test_bytes_of_tokens(make: Callable[[Path], Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(make(tmp_path))
    bytes_of = TokenBytes(tokenizer)
    text = "Grüße, 東京 🙂"
    raw = b"".join(map(bytes_of, tokenizer.encode(text, add_special_tokens=False)))
    assert raw.decode().removeprefix(" ") == text
    assert bytes_of(10**6) == b""
    assert bytes_of(tokenizer.eos_token_ids[0]).startswith(b"<")
