"""An answer from its first token to its last, over one ring after another.

    ring 1     prompt ............. t1 t2 t3    a shard is lost
    waiting                                     the survivors are given its layers
    ring 2     prompt t1 t2 t3 ................ t4 t5 ...

The head has every token of an answer, so nothing is lost with a shard but time: the next ring reads prompt
and answer so far as one prompt, and goes on. A token depends on what precedes it and on (seed, position), not
on the ring. Text, stop strings, counts and limits live here and see nothing of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing
from typing import TypeVar

from dnet_core.errors import DnetError, PeerLost, PeerReturned
from dnet_core.events import Event, SessionEnded, SessionStarted
from dnet_core.generate.driver import Driver
from dnet_core.generate.thoughts import ThoughtReader, answer_markers, split_thoughts
from dnet_core.types.generation import (
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    Paused,
    PromptProgress,
    Resumed,
    SamplingParams,
)

Value = TypeVar("Value")


async def answer(
    driver: Driver,
    tokens: tuple[int, ...],
    sampling: SamplingParams,
    shown: Collection[int],
    emit: Callable[[Event], None],
) -> AsyncGenerator[GenerationEvent, None]:
    """Continue the prompt `tokens`, from `driver`'s ring on; ends with GenerationDone.

    Closing the generator stops every shard. `shown` are special tokens whose spelling belongs to the text.
    Raises ContextTooLong and RequestError before anything is computed, later what a shard cannot do, and when
    a ring ends without a successor, why there is none.
    """
    session = driver.begin(tokens, sampling, shown)
    emit(SessionStarted(session.name, len(tokens)))
    end_if_unfinished: FinishReason | None = None  # None tells of a failure
    try:
        while session.finish is None:
            try:
                async with aclosing(driver.run(session)) as events:
                    async for event in events:
                        yield event
                continue
            except DnetError:
                if driver.end is None:
                    raise  # the session's own
            paused_s = time.monotonic()
            if isinstance(driver.end, PeerLost | PeerReturned):
                is_back = isinstance(driver.end, PeerReturned)
                yield Paused(driver.end.peer, str(driver.end), session.num_tokens, is_back)
            driver = await asyncio.shield(driver.successor)
            session.move()
            yield Resumed(driver.peers, time.monotonic() - paused_s)
        yield session.done()
    except (GeneratorExit, asyncio.CancelledError):
        end_if_unfinished = FinishReason.CANCELLED
        raise
    finally:
        counts = (len(tokens), session.num_tokens, session.cached_tokens)
        emit(SessionEnded(session.name, session.finish or end_if_unfinished, *counts))


async def converse(
    driver: Driver, request: GenerationRequest, emit: Callable[[Event], None]
) -> AsyncGenerator[GenerationEvent, None]:
    """Continue a conversation; what the model thinks first is told apart from its answer.

    The length of the prompt is told before anything is computed. See `answer`.
    """
    tokenizer = driver.tokenizer
    markers = answer_markers(tokenizer)
    text = tokenizer.apply_chat_template(request.messages, **dict(request.template_kwargs))
    tokens = tokenizer.encode(text, add_special_tokens=not tokenizer.has_chat_template)
    is_open = markers.reasoning is not None and text.rstrip().endswith(markers.reasoning.start)
    yield PromptProgress(0, len(tokens), ())
    events = answer(driver, tokens, request.sampling, markers.shown, emit)
    async with aclosing(split_thoughts(events, ThoughtReader(markers, is_open=is_open))) as split:
        async for event in split:
            yield event


async def embedding(driver: Driver, tokens: tuple[int, ...]) -> tuple[float, ...]:
    """The mean of the hidden states for `tokens` after the last norm, from whichever ring can tell.

    Raises what `answer` raises. Cancelling it stops every shard.
    """
    return await _from_any_ring(driver, lambda ring: ring.embed(tokens))


async def reading(driver: Driver, tokens: tuple[int, ...], seed: int | None) -> int:
    """Read a prompt for several answers, with whichever ring can; see `Driver.read`."""
    return await _from_any_ring(driver, lambda ring: ring.read(tokens, seed))


async def _from_any_ring(driver: Driver, ask: Callable[[Driver], Awaitable[Value]]) -> Value:
    while True:
        try:
            return await ask(driver)
        except DnetError:
            if driver.end is None:
                raise
        driver = await asyncio.shield(driver.successor)
