"""The answers to one request: sessions of the ring, told as one stream of steps that any reply is made of."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from dnet_core.api.errors import SERVER, ApiError
from dnet_core.api.formats import AnswerFormat
from dnet_core.api.harmony import HarmonyParser
from dnet_core.api.logprobs import HeldLogprobs
from dnet_core.api.openai import Sampled
from dnet_core.api.output import CallWriter, Content, OutputParser, Part
from dnet_core.api.prompts import Prompt
from dnet_core.api.service import Service
from dnet_core.api.steps import Step, Usage
from dnet_core.errors import DnetError
from dnet_core.generate.stop import StopMatcher
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.tasks import TaskScope
from dnet_core.types.generation import (
    FinishReason,
    GenerationDone,
    PromptProgress,
    SamplingParams,
    TokenText,
)

MERGED_STEPS = 64
"""Steps waiting to be written to the client; a slow client then slows only its own sessions."""
MAX_SEED = 2**63


@dataclass(frozen=True, slots=True)
class Question:
    """One session to run. Without a `form` all text is content as it is."""

    tokens: tuple[int, ...]
    sampling: SamplingParams
    form: AnswerFormat | None = None
    tools: tuple[dict[str, object], ...] = ()
    in_reasoning: bool = False
    one_call_only: bool = False


def questions(
    prompt: Prompt,
    body: Sampled,
    max_tokens: int | None,
    logprobs: int | None,
    *,
    grammar: str | None,
    one_call_only: bool,
) -> list[Question]:
    """The sessions of a chat: one per choice. `grammar` binds each of them."""
    return [
        Question(prompt.tokens, sampling, prompt.form, prompt.tools, prompt.in_reasoning, one_call_only)
        for sampling in sampling_params(body, max_tokens, logprobs, grammar)
    ]


def sampling_params(
    body: Sampled, max_tokens: int | None, logprobs: int | None, grammar: str | None
) -> list[SamplingParams]:
    """One entry per choice; each has its own seed, the first the one that was asked for."""
    base = SamplingParams(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        xtc_probability=body.xtc_probability,
        xtc_threshold=body.xtc_threshold,
        repetition_penalty=body.repetition_penalty,
        repetition_context_tokens=body.repetition_context_size,
        presence_penalty=body.presence_penalty,
        presence_context_tokens=body.presence_context_size,
        frequency_penalty=body.frequency_penalty,
        frequency_context_tokens=body.frequency_context_size,
        logit_bias=tuple(body.logit_bias.items()),
        logprobs=logprobs,
        max_tokens=max_tokens,
        stop=body.stop,
        grammar=grammar,
    )
    if body.seed is None:
        return [base] * body.n  # each is given one when it begins
    return [replace(base, seed=(body.seed + index) % MAX_SEED) for index in range(body.n)]


async def answers(
    service: Service, client: str, asked: Sequence[Question], usage: Usage
) -> AsyncGenerator[Step, None]:
    """Run all of `asked`, each in its turn, and count into `usage`. Closing the generator stops them.

    Raises what the coordinator raises, and ApiError 503 when the ring was stopped.
    """
    if len(asked) == 1:
        async with aclosing(_answer(service, client, 0, asked[0], usage)) as steps:
            async for step in steps:
                yield step
        return
    shared = await _read_shared(service, client, asked, usage)
    queue: asyncio.Queue[Step | DnetError | ApiError] = asyncio.Queue(MERGED_STEPS)

    async def run(index: int, question: Question) -> None:
        try:
            answer = _answer(service, client, index, question, usage, is_shared=question.tokens in shared)
            async with aclosing(answer) as steps:
                async for step in steps:
                    await queue.put(step)
        except (DnetError, ApiError) as error:
            await queue.put(error)

    async with TaskScope() as tasks:
        for index, question in enumerate(asked):
            tasks.start(run(index, question))
        num_running = len(asked)
        while num_running:
            told = await queue.get()
            if not isinstance(told, Step):
                raise told
            num_running -= told.finish is not None
            yield told


async def _read_shared(
    service: Service, client: str, asked: Sequence[Question], usage: Usage
) -> set[tuple[int, ...]]:
    """Read once each prompt that several of `asked` continue; returns these prompts."""
    counts = Counter(question.tokens for question in asked)
    shared = {question.tokens: question for question in asked if counts[question.tokens] > 1}
    for tokens, question in shared.items():
        async with service.turns.turn(client, id(usage)):
            usage.cached_tokens += await service.coordinator.read(tokens, question.sampling.seed)
    return set(shared)


async def _answer(
    service: Service, client: str, index: int, question: Question, usage: Usage, *, is_shared: bool = False
) -> AsyncGenerator[Step, None]:
    """With `is_shared` the prompt has been read, and what of it was known has been counted."""
    coordinator = service.coordinator
    reader = _Reader(index, question, coordinator.tokenizer, usage, is_shared)
    sampling = replace(question.sampling, stop=()) if reader.stop else question.sampling
    async with (
        service.turns.turn(client, id(usage)),
        aclosing(coordinator.generate_from(question.tokens, sampling, reader.shown)) as events,
    ):
        async for event in events:
            match event:
                case TokenText():
                    step = reader.take(event)
                    yield step
                    if step.finish is not None:
                        return
                case GenerationDone():
                    yield reader.finish(event)
                case PromptProgress():
                    reader.begin(event)


@dataclass(slots=True)
class _Reader:
    """Turns the events of one session into steps. Owned by the task that iterates it."""

    index: int
    question: Question
    tokenizer: Tokenizer
    usage: Usage
    is_shared: bool
    calls: CallWriter = field(init=False)
    parser: OutputParser | HarmonyParser | None = field(init=False)
    held: HeldLogprobs | None = field(init=False)
    stop: StopMatcher | None = field(init=False)
    cached_tokens: int = 0
    has_token: bool = False

    def __post_init__(self) -> None:
        question = self.question
        self.calls = CallWriter(question.tools, one_only=question.one_call_only)
        self.parser = None
        if question.form is not None and question.form.is_harmony:
            self.parser = HarmonyParser(self.calls)
        elif question.form is not None:
            self.parser = OutputParser(question.form, self.calls, in_reasoning=question.in_reasoning)
        # Stop strings are for the answer, not for what a model thinks before it: there the driver, which sees
        # one text, does not look for them.
        reasons = question.form is not None and (question.form.reasoning or question.form.is_harmony)
        stops = question.sampling.stop
        self.stop = StopMatcher(stops) if reasons and stops else None
        wants = question.sampling.logprobs is not None
        self.held = HeldLogprobs(self.tokenizer, self.shown) if wants else None

    @property
    def shown(self) -> frozenset[int]:
        return self.question.form.shown if self.question.form else frozenset()

    def begin(self, event: PromptProgress) -> None:
        """Count what of the prompt had been read before, on the ring that gives the first token."""
        if event.stages or self.has_token or self.is_shared:
            return
        self.usage.cached_tokens += event.done_tokens - self.cached_tokens
        self.cached_tokens = event.done_tokens

    def take(self, event: TokenText) -> Step:
        self.has_token = True
        was_reasoning = self.parser is not None and self.parser.in_reasoning
        if self.parser is not None:
            parts = tuple(self.parser.feed(event.text))
        else:
            parts = (Content(event.text),) if event.text else ()
        self.usage.completion_tokens += 1
        self.usage.reasoning_tokens += was_reasoning or (self.parser is not None and self.parser.in_reasoning)
        entries = tuple(self.held.add(event)) if self.held else ()
        if self.stop is not None:
            parts, stopped = _until_stop(parts, self.stop)
            if stopped:
                return Step(self.index, parts, (), str(FinishReason.STOP))
        return Step(self.index, parts, entries, None)

    def finish(self, done: GenerationDone) -> Step:
        if done.finish_reason is FinishReason.CANCELLED:
            raise ApiError(503, "the answer was stopped", kind=SERVER, code="cancelled")
        parts = tuple(self.parser.finish()) if self.parser else ()
        if self.stop is not None:
            parts, stopped = _until_stop(parts, self.stop)
            rest = "" if stopped else self.stop.flush()
            parts = (*parts, Content(rest)) if rest else parts
        reason = str(done.finish_reason)
        if self.calls.num_calls and done.finish_reason is FinishReason.STOP:
            reason = "tool_calls"
        return Step(self.index, parts, (), reason)


def _until_stop(parts: tuple[Part, ...], stop: StopMatcher) -> tuple[tuple[Part, ...], bool]:
    """Hold content back while it may be a stop string; returns what is safe, and whether one is complete."""
    told: list[Part] = []
    for part in parts:
        if not isinstance(part, Content):
            rest = stop.flush()
            told += [Content(rest), part] if rest else [part]
            continue
        text, found = stop.feed(part.text)
        if text:
            told.append(Content(text))
        if found is not None:
            return tuple(told), True
    return tuple(told), False
