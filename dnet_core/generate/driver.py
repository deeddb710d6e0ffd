"""The head's end of one ring: opens sessions on every shard, feeds prompts, hands on tokens.

The driver is not in the per-token loop: the tail sends each token straight to the first shard and tells the
driver beside it. What the driver does per token is text. A ring that ends has a successor, or the reason why
there is none; `recover.py` takes answers from one to the other.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from dnet_core.errors import (
    ContextTooLong,
    DeadlineExceeded,
    DnetError,
    NotReady,
    PeerLost,
    PeerReturned,
    ProtocolError,
    RequestError,
)
from dnet_core.events import Event, LapMeasured, SessionEnded, SessionStarted
from dnet_core.generate.admission import Admission
from dnet_core.generate.keeping import Keeper
from dnet_core.generate.prefixes import Beginning
from dnet_core.generate.session import (
    AnswerSession,
    PromptSession,
    embedding_chunks,
    prompt_chunks,
)
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.settings import TIMEOUTS
from dnet_core.tasks import TaskScope
from dnet_core.transport.control import Purpose, SessionOrder
from dnet_core.transport.failures import rebuild
from dnet_core.transport.frames import Cancel, DriverFrame, Embedded, Fault, Prompt, PromptRead, Sampled
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import DRIVER_PREFIX, RingLink, ring_link
from dnet_core.types.generation import (
    FinishReason,
    GenerationEvent,
    PromptProgress,
    SamplingParams,
)


@dataclass(frozen=True, slots=True)
class Pace:
    """A prompt goes out in chunks of `chunk_tokens`, of which `in_flight` are on the ring at once."""

    chunk_tokens: int
    in_flight: int


class Driver:
    """Drives one loaded ring. Made by `drive`.

    `successor` is the driver that goes on when this one's ring has ended, or the reason why there is none.
    """

    def __init__(
        self,
        shards: tuple[ShardClient, ...],
        tokenizer: Tokenizer,
        context_tokens: int,
        pace: Pace,
        emit: Callable[[Event], None],
        on_lost: OnLost,
    ) -> None:
        self.tokenizer = tokenizer
        self.context_tokens = context_tokens
        self.successor: asyncio.Future[Driver] = asyncio.get_running_loop().create_future()
        self._name = f"{DRIVER_PREFIX}{uuid.uuid4().hex}"
        self._shards = shards
        self._pace = pace
        self._emit = emit
        self._on_lost = on_lost
        self._keeper = Keeper(shards, pace.chunk_tokens)
        self._admission = Admission(self._name, shards, self._keeper)
        self._links: dict[str, RingLink] = {}
        self._closing = TaskScope()
        self._live: dict[str, AnswerSession | PromptSession] = {}
        self._gone: set[str] = set()
        self._end: DnetError | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Hold the ring streams to all shards open."""
        async with AsyncExitStack() as stack:
            for shard in self._shards:
                link = ring_link(
                    shard.channel,
                    shard.peer,
                    self._name,
                    TIMEOUTS.connect_s,
                    self._receive,
                    partial(self._lose, shard.peer),
                )
                self._links[shard.peer] = await stack.enter_async_context(link)
            await stack.enter_async_context(self._closing)
            try:
                yield
            finally:
                self.finish(NotReady("the ring is closed"))

    @property
    def peers(self) -> tuple[str, ...]:
        """The shards, in ring order."""
        return tuple(shard.peer for shard in self._shards)

    @property
    def end(self) -> DnetError | None:
        """Why this ring serves no more; None while it does."""
        return self._end

    def begin(
        self, tokens: tuple[int, ...], sampling: SamplingParams, shown: Collection[int] = ()
    ) -> AnswerSession:
        """A session that continues the prompt `tokens`, not run yet.

        `shown` are special tokens whose spelling belongs to the text. Raises ContextTooLong and RequestError.
        """
        return AnswerSession(tokens, self._order(tokens, sampling), self.tokenizer, shown)

    async def run(self, session: AnswerSession) -> AsyncGenerator[GenerationEvent, None]:
        """Read what `session` has so far and generate until it finishes; closing stops every shard.

        Raises RingErrors and what the shards raise. When `end` tells something then, it was not the session.
        """
        async with self._open(session), aclosing(self._drive(session)) as events:
            async for event in events:
                yield event

    def give_up(self, why: DnetError) -> None:
        """Serve no more, and nobody follows: sessions are told `why`."""
        if not self.successor.done():
            self.successor.set_exception(why)
            self.successor.exception()  # it need not be anybody's concern
        self.finish(why)

    def finish(self, why: DnetError) -> None:
        """Serve no more: sessions go to the successor, when there is one."""
        if self._end is not None:
            return
        self._end = why
        self._admission.end(why)
        for name, session in self._live.items():
            session.mailbox.put_nowait(Fault(name, "", type(why).__name__, str(why)))

    async def _drive(self, session: AnswerSession) -> AsyncGenerator[GenerationEvent, None]:
        name, tokens = session.order.session, session.tokens
        begin = begin_of(session.order)
        told = session.cached_tokens
        if session.num_tokens == 0:
            session.cached_tokens = begin
        if begin or told:
            yield PromptProgress(begin, len(tokens), ())
        waiting = prompt_chunks(name, tokens, self._pace.chunk_tokens, begin)[::-1]
        self._send_first(waiting)
        while session.finish is None:
            match await self._next_frame(session):
                case PromptRead() as read:
                    self._send_next(waiting)
                    if session.is_prompt(read.position):
                        self._emit(LapMeasured(session.name, read.position, read.stages))
                    yield PromptProgress(read.position, len(tokens), read.stages)
                case Sampled() as sampled:
                    if sampled.stages:  # else a grammar forced it: it came with the token before it
                        self._emit(LapMeasured(session.name, sampled.position, sampled.stages))
                    yield session.take(sampled)
                case Fault() as fault:
                    raise self._end or rebuild(fault.kind, fault.message, fault.peer)
                case Embedded():
                    raise ProtocolError(f"an embedding arrived for the answer {name}")

    async def embed(self, tokens: tuple[int, ...]) -> tuple[float, ...]:
        """The mean of the hidden states that the model has for `tokens` after its last norm.

        Raises ContextTooLong and RequestErrors before anything is computed, RingErrors later. Cancelling it
        stops every shard.
        """
        session = PromptSession(tokens, self._reading_order(tokens, Purpose.EMBED))
        finish: FinishReason | None = None
        self._emit(SessionStarted(session.order.session, len(tokens)))
        try:
            async with self._open(session):
                values = await self._read_embedding(session, tokens)
            finish = FinishReason.STOP
        except asyncio.CancelledError:
            finish = FinishReason.CANCELLED
            raise
        else:
            return values
        finally:
            self._emit(SessionEnded(session.order.session, finish, len(tokens), 0, 0))

    @asynccontextmanager
    async def _open(self, session: AnswerSession | PromptSession) -> AsyncIterator[None]:
        """`session` is open on every shard while the block runs, and closed on all of them after it.

        It begins with what is kept of others, and is kept itself unless something failed.
        """
        name, tokens = session.order.session, session.tokens
        begun: Beginning | None = None
        is_kept = False
        self._live[name] = session
        try:
            if self._end is not None:
                raise self._end
            begun = await self._admission.open(session.order, tokens)
            session.order = replace(session.order, reuse=begun.reuse if begun else None)
            is_kept = session.order.purpose is not Purpose.EMBED
            yield
        except DnetError as error:
            is_kept = False
            if isinstance(error, PeerLost):
                self._lose(error.peer, error)
            raise
        finally:
            del self._live[name]
            self._stop(name, is_kept)
            if self._end is None:
                # Not in this task, which may be cancelled once more: nobody else would close the session.
                closing = self._closing.start(self._close(session, len(tokens), begun, is_kept))
                await asyncio.wait([closing])

    async def _read_embedding(self, session: PromptSession, tokens: tuple[int, ...]) -> tuple[float, ...]:
        name = session.order.session
        waiting = embedding_chunks(name, tokens, self._pace.chunk_tokens)[::-1]
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
                    raise self._end or rebuild(fault.kind, fault.message, fault.peer)
                case Sampled():
                    raise ProtocolError(f"a token arrived for the embedding {name}")

    async def read(self, tokens: tuple[int, ...], seed: int | None) -> int:
        """Read the prompt `tokens` for several answers, which then read its last token only.

        Returns how many of its tokens had been read before. `seed` is that of the answers: with one, nothing
        is computed otherwise than alone. Raises what `embed` does.
        """
        session = PromptSession(tokens, self._reading_order(tokens, Purpose.READ, seed))
        finish: FinishReason | None = None
        self._emit(SessionStarted(session.order.session, len(tokens)))
        try:
            async with self._open(session):
                await self._read_prompt(session)
            finish = FinishReason.STOP
        except asyncio.CancelledError:
            finish = FinishReason.CANCELLED
            raise
        else:
            return begin_of(session.order)
        finally:
            # The answers tell the prompt's tokens: here they would be counted once more.
            self._emit(SessionEnded(session.order.session, finish, 0, 0, 0))

    async def _read_prompt(self, session: PromptSession) -> None:
        """Let the shards run all of it but its last token."""
        name, tokens, reached = session.order.session, session.tokens, begin_of(session.order)
        waiting = prompt_chunks(name, tokens, self._pace.chunk_tokens, reached)[:-1][::-1]
        self._send_first(waiting)
        while reached < len(tokens) - 1:
            match await self._next_frame(session):
                case PromptRead() as read:
                    reached = read.position
                    self._send_next(waiting)
                    self._emit(LapMeasured(name, read.position, read.stages))
                case Fault() as fault:
                    raise self._end or rebuild(fault.kind, fault.message, fault.peer)
                case Sampled() | Embedded():
                    raise ProtocolError(f"{name} is only to be read, and more arrived for it")

    def _send_first(self, waiting: list[Prompt]) -> None:
        """Begin with a prompt; the next chunk is the last of `waiting`."""
        for _ in range(self._pace.in_flight):
            self._send_next(waiting)

    def _send_next(self, waiting: list[Prompt]) -> None:
        if waiting:
            self._links[self._shards[0].peer].send(waiting.pop())

    async def _next_frame(self, session: AnswerSession | PromptSession) -> DriverFrame:
        try:
            async with asyncio.timeout(TIMEOUTS.lap_s):
                return await session.mailbox.get()
        except TimeoutError:
            raise DeadlineExceeded("the ring", "finish a lap", TIMEOUTS.lap_s) from None

    def _stop(self, name: str, is_kept: bool) -> None:
        """Stop every shard now, by a frame ahead of all others; a session that is kept is closed by a call.

        When the ring has ended its streams are closed, and with them goes all that they opened.
        """
        if is_kept and self._end is None:
            return
        for link in self._links.values():
            try:
                link.send(Cancel(name))
            except DnetError:  # a shard that is gone holds no session
                continue

    async def _close(
        self,
        session: AnswerSession | PromptSession,
        prompt_tokens: int,
        begun: Beginning | None,
        is_kept: bool,
    ) -> None:
        """Return when every shard has freed the KV, or kept it; then the next session may have the room."""
        order = session.order
        try:
            if is_kept:
                await self._keeper.close(order.session, session.tokens, prompt_tokens, begun)
            else:
                await self._admission.close(order.session)
        finally:
            self._admission.left(order.session)

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
            reuse=None,
        )

    def _reading_order(
        self, tokens: tuple[int, ...], purpose: Purpose, seed: int | None = None
    ) -> SessionOrder:
        if not tokens:
            raise RequestError("the text is empty: there is nothing to read")
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
            sampling=SamplingParams(seed=seed),
            seed=0,
            answered_tokens=(),
            purpose=purpose,
            reuse=None,
        )

    def _check_tokens(self, what: str, tokens: Iterable[int]) -> None:
        vocabulary = self.tokenizer.vocab_size
        strange = [token for token in tokens if not 0 <= token < vocabulary]
        if strange:
            raise RequestError(f"{what} names token {strange[0]}, but the model has {vocabulary} tokens")

    def _receive(self, frame: DriverFrame) -> None:
        if isinstance(frame, Fault) and frame.kind == PeerLost.__name__:
            # A hop between two shards is broken: it is the whole ring's, whichever session noticed it.
            self._lose(frame.peer, rebuild(frame.kind, frame.message, frame.peer))
            return
        session = self._live.get(frame.session)
        if session is not None:  # else closed while the frame was on its way
            session.mailbox.put_nowait(frame)

    def _lose(self, peer: str, error: DnetError) -> None:
        if self._end is not None and not isinstance(self._end, PeerLost | PeerReturned):
            return  # it was ended on purpose, and its shards may end, too
        if peer in self._gone:
            return
        self._gone.add(peer)
        lost = error if isinstance(error, PeerLost) else PeerLost(peer, str(error))
        self.finish(lost)
        self._on_lost(self, lost)


OnLost = Callable[[Driver, PeerLost], None]


@asynccontextmanager
async def drive(
    shards: tuple[ShardClient, ...],
    tokenizer: Tokenizer,
    context_tokens: int,
    pace: Pace,
    emit: Callable[[Event], None],
    on_lost: OnLost,
) -> AsyncIterator[Driver]:
    """Open the ring streams to `shards` (in ring order, loaded) and drive them until the block ends.

    `on_lost` hears of everybody who leaves the ring; the first one's leaving ends it.
    """
    driver = Driver(shards, tokenizer, context_tokens, pace, emit, on_lost)
    async with driver.connected():
        yield driver


def begin_of(order: SessionOrder) -> int:
    """Where the shards begin to read: they have all before it."""
    return 0 if order.reuse is None else order.reuse.num_tokens
