"""What a model thinks is told apart from what it says, in every format and however the text is cut."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from dnet_core.generate.thoughts import (
    REASONING,
    AnswerMarkers,
    ThoughtReader,
    answer_markers,
    split_thoughts,
    thinking_switches,
)
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.types.generation import (
    FinishReason,
    GenerationDone,
    GenerationEvent,
    PromptProgress,
    TokenText,
)
from tests.tiny_tokenizers import sample as write_sample

THINK = AnswerMarkers(REASONING[0], (), frozenset())
PLAIN = AnswerMarkers(None, (), frozenset())


def read(text: str, markers: AnswerMarkers, *, is_open: bool = False, piece: int = 1) -> tuple[str, str]:
    reader = ThoughtReader(markers, is_open=is_open)
    pieces = [text[i : i + piece] for i in range(0, len(text), piece)]
    parts = [*(reader.feed(p) for p in pieces), reader.finish()]
    return "".join(thought for thought, _ in parts), "".join(text for _, text in parts)


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("form", REASONING)
def test_every_format_is_split_however_it_is_cut(form: object, piece: int) -> None:
    markers = AnswerMarkers(form, (), frozenset())  # type: ignore[arg-type]
    start, end = markers.reasoning.start, markers.reasoning.end  # type: ignore[union-attr]
    told = f"\n{start}\nLet me see: a < b.\n\nYes.\n{end}\n\nParis, I <think> so.\n"
    assert read(told, markers, piece=piece) == ("Let me see: a < b.\n\nYes.", "Paris, I <think> so.\n")
    opened = told.replace(start, "", 1)
    assert read(opened, markers, is_open=True, piece=piece)[1] == "Paris, I <think> so.\n"


@pytest.mark.parametrize("piece", [1, 4, 1000])
def test_the_channels_of_gpt_oss(piece: int, sample: Tokenizer) -> None:
    template = "{{ '<|start|>assistant<|channel|>' }}<|message|>"
    tokenizer = Tokenizer(
        sample._backend, special_texts={}, chat_templates={"default": template}, eos_token_ids=()
    )
    markers = answer_markers(tokenizer)
    told = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
        "<|channel|>final<|message|>It is *Paris*.<|end|>"
    )
    assert read(told, markers, piece=piece) == ("Hm.", "It is *Paris*.")
    short = "<|channel|>final<|message|>At once."
    assert read(short, markers, piece=piece) == ("", "At once.")


def test_an_answer_without_thoughts_is_left_as_it_is() -> None:
    for text in ("", "  ", "<thin", "<", "no\n\n  thoughts <think> here </think>\n"):
        assert read(text, THINK) == ("", text), repr(text)
        assert read(text, PLAIN) == ("", text), repr(text)


def test_a_thought_that_never_ends_is_a_thought() -> None:
    assert read("<think>and so on </thin", THINK) == ("and so on </thin", "")


def test_what_a_template_is_told_by() -> None:
    assert thinking_switches("{% if enable_thinking is false %}") == ("enable_thinking",)
    assert thinking_switches("{% if thinking %}") == ("thinking",)
    assert thinking_switches("rethinking") == ()


async def test_events_keep_their_order_and_the_rest_comes_before_the_end() -> None:
    done = GenerationDone(FinishReason.LENGTH, 3, 2, 0, None, None)
    closed = []

    async def events() -> AsyncGenerator[GenerationEvent, None]:
        try:
            yield PromptProgress(3, 3, ())
            for position, text in enumerate(("<think>a", "</th")):
                yield TokenText(text, 7, position, None, (), ())
            yield done
        finally:
            closed.append(True)

    told = [event async for event in split_thoughts(events(), ThoughtReader(THINK, is_open=False))]
    assert told == [
        PromptProgress(3, 3, ()),
        TokenText("", 7, 0, None, (), (), "a"),
        TokenText("", 7, 1, None, (), ()),
        TokenText("", 7, 1, None, (), (), "</th"),
        done,
    ]
    early = split_thoughts(events(), ThoughtReader(THINK, is_open=False))
    await anext(early)
    await early.aclose()
    assert closed == [True, True], "closing it closes what it reads"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_sample(tmp_path_factory.mktemp("sample")))
