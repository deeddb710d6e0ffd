"""What a frame does on a shard: run its window, then hand on, report, or sample.

    Prompt, Tokens -> embed, window  --+
    Activation     -> window         --+--> more layers elsewhere: Activation to the next shard
                                       +--> last layer, more prompt to come: PromptRead to the driver
                                       +--> last layer: Tokens to the first shard, Sampled to the driver
                                       +--> last layer, only to embed: Embedded to the driver

There is one step for prefill and decode, for one round and many. When the first shard is also the tail (a
ring of one) the sampled token stays a lazy array and the next step is built before it is read, as mlx-lm
does; with streamed layers, whose weights come and go during a step, there is nothing to build ahead, nor
when a grammar must see the token first. What a grammar forces goes round with the token, as one chunk, or as
several when it is longer than the chunks of a prompt: the tail sends the next when the one before has passed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import mlx.core as mx

from dnet_core.errors import DnetError, ProtocolError, RequestError, RingError
from dnet_core.grammar.matcher import Matcher
from dnet_core.shard.loader import LayerStream, Reads, Spent, Stopped
from dnet_core.shard.memory import KvRoom
from dnet_core.shard.prefixes import Prefixes, make_prefix
from dnet_core.shard.sampler import Draw
from dnet_core.shard.sessions import Session, Taken
from dnet_core.slices.hidden import Arrays
from dnet_core.slices.kv import quantize_caches
from dnet_core.slices.tensors import to_array, to_tensor
from dnet_core.slices.window import End, WindowedModel
from dnet_core.transport.control import Arrival, KeptPrefix, Limits, LoadOrder, Purpose, SessionOrder
from dnet_core.transport.frames import (
    Activation,
    Cancel,
    DriverFrame,
    Embedded,
    Fault,
    Prompt,
    PromptRead,
    Sampled,
    Tokens,
)
from dnet_core.types.generation import StageTime, TokenLogprob
from dnet_core.types.ring import LayerWindow

log = logging.getLogger(__name__)

NextFrame = Activation | Tokens

CLEAR_EVERY = 256
"""Positions after which MLX gives back what it keeps free, as in mlx-lm: attention needs other sizes then."""

WARM_TOKENS = 2
"""A first pass, and with quantised KV a second one."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where a step's results go; both may be called from the compute thread."""

    to_next: Callable[[NextFrame], None]
    to_driver: Callable[[str, DriverFrame], None]
    again: Callable[[Callable[[], None]], None]  # queue more work behind what waits


@dataclass(frozen=True, slots=True)
class _Turn:
    """One frame's stay on this shard. Times are of the monotonic clock."""

    position: int
    num_tokens: int
    last: bool
    stages: tuple[StageTime, ...]
    begun_s: float
    queue_s: float
    wire_s: float


