"""A session notes how far each window has come, and when its sequence ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnet_core.errors import ProtocolError
from dnet_core.generate.session import prompt_chunks
from dnet_core.shard.sessions import Session, Taken
from dnet_core.transport.control import Purpose, SessionOrder
from dnet_core.types.generation import FinishReason, SamplingParams
from dnet_core.types.ring import LayerWindow

EARLY, LATE = LayerWindow(0, 2), LayerWindow(4, 5)


def session(prompt_tokens: int = 4, max_tokens: int = 3, stop: tuple[int, ...] = (7, 8)) -> Session:
    order = SessionOrder(
        "s", prompt_tokens, max_tokens, stop, (), (), SamplingParams(), 1, (), Purpose.ANSWER, None
    )
    return Session("driver:d", order, [])


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=10), wrong=st.integers(0, 600))
def test_only_what_follows_is_taken(lengths: list[int], wrong: int) -> None:
    s, reached = session(prompt_tokens=sum(lengths)), 0
    for length in lengths:
        if wrong != reached:
            with pytest.raises(ProtocolError, match=str(wrong)):
                s.advance(EARLY, wrong, length)
        s.advance(EARLY, reached, length)
        reached += length
    s.advance(LATE, 0, 1)  # windows are counted each for itself


def test_memory_is_set_aside_for_what_was_ordered_and_no_more() -> None:
    s = session(prompt_tokens=4, max_tokens=3)
    s.advance(EARLY, 0, 7)
    with pytest.raises(ProtocolError, match="opened for 7 tokens"):
        s.advance(EARLY, 7, 1)
    with pytest.raises(ProtocolError, match="opened for 7 tokens"):
        s.advance(LATE, 0, 8)


def test_ends() -> None:
    s = session()
    assert [s.take(1, position).finish for position in (4, 5, 6)] == [None, None, FinishReason.LENGTH]
    assert [s.take(token, 4).finish for token in (7, 8, 9)] == [FinishReason.STOP, FinishReason.STOP, None]
    assert s.take(7, 6) == Taken((7,), FinishReason.STOP)
    assert [s.is_last(position) for position in (4, 5, 6)] == [False, False, True]
    assert session(max_tokens=1).is_last(4)


@given(tokens=st.lists(st.integers(0, 99), min_size=1, max_size=200), chunk=st.integers(1, 64))
def test_chunks_of_a_prompt(tokens: list[int], chunk: int) -> None:
    """All tokens once and in order; the last one alone, as mlx-lm cuts a prompt."""
    chunks = prompt_chunks("s", tuple(tokens), chunk)
    assert [token for prompt in chunks for token in prompt.tokens] == tokens
    position = 0
    for prompt in chunks:
        assert prompt.position == position
        assert 1 <= len(prompt.tokens) <= chunk
        position += len(prompt.tokens)
    assert [prompt.last for prompt in chunks] == [False] * (len(chunks) - 1) + [True]
    assert len(chunks[-1].tokens) == 1
    assert all(len(prompt.tokens) == chunk for prompt in chunks[:-2])
