"""The pieces of a stream, put together, are the text of all its tokens decoded at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dnet_core.generate.detokenize import Detokenizer
from dnet_core.generate.tokenizer import Tokenizer
from tests import tiny_tokenizers


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.add(i) for i in ids), detokenizer.flush()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return lambda name: tmp_path_factory.mktemp(name.replace(" ", "_"))


@pytest.fixture(scope="module")
def byte_level(folder: Callable[[str], Path]) -> Tokenizer:
    return Tokenizer.load(tiny_tokenizers.byte_level(folder("byte level")))


@pytest.fixture(scope="module")
def llama_dir(folder: Callable[[str], Path]) -> Path:
    return tiny_tokenizers.llama_like(folder("llama"))


@pytest.fixture(scope="module")
def llama_like(llama_dir: Path) -> Tokenizer:
    return Tokenizer.load(llama_dir)


@pytest.fixture(scope="module")
def neighbour_bytes(folder: Callable[[str], Path]) -> Tokenizer:
    return Tokenizer.load(tiny_tokenizers.neighbours(folder("neighbours"), "bytes and metaspace"))


# 401 is `<think>`; 402 and up are the padding that a model's table may have.
@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 405), max_size=40))
def test_byte_level_random_tokens(byte_level: Tokenizer, ids: list[int]) -> None:
    assert "".join(stream(byte_level, ids)) == byte_level.decode(ids)


@settings(deadline=None)
@given(text=st.text(max_size=30))
def test_byte_level_text_comes_back(byte_level: Tokenizer, text: str) -> None:
    ids = list(byte_level.encode(text, add_special_tokens=True))
    pieces = stream(byte_level, ids)
    assert "".join(pieces) == byte_level.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(deadline=None)
@given(text=st.text(max_size=30))
def test_llama_like_text_comes_back(llama_like: Tokenizer, text: str) -> None:
    ids = list(llama_like.encode(text, add_special_tokens=True))
    pieces = stream(llama_like, ids)
    assert "".join(pieces) == llama_like.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 339), max_size=40))
def test_llama_like_random_tokens_as_sentencepiece(
    llama_dir: Path, llama_like: Tokenizer, ids: list[int]
) -> None:
    """Sentencepiece itself is the oracle: `tokenizers` spoils right characters beside a wrong byte.

    But for a space that comes first and as a byte: Llama's tokenizer.json strips it with the dummy prefix, as
    mlx-lm does, sentencepiece keeps it.
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(llama_dir / "tokenizer.model"))
    visible = [i for i in ids if i not in llama_like.hidden_token_ids]
    assume(visible[:1] != [processor.piece_to_id("<0x20>")])
    assert "".join(stream(llama_like, ids)) == processor.decode(visible)


@pytest.mark.parametrize("decoder", ["metaspace", "wordpiece", "none"])
def test_decoders_that_look_at_neighbours(tmp_path: Path, decoder: str) -> None:
    tokenizer = Tokenizer.load(tiny_tokenizers.neighbours(tmp_path, decoder))

    @given(
        ids=st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40), repeats=st.sampled_from([1, 30])
    )
    def check(ids: list[int], repeats: int) -> None:
        assert "".join(stream(tokenizer, ids * repeats)) == tokenizer.decode(ids * repeats)

    check()


@settings(deadline=None)
@given(text=st.text(alphabet="東é🙂a ", max_size=30), repeats=st.sampled_from([1, 40]))
def test_bytes_and_neighbours(neighbour_bytes: Tokenizer, text: str, repeats: int) -> None:
    """Byte tokens under a Metaspace decoder: whole characters, however long the run."""
    spelled = [tiny_tokenizers.NEIGHBOURS_FIRST_BYTE + byte for byte in text.encode()] * repeats
    pieces = stream(neighbour_bytes, spelled)
    assert "".join(pieces) == neighbour_bytes.decode(spelled)
    assert all("\ufffd" not in piece for piece in pieces)
