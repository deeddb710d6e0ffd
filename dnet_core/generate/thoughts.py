"""What a model thinks before it answers: how it is written, and how it is split off.

    <think>Let me see.</think>Paris.
           |- thought ------| |----| text

Formats are told from the chat template and the vocabulary. How the text is cut into pieces makes no
difference to what comes out, put together.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import Enum, auto

from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.types.generation import GenerationDone, GenerationEvent, TokenText


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning stands before the answer, between `start` and `end`."""

    start: str
    end: str


REASONING = tuple(
    ReasoningFormat(start, end)
    for start, end in (
        ("<think>", "</think>"),  # DeepSeek, Qwen, GLM, MiniMax, Nemotron, SmolLM3, ...
        ("<longcat_think>", "</longcat_think>"),
        ("<|think:start|>", "<|think:end|>"),
        ("<|channel>thought", "<channel|>"),  # Gemma 4
        ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
        ("[THINK]", "[/THINK]"),  # Magistral
        ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
        ("<seed:think>", "</seed:think>"),
        ("◁think▷", "◁/think▷"),
        ("<thought>", "</thought>"),  # EXAONE Deep
        ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
    )
)

_HARMONY = ReasoningFormat("<|channel|>analysis<|message|>", "<|channel|>final<|message|>")
_HARMONY_DROPPED = (
    "<|end|>",
    "<|start|>assistant",
    "<|channel|>final<|message|>",
    "<|channel|>commentary<|message|>",
)
_HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_RESPONSE_TOKENS = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")  # Command A, around the answer


def reasoning_format(tokenizer: Tokenizer, template: str) -> ReasoningFormat | None:
    """The format that the template writes, or that the vocabulary has tokens for (None: it has none)."""
    return next((f for f in REASONING if _has(tokenizer, template, f)), None)


def marker_tokens(marker: str) -> list[str]:
    """The special tokens that a marker may be written with: itself, or the parts in brackets."""
    parts = [part + ">" for part in marker.split(">")[:-1]]
    return [marker, *parts]


def thinking_switches(template: str) -> tuple[str, ...]:
    """The variables with which a template is told whether to think."""
    names = ("enable_thinking", "thinking")
    return tuple(name for name in names if re.search(rf"\b{name}\b", template))


def _has(tokenizer: Tokenizer, template: str, reasoning: ReasoningFormat) -> bool:
    if reasoning.end in template:
        return True
    return all(tokenizer.token_id(text) is not None for text in (reasoning.start, reasoning.end))


@dataclass(frozen=True, slots=True)
class AnswerMarkers:
    """What is read out of an answer's text; `shown` are the special tokens to be spelled out for that."""

    reasoning: ReasoningFormat | None
    dropped: tuple[str, ...]
    shown: frozenset[int]


def answer_markers(tokenizer: Tokenizer) -> AnswerMarkers:
    """How the model of `tokenizer` answers a chat without tools."""
    template = tokenizer.chat_template(with_tools=False)
    reasoning: ReasoningFormat | None
    dropped: tuple[str, ...]
    if "<|channel|>" in template and "<|message|>" in template:
        reasoning, dropped, texts = _HARMONY, _HARMONY_DROPPED, set(_HARMONY_TOKENS)
    else:
        reasoning = reasoning_format(tokenizer, template)
        dropped = _RESPONSE_TOKENS if _RESPONSE_TOKENS[0] in template else ()
        texts = set(dropped)
        if reasoning is not None:
            texts |= {*marker_tokens(reasoning.start), *marker_tokens(reasoning.end)}
    ids = (tokenizer.token_id(text) for text in texts)
    return AnswerMarkers(reasoning, dropped, frozenset(i for i in ids if i is not None))


class _At(Enum):
    START = auto()  # nothing but white space so far: reasoning may begin
    THOUGHT = auto()
    TEXT = auto()


class ThoughtReader:
    """Splits one answer. `is_open`: the prompt has opened the reasoning already. Owned by one task."""

    def __init__(self, markers: AnswerMarkers, *, is_open: bool) -> None:
        self._reasoning = markers.reasoning
        self._dropped = markers.dropped
        self._pending = ""
        self._trims = is_open  # white space at the start of what follows is no part of it
        self._at = _At.THOUGHT if is_open else _At.START if markers.reasoning else _At.TEXT

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece; return (thought, text) as far as they are certain."""
        self._pending += text
        if self._at is _At.START:
            self._begin()
        thought = self._read_thought() if self._at is _At.THOUGHT else ""
        return thought, self._read_text() if self._at is _At.TEXT else ""

    def finish(self) -> tuple[str, str]:
        """Return what was held back, when the answer has ended."""
        rest, self._pending = self._pending, ""
        return (rest.rstrip(), "") if self._at is _At.THOUGHT else ("", rest)

    def _begin(self) -> None:
        assert self._reasoning is not None, "only a model that reasons starts here"
        start, begun = self._reasoning.start, self._pending.lstrip()
        if begun.startswith(start):
            self._pending = begun.removeprefix(start)
            self._at, self._trims = _At.THOUGHT, True
        elif not start.startswith(begun):
            self._at = _At.TEXT

    def _read_thought(self) -> str:
        assert self._reasoning is not None, "only a model that reasons gets here"
        pending, end = self._trimmed(), self._reasoning.end
        thought, found, rest = pending.partition(end)
        if not found:
            thought = pending[: len(pending) - _held(pending, (end, *self._dropped))].rstrip()
            self._pending = pending[len(thought) :]
        else:
            self._pending, self._at, self._trims = rest, _At.TEXT, True
        for marker in self._dropped:
            thought = thought.replace(marker, "")
        return thought.rstrip() if found else thought

    def _read_text(self) -> str:
        text = self._trimmed()
        for marker in self._dropped:
            text = text.replace(marker, "")
        keep = _held(text, self._dropped)
        self._pending = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _trimmed(self) -> str:
        text = self._pending
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        return text


def _held(text: str, markers: tuple[str, ...]) -> int:
    """Return the length of the longest end of `text` with which one of `markers` begins."""
    longest = max((len(marker) for marker in markers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0


async def split_thoughts(
    events: AsyncGenerator[GenerationEvent, None], reader: ThoughtReader
) -> AsyncGenerator[GenerationEvent, None]:
    """Hand `events` on, with what the model thinks moved from `text` to `thought`."""
    last: TokenText | None = None
    async with aclosing(events) as answer:
        async for event in answer:
            match event:
                case TokenText():
                    thought, text = reader.feed(event.text)
                    last = replace(event, text=text, thought=thought)
                    yield last
                case GenerationDone():
                    thought, text = reader.finish()
                    if last is not None and (thought or text):
                        yield replace(last, text=text, thought=thought)  # of the same token
                    yield event
                case _:
                    yield event
