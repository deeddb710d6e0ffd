"""One answer as the head sees it: its mailbox, its tokens and text, its counts and times."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Collection
from dataclasses import replace

from dnet_core.generate.detokenize import Detokenizer
from dnet_core.generate.stop import StopMatcher
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.transport.control import SessionOrder
from dnet_core.transport.frames import DriverFrame, Prompt, Sampled
from dnet_core.types.generation import FinishReason, GenerationDone, TokenText


class AnswerSession:
    """Owned by the task that iterates the answer; the links only put frames into `mailbox`.

    An answer may outlive its ring: `move` makes it ready for another one, whose shards know nothing of it.
    """

    def __init__(
        self, prompt: tuple[int, ...], order: SessionOrder, tokenizer: Tokenizer, shown: Collection[int] = ()
    ) -> None:
        """`shown` are special tokens whose spelling belongs to the text."""
        self.name = order.session  # what listeners call it, on whichever ring it runs
        self.order = order
        self.begun_s = time.monotonic()
        # No bound of its own: the tail sends one frame per prompt chunk and at most `max_tokens` more.
        self.mailbox: asyncio.Queue[DriverFrame] = asyncio.Queue()
        self.finish: FinishReason | None = None
        self.cached_tokens = 0  # of the prompt, which the first ring need not have read
        self._prompt = prompt
        self._answered: list[int] = []
        self._detokenizer = Detokenizer(tokenizer, shown)
        self._stop = StopMatcher(order.sampling.stop) if order.sampling.stop else None
        self._first_s: float | None = None
        self._last_s = 0.0

    @property
    def num_tokens(self) -> int:
        """How many tokens the answer has so far."""
        return len(self._answered)

    @property
    def tokens(self) -> tuple[int, ...]:
        """All that a ring has to read before it can go on: the prompt, and the answer so far."""
        return (*self._prompt, *self._answered)

    def is_prompt(self, position: int) -> bool:
        """Whether `position` lies in the prompt, not in what has been answered."""
        return position < len(self._prompt)

    def move(self) -> None:
        """Make ready for another ring.

        It gets a name of its own there, so that a frame that is still on its way from the ring before can
        never be taken for one of this.
        """
        self.mailbox = asyncio.Queue()
        context = self.order.sampling.penalty_context_tokens
        self.order = replace(
            self.order,
            session=uuid.uuid4().hex,
            recent_tokens=self.tokens[-context:] if context else (),
            answered_tokens=tuple(self._answered),
        )

    def take(self, frame: Sampled) -> TokenText:
        """Turn a sampled token into text; sets `finish` when the answer ends with it."""
        self._last_s = time.monotonic()
        if self._first_s is None:
            self._first_s = self._last_s
        self._answered.append(frame.token)
        piece = "" if frame.token in self.order.stop_tokens else self._detokenizer.add(frame.token)
        if frame.finish is not None:
            piece += self._detokenizer.flush()
        text, matched = self._stop.feed(piece) if self._stop else (piece, None)
        if matched is not None:
            self.finish = FinishReason.STOP
        elif frame.finish is not None:
            self.finish = frame.finish
            text += self._stop.flush() if self._stop else ""
        return TokenText(text, frame.token, frame.position, frame.logprob, frame.top_logprobs, frame.stages)

    def done(self) -> GenerationDone:
        """The last event of the answer; cancelled unless it has finished."""
        decode_s = self._last_s - self._first_s if self._first_s is not None else 0.0
        return GenerationDone(
            finish_reason=self.finish or FinishReason.CANCELLED,
            prompt_tokens=self.order.prompt_tokens,
            completion_tokens=self.num_tokens,
            cached_tokens=self.cached_tokens,
            ttft_s=None if self._first_s is None else self._first_s - self.begun_s,
            decode_tokens_per_s=(self.num_tokens - 1) / decode_s if decode_s > 0 else None,
        )


class PromptSession:
    """A prompt that is only read, to embed it or to keep it. Owned by the task that awaits it."""

    def __init__(self, tokens: tuple[int, ...], order: SessionOrder) -> None:
        self.tokens = tokens
        self.order = order
        self.mailbox: asyncio.Queue[DriverFrame] = asyncio.Queue()  # bounded as that of an answer is


def embedding_chunks(session: str, tokens: tuple[int, ...], chunk_tokens: int) -> list[Prompt]:
    """Cut a prompt that is only read: nothing is sampled after its last token, so that stays in its chunk."""
    return [
        Prompt(session, start, tokens[start : start + chunk_tokens], start + chunk_tokens >= len(tokens))
        for start in range(0, len(tokens), chunk_tokens)
    ]


def prompt_chunks(session: str, tokens: tuple[int, ...], chunk_tokens: int, begin: int = 0) -> list[Prompt]:
    """Cut a prompt as mlx-lm does: chunks of all but the last token, then that one, which is sampled after.

    The same shapes give the same kernels and so the same bits. The shards have `[0, begin)` already.
    """
    body, last = tokens[:-1], len(tokens) - 1
    chunks = [
        Prompt(session, start, body[start : start + chunk_tokens], False)
        for start in range(begin, len(body), chunk_tokens)
    ]
    return [*chunks, Prompt(session, last, tokens[last:], True)]
