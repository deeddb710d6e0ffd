"""The answers to one request: `n` sessions of the ring, told as one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from dnet_core.coordinator import Coordinator
from dnet_core.errors import DnetError
from dnet_core.tasks import TaskScope
from dnet_core.types.generation import GenerationDone, PromptProgress, SamplingParams, TokenText

AnswerEvent = TokenText | GenerationDone
MERGED_EVENTS = 64
"""Events waiting to be written to the client; a slow client then slows only its own sessions."""


async def answers(
    coordinator: Coordinator, tokens: tuple[int, ...], samplings: Sequence[SamplingParams]
) -> AsyncGenerator[tuple[int, AnswerEvent], None]:
    """Continue `tokens` once per entry of `samplings`; yields events with the index of their answer.

    Closing the generator stops every session. Raises what the coordinator raises.
    """
    if len(samplings) == 1:
        async with aclosing(_answer(coordinator, tokens, samplings[0])) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, AnswerEvent | DnetError]] = asyncio.Queue(MERGED_EVENTS)

    async def run(index: int, sampling: SamplingParams) -> None:
        try:
            async with aclosing(_answer(coordinator, tokens, sampling)) as events:
                async for event in events:
                    await queue.put((index, event))
        except DnetError as error:
            await queue.put((index, error))

    async with TaskScope() as tasks:
        for index, sampling in enumerate(samplings):
            tasks.start(run(index, sampling))
        num_running = len(samplings)
        while num_running:
            index, told = await queue.get()
            if isinstance(told, DnetError):
                raise told
            num_running -= isinstance(told, GenerationDone)
            yield index, told


async def _answer(
    coordinator: Coordinator, tokens: tuple[int, ...], sampling: SamplingParams
) -> AsyncGenerator[AnswerEvent, None]:
    async with aclosing(coordinator.generate_from(tokens, sampling)) as events:
        async for event in events:
            if not isinstance(event, PromptProgress):
                yield event
