"""The sampler alone: the key of a token, and ids that no model has. Its meaning is compared in tests/ring."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnet_core.errors import RequestError
from dnet_core.shard.sampler import Sampler, _token_key
from dnet_core.transport.control import Purpose, SessionOrder
from dnet_core.types.generation import SamplingParams
from tests.ring.sampling_reference import splitmix64

VOCABULARY = 50
PLAIN = SamplingParams(temperature=1.0, max_tokens=8)
seeds = st.integers(0, 2**64 - 1)
positions = st.integers(0, 2**32 - 1)


def order(sampling: SamplingParams, seed: int = 3, **changes: tuple[int, ...]) -> SessionOrder:
    return replace(SessionOrder("s", 4, 8, (), (), (), sampling, seed, (), Purpose.ANSWER, None), **changes)


def test_the_key_is_splitmix64() -> None:
    # The first outputs of SplitMix64 seeded with 1234567, as its author's C code prints them.
    assert [_token_key(1234567, position) for position in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@given(seed=seeds, position=positions)
def test_the_key_is_64_bits_of_seed_and_position(seed: int, position: int) -> None:
    key = _token_key(seed, position)
    assert key == splitmix64(seed, position)
    assert 0 <= key < 2**64


@given(seed=seeds, position=positions, other=positions)
def test_positions_of_one_seed_never_share_a_key(seed: int, position: int, other: int) -> None:
    assert (_token_key(seed, position) == _token_key(seed, other)) == (position == other)


@given(seed=seeds, other=seeds, position=positions)
def test_seeds_at_one_position_never_share_a_key(seed: int, other: int, position: int) -> None:
    assert (_token_key(seed, position) == _token_key(other, position)) == (seed == other)


def test_what_was_drawn_before_does_not_matter() -> None:
    logits = mx.random.normal((1, VOCABULARY), key=mx.random.key(0))
    fresh = [Sampler(order(PLAIN), VOCABULARY)(logits, at).token.item() for at in range(20)]
    one = Sampler(order(PLAIN), VOCABULARY)
    backwards = [one(logits, at).token.item() for at in reversed(range(20))]
    assert backwards[::-1] == fresh
    assert len(set(fresh)) > 5


@pytest.mark.parametrize("token", [VOCABULARY, 2**32 - 1])
def test_tokens_that_the_model_lacks_are_refused(token: int) -> None:
    for bad in (
        order(replace(PLAIN, logit_bias=((token, 1.0),))),
        order(replace(PLAIN, repetition_penalty=1.5), recent_tokens=(1, token)),
    ):
        with pytest.raises(RequestError, match=str(token)):
            Sampler(bad, VOCABULARY)


def test_special_tokens_that_the_model_lacks_are_left_out() -> None:
    """A tokenizer may have an end of sequence beyond the model's table."""
    xtc = replace(PLAIN, xtc_probability=1.0, xtc_threshold=0.01)
    logits = mx.random.normal((1, VOCABULARY), key=mx.random.key(0))
    known = Sampler(order(xtc, xtc_special_tokens=(7,)), VOCABULARY)
    more = Sampler(order(xtc, xtc_special_tokens=(7, VOCABULARY)), VOCABULARY)
    assert [more(logits, at).token.item() for at in range(9)] == [
        known(logits, at).token.item() for at in range(9)
    ]


@pytest.mark.parametrize("top_k", [VOCABULARY, 10**6])
def test_a_top_k_of_the_whole_vocabulary_is_off(top_k: int) -> None:
    logits = mx.random.normal((1, VOCABULARY), key=mx.random.key(0))
    off = Sampler(order(PLAIN), VOCABULARY)(logits, 4).token.item()
    assert Sampler(order(replace(PLAIN, top_k=top_k)), VOCABULARY)(logits, 4).token.item() == off


def test_a_top_p_of_nothing_is_greedy() -> None:
    logits = mx.random.normal((1, VOCABULARY), key=mx.random.key(0))
    sampler = Sampler(order(replace(PLAIN, top_p=0.0)), VOCABULARY)
    assert {sampler(logits, at).token.item() for at in range(20)} == {mx.argmax(logits).item()}


def test_more_logprobs_than_tokens() -> None:
    draw = Sampler(order(replace(PLAIN, logprobs=20)), 5)(mx.zeros((1, 5)), 0)
    assert sorted(top.token for top in draw.top_logprobs()) == list(range(5))


@given(penalties=st.tuples(st.floats(-2, 2), st.floats(-2, 2)), known=st.integers(0, 12))
def test_an_answer_that_goes_on_elsewhere_is_penalised_as_if_it_had_not_moved(
    penalties: tuple[float, float], known: int
) -> None:
    params = replace(PLAIN, presence_penalty=penalties[0], frequency_penalty=penalties[1])
    logits = mx.random.normal((1, VOCABULARY), key=mx.random.key(0))
    one = Sampler(order(params), VOCABULARY)
    tokens = [int(one(logits, at).token.item()) for at in range(16)]
    other = Sampler(order(params, answered_tokens=tuple(tokens[:known])), VOCABULARY)
    assert [other(logits, at).token.item() for at in range(known, 16)] == tokens[known:]