class Runtime:
    """The loaded windows of one model and the sessions on them. Every method runs on the compute thread."""

    def __init__(
        self,
        peer: str,
        order: LoadOrder,
        model: WindowedModel,
        outputs: Outputs,
        stream: LayerStream | None = None,
    ) -> None:
        """`stream` reads the streamed layers of `order`; None: all layers are in memory."""
        self._peer = peer
        self._stream = stream
        self._model = model
        self._outputs = outputs
        self._windows: dict[int, LayerWindow] = {window.start: window for window in order.windows}
        self._is_first = 0 in self._windows
        self._kv_bits = order.kv_bits
        self._chunk_tokens = order.limits.chunk_tokens
        self._sessions: dict[str, Session] = {}
        self._prefixes = Prefixes(peer)
        self._room: KvRoom | None = None
        self._running: Session | None = None
        if stream is not None:
            stream.watch(lambda: self._running is None or not self._running.cancelled)
        self.steps = 0

    @property
    def sessions(self) -> tuple[str, ...]:
        return tuple(self._sessions)

    def open(self, driver: str, order: SessionOrder, matcher: Matcher | None = None) -> None:
        """Begin a session; on the tail `matcher` is of its grammar.

        Sessions have room before prefixes. Raises NoRoom, RequestError, PrefixGone.
        """
        if order.session in self._sessions:
            raise ProtocolError(f"session {order.session} is already open on {self._peer}")
        if order.purpose is Purpose.EMBED:
            self._model.check_hidden()
        session = Session(driver, order, self._model.make_cache(), matcher)
        if order.reuse is not None:
            session.begin_with(self._prefixes.begin(order.reuse), order.reuse.num_tokens)
        self.room.take(order.session, order.prompt_tokens + order.max_tokens)
        self._prefixes.shrink_to(self.room.free_bytes)
        self._sessions[order.session] = session

    def cancel(self, name: str) -> None:
        """Let nothing more be computed for this session. Safe from any thread; `close` frees it."""
        session = self._sessions.get(name)
        if session is not None:
            session.cancelled = True

    def cancel_all(self, driver: str) -> None:
        """As `cancel`, for all sessions of `driver`; `close_all` frees them."""
        for session in list(self._sessions.values()):
            if session.driver == driver:
                session.cancelled = True

    def end(self) -> None:
        """Let nothing be computed that has to wait for a disk. Safe from any thread."""
        if self._stream is not None:
            self._stream.end()

    def close(self, name: str, keep_as: str | None = None) -> KeptPrefix | None:
        """Drop the session and its KV cache, or keep that as a prefix; unknown ones are closed already."""
        session = self._sessions.pop(name, None)
        if session is None:
            return None
        session.cancelled = True  # for a step that waits behind this one
        self.room.give_back(name)
        kept = None if keep_as is None else self._keep(keep_as, session)
        del session
        mx.clear_cache()
        return kept

    def drop(self, name: str) -> None:
        """Close without keeping anything."""
        self.close(name)

    def _keep(self, name: str, session: Session) -> KeptPrefix | None:
        """Keep what the session leaves behind, if there is room for it beside the others."""
        if session.is_torn or session.reached.keys() != set(self._windows.values()):
            return None
        slots = {window: self._model.slots(window) for window in session.reached}
        prefix = make_prefix(session.driver, session.cache, session.reached, slots)
        if prefix.kept is None:
            return None
        self._prefixes.add(name, prefix)
        self._prefixes.shrink_to(self.room.free_bytes)
        return prefix.kept if name in self._prefixes.names else None

    def close_all(self, driver: str) -> None:
        """Drop what `driver` has here, live and kept."""
        for name in [s.name for s in self._sessions.values() if s.driver == driver]:
            self.close(name)
        self._prefixes.drop_of(driver)
        mx.clear_cache()

    def drop_prefixes(self, names: Iterable[str]) -> None:
        self._prefixes.drop(names)
        mx.clear_cache()

    @property
    def prefixes(self) -> Prefixes:
        """What is kept of sessions that have ended."""
        return self._prefixes

    @property
    def read(self) -> Reads:
        """What was read of streamed layers since the model was loaded."""
        return self._stream.read if self._stream else Reads(0, 0.0)

    @property
    def room(self) -> KvRoom:
        """The KV memory of all sessions."""
        assert self._room is not None, "sessions come when the model is warm and its memory is known"
        return self._room

    def set_budget(self, budget_bytes: int, limits: Limits) -> None:
        """Count what is in memory, now that all windows are warm: the rest of the budget is for sessions."""
        mx.clear_cache()
        room = budget_bytes - mx.get_active_memory() - limits.workspace_bytes
        sizes = self._model.cache_sizes(self._kv_bits, limits.chunk_tokens)
        own = {slot for window in self._windows.values() for slot in self._model.slots(window)}
        self._room = KvRoom(self._peer, budget_bytes, room, tuple(sizes[slot] for slot in sorted(own)))

    def warm(self, window: LayerWindow) -> None:
        """Run a token through `window`: reads embedding, norm and head, and compiles kernels.

        With quantised KV a second token follows, which finds the caches quantised. Raises RequestError when
        the model cannot have them.
        """
        self._warm(window)
        self._spent()  # by no lap

    def _warm(self, window: LayerWindow) -> None:
        cache = self._model.make_cache()
        blank = (mx.zeros((1, 1), mx.int32),) if window.start == 0 else self._model.blank_input(window)
        mx.eval(self._run_window(window, blank, cache, 0))
        if self._kv_bits == 16:
            return
        quantize_caches(cache, self._model.slots(window), self._kv_bits, WARM_TOKENS)
        try:
            mx.eval(self._run_window(window, blank, cache, 1))
        except (ValueError, TypeError, AttributeError) as error:
            raise RequestError(
                f"this model cannot have a {self._kv_bits}-bit KV cache: load it with 16 bits"
            ) from error

    def _run_window(
        self, window: LayerWindow, value: Arrays, cache: list[Any], position: int, end: End = End.LOGITS
    ) -> Arrays:
        """Run `window` on what came out of the layer before it: for the first one, token ids."""
        if window.start == 0:
            value = self._model.embed_and_run(window, value[0], cache, position, end)
        else:
            value = self._model.run(window, value, cache, position, end)
        return value

    def handle(self, arrival: Arrival) -> None:
        """Do what `arrival` asks. A failure ends its session with a Fault, never the thread."""
        session = self._sessions.get(arrival.frame.session)
        if session is not None:  # else the driver that closed it expects nothing more
            self._run_for(session, lambda: self._step(session, arrival))

    def _run_for(self, session: Session, work: Callable[[], None]) -> None:
        """Do `work`, unless the session was cancelled while it waited."""
        if session.cancelled:
            return
        self._running = session
        try:
            work()
        except Stopped:
            pass  # cancelled while a layer ran: whoever did it closes it
        except Exception as error:  # noqa: BLE001 - the border: what a model's code raises is the driver's
            self._fault(session, error)
        finally:
            self._running = None

    def _step(self, session: Session, arrival: Arrival) -> None:
        frame = arrival.frame
        begun = time.monotonic()
        queued = begun - arrival.received_s
        match frame:
            case Prompt():
                self._model.check_tokens(frame.tokens)
                turn = _Turn(frame.position, len(frame.tokens), frame.last, (), begun, queued, arrival.wire_s)
                self._run(session, turn, (mx.array([frame.tokens]),), 0)
            case Tokens():
                self._model.check_tokens(frame.tokens)
                turn = _Turn(frame.position, len(frame.tokens), True, (), begun, queued, arrival.wire_s)
                self._run(session, turn, (mx.array([frame.tokens]),), 0)
            case Activation():
                turn = _Turn(
                    frame.position,
                    frame.num_tokens,
                    frame.last,
                    frame.stages,
                    begun,
                    queued,
                    arrival.wire_s,
                )
                self._run(session, turn, self._received(frame), frame.next_layer)
            case Cancel():
                raise AssertionError("the event loop acts on Cancel")

    def _received(self, frame: Activation) -> Arrays:
        """The arrays of `frame`, once they are known to fit the window that is to run on them."""
        window = self._windows.get(frame.next_layer)
        if window is None or window.start == 0:
            raise ProtocolError(
                f"{self._peer} was sent what layer {frame.next_layer} takes: it has no such window"
            )
        arrays = tuple(to_array(tensor) for tensor in frame.tensors)
        self._model.check_input(window, arrays, frame.num_tokens)
        return arrays

    def _run(self, session: Session, turn: _Turn, value: Arrays, layer: int) -> None:
        """Run every window that lies here from `layer` on, then pass on what comes out."""
        if layer not in self._windows:
            raise ProtocolError(f"{self._peer} was sent layer {layer}, which begins none of its windows")
        while (window := self._windows.get(layer)) is not None:
            session.advance(window, turn.position, turn.num_tokens)
            self.steps += 1
            slots = self._model.slots(window)
            session.make_room(window, slots, self._kv_bits)
            end = End.HIDDEN if session.order.purpose is Purpose.EMBED else End.LAST
            session.is_torn = True
            value = self._run_window(window, value, session.cache, turn.position, end)
            if self._kv_bits < 16:
                session.quantize(window, slots, self._kv_bits)
            session.is_torn = False
            layer = window.stop
        if turn.position % CLEAR_EVERY == 0:
            mx.clear_cache()
        if layer < self._model.num_layers:
            self._pass_on(session, turn, value, layer)
        elif session.order.purpose is Purpose.READ:
            self._report(session, turn)
        elif session.order.purpose is Purpose.EMBED:
            self._embed(session, turn, value[0])
        elif session.waiting:
            self._go_on(session, turn)
        elif turn.last:
            self._sample(session, turn, value[0])
        else:
            self._report(session, turn)

    def _pass_on(self, session: Session, turn: _Turn, value: Arrays, layer: int) -> None:
        mx.eval(value)
        tensors = tuple(to_tensor(array) for array in value)
        self._outputs.to_next(
            Activation(
                session.name,
                turn.position,
                turn.num_tokens,
                layer,
                turn.last,
                tensors,
                (*turn.stages, self._stage(session, turn)),
            )
        )

    def _report(self, session: Session, turn: _Turn) -> None:
        """The end of a prompt chunk: fill the caches; logits are never computed."""
        self._fill_caches(session)
        self._outputs.to_driver(
            session.driver,
            PromptRead(
                session.name, turn.position + turn.num_tokens, (*turn.stages, self._stage(session, turn))
            ),
        )

    def _fill_caches(self, session: Session) -> None:
        mx.eval([cache.state for cache in session.cache])
        mx.clear_cache()

    def _embed(self, session: Session, turn: _Turn, hidden: mx.array) -> None:
        """Take a chunk's hidden states into the mean; tell it after the last."""
        session.pool.add(hidden)
        if not turn.last:
            self._report(session, turn)
            return
        values = session.pool.mean()
        session.cancelled = True  # finished
        stages = (*turn.stages, self._stage(session, turn))
        self._outputs.to_driver(session.driver, Embedded(session.name, values, stages))

    def _sample(self, session: Session, turn: _Turn, logits: mx.array) -> None:
        position = turn.position + turn.num_tokens
        draw = session.sample(logits, position)
        draw.begin()
        if self._is_first and self._stream is None and not session.is_bound:
            follow = partial(self._continue, session, turn, draw, position)
            self._outputs.again(lambda: self._run_for(session, follow))
        else:
            self._tell(session, turn, draw, position)

    def _continue(self, session: Session, turn: _Turn, draw: Draw, position: int) -> None:
        """A ring of one: build the step after `draw` while MLX still computes it, then read it."""
        if not session.is_last(position):
            following = _Turn(position, 1, True, (), time.monotonic(), 0.0, 0.0)
            self._run(session, following, (draw.token[None],), 0)
        self._tell(session, turn, draw, position)

    def _tell(self, session: Session, turn: _Turn, draw: Draw, position: int) -> None:
        """Read the token, send it round and to the driver, with the tokens that must follow it."""
        taken = session.take(cast("int", draw.token.item()), position)
        if taken.finish is not None:
            session.cancelled = True  # never back to False: a cancel may have come meanwhile
        elif not self._is_first or self._stream is not None or session.is_bound:
            session.waiting = taken.tokens
            self._send_round(session, position)
        for frame in self._sampled(session, turn, draw, position, taken):
            self._outputs.to_driver(session.driver, frame)
        if taken.finish is None:
            session.prepare()

    def _go_on(self, session: Session, turn: _Turn) -> None:
        """A part of what a grammar forces has passed. Its time counts to the token that is picked next."""
        self._fill_caches(session)
        session.stages += (*turn.stages, self._stage(session, turn))
        self._send_round(session, turn.position + turn.num_tokens)

    def _send_round(self, session: Session, position: int) -> None:
        """Let the first shard run the next of the tokens that wait, from `position` on."""
        chunk = session.waiting[: self._chunk_tokens]
        session.waiting = session.waiting[self._chunk_tokens :]
        frame = Tokens(session.name, position, chunk)
        if self._is_first:
            following = Arrival(frame, time.monotonic(), 0.0)
            self._outputs.again(lambda: self.handle(following))
        else:
            self._outputs.to_next(frame)

    def _sampled(
        self, session: Session, turn: _Turn, draw: Draw, position: int, taken: Taken
    ) -> Iterator[Sampled]:
        """What the driver is told: one frame per token. A forced one had no choice and no lap."""
        logprob = None if draw.logprob is None else cast("float", draw.logprob.item())
        top, stages = draw.top_logprobs(), (*session.stages, *turn.stages, self._stage(session, turn))
        session.stages = ()
        last = position + len(taken.tokens) - 1
        for place, token in enumerate(taken.tokens, start=position):
            finish = taken.finish if place == last else None
            yield Sampled(session.name, place, token, finish, logprob, top, stages)
            logprob = None if logprob is None else 0.0
            top = (TokenLogprob(taken.tokens[place - position + 1], 0.0),) if top and place < last else ()
            stages = ()

    def _stage(self, session: Session, turn: _Turn) -> StageTime:
        """This shard's part of the lap. Steps of a ring of one overlap: time is counted to one of them."""
        now = time.monotonic()
        begun = max(turn.begun_s, session.counted_until_s)
        session.counted_until_s = now
        spent = self._spent()
        return StageTime(
            peer=self._peer,
            queue_s=max(0.0, turn.queue_s),
            compute_s=max(0.0, now - begun - spent.waited_s),
            disk_wait_s=spent.waited_s,
            wire_s=turn.wire_s,
            read_bytes=spent.reads.num_bytes,
            read_s=spent.reads.seconds,
        )

    def _spent(self) -> Spent:
        return self._stream.take_spent() if self._stream else Spent(0.0, Reads(0, 0.0))

    def _fault(self, session: Session, error: Exception) -> None:
        session.cancelled = True
        kind, text = type(error).__name__, str(error)
        if not isinstance(error, DnetError):  # a mistake, not a state: where it was made is told here only
            log.error("session %s", session.name, exc_info=error)
            kind, text = RingError.__name__, f"{self._peer} failed to compute: {error}"
        self._outputs.to_driver(session.driver, Fault(session.name, self._peer, kind, text))
        self.close(session.name)
