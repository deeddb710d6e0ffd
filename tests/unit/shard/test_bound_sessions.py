"""A bound session on this thread: what is forced travels as one chunk; an answer can be taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.grammar.build import GrammarWriter, json_schema
from dnet_core.grammar.matcher import GrammarTokenizer
from dnet_core.slices.hidden import Arrays
from dnet_core.transport.control import Purpose, SessionOrder
from dnet_core.transport.frames import Prompt, Sampled, Tokens
from dnet_core.types.generation import FinishReason, SamplingParams
from dnet_core.types.ring import LayerWindow
from tests.tiny_models import write_tiny_model
from tests.unit.shard.test_runtime import LAYERS, PROMPT, Shard

SCHEMA = {
    "properties": {
        "kind": {"enum": ["the brown fox", "the lazy dog"]},
        "size": {"type": "integer", "minimum": 10, "maximum": 99},
        "is_quick": {"type": "boolean"},
    },
    "type": "object",
    "required": ["kind", "size", "is_quick"],
    "additionalProperties": False,
}
MAX_TOKENS = 120


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("bound"))


@pytest.fixture(scope="module")
def grammar(directory: Path) -> str:
    writer = GrammarWriter(Tokenizer.load(directory).control_tokens)
    return writer.grammar(writer.part(json_schema(SCHEMA)))


def open_bound(
    shard: Shard, directory: Path, grammar: str, answered: tuple[int, ...] = (), *, penalty: float = 0.0
) -> None:
    """Open session "s"."""
    sampling = SamplingParams(
        temperature=1.2,
        seed=4,
        max_tokens=MAX_TOKENS,
        grammar=grammar,
        frequency_penalty=penalty,
        repetition_penalty=1.0 + penalty,
        logprobs=2,
    )
    tokens = PROMPT + answered
    eos = Tokenizer.load(directory).eos_token_ids
    order = SessionOrder(
        "s", len(PROMPT), MAX_TOKENS, eos, tokens[-20:], (), sampling, 4, answered, Purpose.ANSWER, None
    )
    shard.runtime.open("driver:d", order, GrammarTokenizer(directory).matcher(grammar, answered))


def begin(
    shard: Shard, directory: Path, grammar: str, answered: tuple[int, ...] = (), *, penalty: float = 0.0
) -> None:
    """Open session "s" and read its prompt, with the part of the answer that is there."""
    open_bound(shard, directory, grammar, answered, penalty=penalty)
    tokens = PROMPT + answered
    shard.send(Prompt("s", 0, tokens[:-1], False))
    shard.send(Prompt("s", len(tokens) - 1, tokens[-1:], True))


def answer_of(shard: Shard) -> list[Sampled]:
    assert shard.faults() == []
    return [frame for frame in shard.driver if isinstance(frame, Sampled)]


def test_what_is_forced_is_one_frame(directory: Path, grammar: str) -> None:
    head, tail = Shard(directory, LayerWindow(0, 2)), Shard(directory, LayerWindow(2, LAYERS))
    begin(head, directory, grammar)
    open_bound(tail, directory, grammar)
    told: list[Tokens] = []
    while head.next:
        tail.send(head.next.pop(0))
        while tail.next:
            tokens = tail.next.pop(0)
            assert isinstance(tokens, Tokens)
            told.append(tokens)
            head.send(tokens)
    answer = answer_of(tail)
    assert answer[-1].finish is FinishReason.STOP
    assert max(len(tokens.tokens) for tokens in told) > 5
    assert len(told) < len(answer) / 2
    sent = [token for tokens in told for token in tokens.tokens]
    assert sent == [frame.token for frame in answer][: len(sent)]
    first = told[0].position
    assert [tokens.position for tokens in told] == [
        first + sum(len(earlier.tokens) for earlier in told[:place]) for place in range(len(told))
    ]
    assert sum(bool(frame.stages) for frame in answer) == len(told) + 1


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7])
@pytest.mark.parametrize("split", [False, True])
def test_what_is_forced_comes_in_chunks_as_a_prompt_does(
    split: bool, chunk_tokens: int, directory: Path, grammar: str
) -> None:
    """No frame is longer than a chunk, the next follows when it has passed, and the answer is the same."""
    head = Shard(directory, LayerWindow(0, LAYERS))
    begin(head, directory, grammar)
    whole = answer_of(head)
    longest = max(sizes_of_groups(whole))
    assert longest > 7, "something has to be cut"
    if not split:
        one = Shard(directory, LayerWindow(0, LAYERS), chunk_tokens=chunk_tokens)
        ran = chunks_run(one)
        begin(one, directory, grammar)
        answer = answer_of(one)
    else:
        head = Shard(directory, LayerWindow(0, 2), chunk_tokens=chunk_tokens)
        one = Shard(directory, LayerWindow(2, LAYERS), chunk_tokens=chunk_tokens)
        ran = chunks_run(one)
        begin(head, directory, grammar)
        open_bound(one, directory, grammar)
        while head.next:
            assert len(head.next) <= 2, "one chunk at a time, but for the prompt"
            one.send(head.next.pop(0))
            while one.next:
                head.send(one.next.pop(0))
        answer = answer_of(one)
    assert [(frame.token, frame.position, frame.finish) for frame in answer] == [
        (frame.token, frame.position, frame.finish) for frame in whole
    ]
    del ran[:2]  # the prompt
    assert max(ran) == chunk_tokens
    assert sum(ran) == sum(sizes_of_groups(whole)[:-1]), "every token but the last group ran once"
    # A token that is sampled tells all laps since the one before it.
    assert sum(len(frame.stages) for frame in answer) == (len(ran) + 1) * (2 if split else 1)


def sizes_of_groups(answer: list[Sampled]) -> list[int]:
    """How many tokens each sampled one brought with it, itself included."""
    starts = [place for place, frame in enumerate(answer) if frame.stages]
    return [stop - start for start, stop in zip(starts, [*starts[1:], len(answer)], strict=True)]


def chunks_run(shard: Shard) -> list[int]:
    """How many tokens each window that `shard` will run has."""
    ran: list[int] = []
    run = shard.runtime._run_window

    def noted(window: LayerWindow, value: Arrays, *rest: Any) -> Arrays:
        ran.append(value[0].shape[1])
        return run(window, value, *rest)

    shard.runtime._run_window = noted  # type: ignore[method-assign]
    return ran


def test_a_cancel_in_the_middle_of_what_is_forced(directory: Path, grammar: str) -> None:
    shard = Shard(directory, LayerWindow(0, LAYERS), chunk_tokens=1)
    again, num_chunks = shard.again, 0

    def cancelling(work: Callable[[], None]) -> None:
        nonlocal num_chunks
        num_chunks += 1
        if num_chunks == 3:
            shard.runtime.cancel("s")
        again(work)

    shard.runtime._outputs = replace(shard.runtime._outputs, again=cancelling)
    begin(shard, directory, grammar)
    assert num_chunks == 3
    assert shard.runtime.close("s") is None
    assert shard.runtime.sessions == ()


@pytest.mark.parametrize("penalty", [0.0, 0.8])
def test_an_answer_is_taken_up_at_any_token(penalty: float, directory: Path, grammar: str) -> None:
    """Also in the middle of what is forced: the matcher follows what was answered, the rest is the same."""
    shard = Shard(directory, LayerWindow(0, LAYERS))
    begin(shard, directory, grammar, penalty=penalty)
    whole = answer_of(shard)
    ids = [frame.token for frame in whole]
    text = Tokenizer.load(directory).decode(ids)
    assert json.loads(text)["kind"].startswith("the ")
    for known in range(1, len(ids), 7):
        other = Shard(directory, LayerWindow(0, LAYERS))
        begin(other, directory, grammar, tuple(ids[:known]), penalty=penalty)
        rest = answer_of(other)
        assert [frame.token for frame in rest] == ids[known:]
        assert [frame.position for frame in rest] == [frame.position for frame in whole[known:]]
        assert rest[-1].finish is FinishReason.STOP
