"""The head's end of the ring: opens sessions on every shard, feeds prompts, hands on tokens.

The driver is not in the per-token loop: the tail sends each token straight to the first shard and tells the
driver beside it. What the driver does per token is text.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

from dnet_core.errors import (
    ContextTooLong,
    DeadlineExceeded,
    DnetError,
    NotReady,
    ProtocolError,
    RequestError,
)
from dnet_core.events import Event, LapMeasured, SessionEnded, SessionStarted
from dnet_core.generate.session import (
    AnswerSession,
    EmbeddingSession,
    embedding_chunks,
    prompt_chunks,
)
from dnet_core.generate.thoughts import ThoughtReader, answer_markers, split_thoughts
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.settings import TIMEOUTS
from dnet_core.transport.control import Purpose, SessionOrder
from dnet_core.transport.failures import rebuild
from dnet_core.transport.frames import Cancel, DriverFrame, Embedded, Fault, Prompt, PromptRead, Sampled
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import DRIVER_PREFIX, RingLink, ring_link
from dnet_core.types.generation import (
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    PromptProgress,
    SamplingParams,
)

CHUNKS_IN_FLIGHT_PER_SHARD = 2
"""One being computed and one waiting on each shard keep the pipe full; more would only queue."""


class Driver:
    """Drives one loaded ring. Made by `drive`."""

    def __init__(
        self,
        shards: tuple[ShardClient, ...],
        tokenizer: Tokenizer,
        context_tokens: int,
        chunk_tokens: int,
        emit: Callable[[Event], None],
        on_lost: Callable[[DnetError], None],
    ) -> None:
        self.tokenizer = tokenizer
        self.context_tokens = context_tokens
        self._name = f"{DRIVER_PREFIX}{uuid.uuid4().hex}"
        self._shards = shards
        self._chunk_tokens = chunk_tokens
        self._emit = emit
        self._on_lost = on_lost
        self._links: dict[str, RingLink] = {}
        self._live: dict[str, AnswerSession | EmbeddingSession] = {}
        self._lost: DnetError | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Hold the ring streams to all shards open."""
        async with AsyncExitStack() as stack:
            for shard in self._shards:
                link = ring_link(
                    shard.channel, shard.peer, self._name, TIMEOUTS.connect_s, self._receive, self._lose
                )
                self._links[shard.peer] = await stack.enter_async_context(link)
            yield

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
        """Continue a conversation; what the model thinks first is told apart from its answer.

        The length of the prompt is told before anything is computed. See `generate_from`.
        """
        tokenizer = self.tokenizer
        markers = answer_markers(tokenizer)
        text = tokenizer.apply_chat_template(request.messages, **dict(request.template_kwargs))
        tokens = tokenizer.encode(text, add_special_tokens=not tokenizer.has_chat_template)
        is_open = markers.reasoning is not None and text.rstrip().endswith(markers.reasoning.start)
        yield PromptProgress(0, len(tokens), ())
        answer = self.generate_from(tokens, request.sampling, markers.shown)
        async with aclosing(split_thoughts(answer, ThoughtReader(markers, is_open=is_open))) as events:
            async for event in events:
                yield event

    async def generate_from(
        self, tokens: tuple[int, ...], sampling: SamplingParams, shown: Collection[int] = ()
    ) -> AsyncGenerator[GenerationEvent, None]:
        """Continue the prompt `tokens`; ends with GenerationDone. Closing the generator stops every shard.

        `shown` are special tokens whose spelling belongs to the text.
        Raises ContextTooLong and RequestError before anything is computed, RingErrors later.
        """
        session = AnswerSession(self._order(tokens, sampling), self.tokenizer, shown)
        name = session.order.session
        self._live[name] = session
        try:
            await everywhere(shard.open_session(self._name, session.order) for shard in self._shards)
            self._emit(SessionStarted(name, len(tokens)))
            async for event in self._drive(session, tokens):
                yield event
            yield session.done()
        finally:
            del self._live[name]
            self._emit(SessionEnded(name, session.finish, len(tokens), session.num_tokens))
            await self._close(name)

    async def unload(self) -> None:
        """End every session and free every shard; shards that are gone are free already."""
        self._lose(NotReady("the model was unloaded"))
        await asyncio.gather(*(shard.unload() for shard in self._shards), return_exceptions=True)

    async def _drive(
        self, session: AnswerSession, tokens: tuple[int, ...]
    ) -> AsyncGenerator[GenerationEvent, None]:
        name = session.order.session
        waiting = prompt_chunks(name, tokens, self._chunk_tokens)[::-1]
        self._send_first(waiting)
        while session.finish is None:
            match await self._next_frame(session):
                case PromptRead() as read:
                    self._send_next(waiting)
                    self._emit(LapMeasured(name, read.position, read.stages))
                    yield PromptProgress(read.position, len(tokens), read.stages)
                case Sampled() as sampled:
                    if sampled.stages:  # else a grammar forced it: it came with the token before it
                        self._emit(LapMeasured(name, sampled.position, sampled.stages))
                    yield session.take(sampled)
                case Fault() as fault:
                    raise self._lost or rebuild(fault.kind, fault.message, fault.peer)
                case Embedded():
                    raise ProtocolError(f"an embedding arrived for the answer {name}")

    async def embed(self, tokens: tuple[int, ...]) -> tuple[float, ...]:
        """The mean of the hidden states that the model has for `tokens` after its last norm.

        Raises ContextTooLong and RequestErrors before anything is computed, RingErrors later. Cancelling it
        stops every shard.
        """
        session = EmbeddingSession(self._embedding_order(tokens))
        name = session.order.session
        self._live[name] = session
        finish: FinishReason | None = None
        try:
            await everywhere(shard.open_session(self._name, session.order) for shard in self._shards)
            self._emit(SessionStarted(name, len(tokens)))
            values = await self._read_embedding(session, tokens)
            finish = FinishReason.STOP
            return values
        finally:
            del self._live[name]
            self._emit(SessionEnded(name, finish, len(tokens), 0))
            await self._close(name)

    async def _read_embedding(self, session: EmbeddingSession, tokens: tuple[int, ...]) -> tuple[float, ...]:
        name = session.order.session
        waiting = embedding_chunks(name, tokens, self._chunk_tokens)[::-1]
        self._send_first(waiting)
        while True:
            match await self._next_frame(session):
                case PromptRead() as read:
                    self._send_next(waiting)
                    self._emit(LapMeasured(name, read.position, read.stages))
                case Embedded() as embedded:
                    self._emit(LapMeasured(name, len(tokens), embedded.stages))
                    return embedded.values
                case Fault() as fault:
                    raise self._lost or rebuild(fault.kind, fault.message, fault.peer)
                case Sampled():
                    raise ProtocolError(f"a token arrived for the embedding {name}")

    def _send_first(self, waiting: list[Prompt]) -> None:
        """Begin with a prompt; the next chunk is the last of `waiting`."""
        for _ in range(CHUNKS_IN_FLIGHT_PER_SHARD * len(self._shards)):
            self._send_next(waiting)

    def _send_next(self, waiting: list[Prompt]) -> None:
        if waiting:
            self._links[self._shards[0].peer].send(waiting.pop())

    async def _next_frame(self, session: AnswerSession | EmbeddingSession) -> DriverFrame:
        if self._lost is not None:
            raise self._lost
        try:
            async with asyncio.timeout(TIMEOUTS.lap_s):
                return await session.mailbox.get()
        except TimeoutError:
            raise DeadlineExceeded("the ring", "finish a lap", TIMEOUTS.lap_s) from None

    async def _close(self, name: str) -> None:
        """Stop every shard now, by a frame ahead of all others, then wait until each has freed the KV."""
        for link in self._links.values():
            try:
                link.send(Cancel(name))
            except DnetError:  # a shard that is gone holds no session
                continue
        await asyncio.gather(*(s.close_session(name) for s in self._shards), return_exceptions=True)

    def _order(self, tokens: tuple[int, ...], sampling: SamplingParams) -> SessionOrder:
        if not tokens:
            raise RequestError("the prompt is empty: there is nothing to continue")
        room = self.context_tokens - len(tokens)
        if room < 1:
            raise ContextTooLong(len(tokens), self.context_tokens)
        self._check_tokens("the prompt", tokens)
        self._check_tokens("logit_bias", [token for token, _ in sampling.logit_bias])
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed % 2**64
        recent = tokens[-sampling.penalty_context_tokens :] if sampling.penalty_context_tokens else ()
        eos = self.tokenizer.eos_token_ids
        newline = self.tokenizer.encode("\n", add_special_tokens=False)
        return SessionOrder(
            session=uuid.uuid4().hex,
            prompt_tokens=len(tokens),
            max_tokens=min(sampling.max_tokens or room, room),
            stop_tokens=tuple(eos),
            recent_tokens=recent,
            xtc_special_tokens=(*newline, *eos),
            sampling=sampling,
            seed=seed,
            answered_tokens=(),
            purpose=Purpose.ANSWER,
        )

    def _embedding_order(self, tokens: tuple[int, ...]) -> SessionOrder:
        if not tokens:
            raise RequestError("the text is empty: there is nothing to embed")
        if len(tokens) > self.context_tokens:
            raise ContextTooLong(len(tokens), self.context_tokens)
        self._check_tokens("the text", tokens)
        return SessionOrder(
            session=uuid.uuid4().hex,
            prompt_tokens=len(tokens),
            max_tokens=1,  # none is sampled
            stop_tokens=(),
            recent_tokens=(),
            xtc_special_tokens=(),
            sampling=SamplingParams(),
            seed=0,
            answered_tokens=(),
            purpose=Purpose.EMBED,
        )

    def _check_tokens(self, what: str, tokens: Iterable[int]) -> None:
        vocabulary = self.tokenizer.vocab_size
        strange = [token for token in tokens if not 0 <= token < vocabulary]
        if strange:
            raise RequestError(f"{what} names token {strange[0]}, but the model has {vocabulary} tokens")

    def _receive(self, frame: DriverFrame) -> None:
        session = self._live.get(frame.session)
        if session is not None:  # else closed while the frame was on its way
            session.mailbox.put_nowait(frame)

    def _lose(self, error: DnetError) -> None:
        if self._lost is not None:
            return
        self._lost = error
        if not isinstance(error, NotReady):
            self._on_lost(error)
        for name, session in self._live.items():
            session.mailbox.put_nowait(Fault(name, "", type(error).__name__, str(error)))


@asynccontextmanager
async def drive(
    shards: tuple[ShardClient, ...],
    tokenizer: Tokenizer,
    context_tokens: int,
    chunk_tokens: int,
    emit: Callable[[Event], None],
    on_lost: Callable[[DnetError], None],
) -> AsyncIterator[Driver]:
    """Open the ring streams to `shards` (in ring order, loaded) and drive them until the block ends.

    `on_lost` hears the first reason why the ring cannot go on.
    """
    driver = Driver(shards, tokenizer, context_tokens, chunk_tokens, emit, on_lost)
    async with driver.connected():
        yield driver


async def everywhere(calls: Iterable[Awaitable[None]]) -> None:
    """Await all `calls` together and let each end; raises the first DnetError."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
