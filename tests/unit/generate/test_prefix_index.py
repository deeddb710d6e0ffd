"""Which prefix a prompt may begin with, and what shards that end at different positions have in common."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dnet_core.generate.keeping import common
from dnet_core.generate.prefixes import (
    FEWEST_TOKENS,
    MOST_PREFIXES,
    Beginning,
    KnownPrefix,
    PrefixIndex,
    common_length,
)
from dnet_core.transport.control import KeptPrefix, Reuse

CHUNK = 16
few_tokens = st.lists(st.integers(0, 2), max_size=40).map(tuple)


def found(index: PrefixIndex, tokens: tuple[int, ...], *, same_bits: bool = False) -> Reuse | None:
    begun = index.find(tokens, same_bits=same_bits)
    return begun and begun.reuse


def after(known: KnownPrefix, num_tokens: int) -> Beginning:
    return Beginning(Reuse("a", num_tokens), known)


def index_of(**kept: tuple[tuple[int, ...], int, bool]) -> PrefixIndex:
    """An index of prefixes: their tokens, the length of the prompt, whether they can be trimmed."""
    index = PrefixIndex(CHUNK)
    for name, (tokens, prompt_tokens, can_trim) in kept.items():
        index.add(name, index.describe(tokens, can_trim, prompt_tokens, None))
    return index


@given(a=few_tokens, b=few_tokens)
def test_the_common_length(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    length = common_length(a, b)
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]


def test_the_longest_is_found_and_one_token_is_left_to_read() -> None:
    tokens = tuple(range(100))
    index = index_of(short=(tokens[:20], 20, False), long=(tokens[:60], 50, False))
    assert found(index, tokens) == Reuse("long", 60)
    assert found(index, tokens[:61]) == Reuse("long", 60)
    assert found(index, tokens[:60]) == Reuse("short", 20)
    assert found(index, tokens[:20]) is None
    trimmed = index_of(long=(tokens[:60], 50, True))
    assert found(trimmed, tokens[:60]) == Reuse("long", 59)
    assert found(trimmed, (*tokens[:33], 7)) == Reuse("long", 33)
    assert found(trimmed, tokens[:FEWEST_TOKENS]) is None
    assert found(trimmed, (*tokens[: FEWEST_TOKENS - 1], 500, 501)) is None


def test_the_same_bits_are_whole_chunks_of_a_prompt_or_a_prompt_of_that_length() -> None:
    tokens = tuple(range(100))
    index = index_of(a=(tokens[:70], 50, True))
    assert found(index, tokens, same_bits=True) == Reuse("a", 48)
    assert found(index, (*tokens[:40], 7, 7), same_bits=True) == Reuse("a", 32)
    assert found(index, tokens[:50], same_bits=True) == Reuse("a", 49)
    assert found(index, tokens[:51], same_bits=True) == Reuse("a", 48)
    assert found(index, tokens[:15], same_bits=True) is None


def test_what_was_read_after_another_prefix_has_the_bits_of_both() -> None:
    tokens = tuple(range(200))
    index = PrefixIndex(CHUNK)
    known = index.describe(tokens[:70], True, 50, None)
    # Begun in the middle of a chunk: from there on chunks are others than those of a prompt read afresh.
    odd = index.describe(tokens[:150], True, 140, after(known, 70))
    assert (odd.fresh_tokens, odd.prompt_tokens) == (48, None)
    even = index.describe(tokens[:150], True, 140, after(known, 48))
    assert (even.fresh_tokens, even.prompt_tokens) == (128, 140)
    same = index.describe(tokens[:60], True, 50, after(known, 49))
    assert (same.fresh_tokens, same.prompt_tokens) == (48, 50)


def test_a_longer_one_takes_the_place_of_those_that_it_says_all_of() -> None:
    tokens = tuple(range(100))
    index = index_of(a=(tokens[:20], 20, True), other=((7,) * 30, 30, True))
    known = index.describe(tokens[:20], True, 20, None)
    b = index.describe(tokens[:60], True, 60, after(known, 16))
    assert index.add("b", b) == ["a"]
    assert found(index, tokens[:25]) == Reuse("b", 24)
    assert found(index, (7,) * 40) == Reuse("other", 30)
    # One that cannot go back cannot stand for shorter ones, nor one of other bits for who needs the same.
    assert index.add("c", index.describe(tokens[:80], False, 80, after(b, 60))) == []
    assert index.add("d", index.describe(tokens[:70], True, 70, after(known, 19))) == []


def test_the_index_is_bounded() -> None:
    index = PrefixIndex(CHUNK)
    dropped = [
        name
        for i in range(MOST_PREFIXES + 3)
        for name in index.add(str(i), index.describe((i,) * 20, True, 20, None))
    ]
    assert dropped == ["0", "1", "2"]


def test_shards_that_end_at_different_positions() -> None:
    trim, whole = KeptPrefix(52, True), KeptPrefix(50, False)
    assert common([trim, KeptPrefix(50, True)], 60) == (50, True)
    assert common([trim, whole], 60) == (50, False)
    assert common([KeptPrefix(50, True), KeptPrefix(52, False)], 60) == (0, False)
    assert common([trim, None], 60) == (0, False)
    assert common([trim, OSError()], 60) == (0, False)
    assert common([KeptPrefix(61, True)], 60) == (60, True), "of tokens that nobody knows yet, none"
    assert common([KeptPrefix(61, False)], 60) == (0, False)
