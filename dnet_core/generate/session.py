"""One answer as the head sees it: its mailbox, its text, its counts and times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from dnet_core.generate.detokenize import Detokenizer
from dnet_core.generate.stop import StopMatcher
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.transport.control import SessionOrder
from dnet_core.transport.frames import DriverFrame, Prompt, Sampled
from dnet_core.types.generation import FinishReason, GenerationDone, TokenText


class AnswerSession:
    """Owned by the task that iterates the answer; the links only put frames into `mailbox`."""

    def __init__(self, order: SessionOrder, tokenizer: Tokenizer, shown: Collection[int] = ()) -> None:
        """`shown` are special tokens whose spelling belongs to the text."""
        self.order = order
        self.begun_s = time.monotonic()
        # No bound of its own: the tail sends one frame per prompt chunk and at most `max_tokens` more.
        self.mailbox: asyncio.Queue[DriverFrame] = asyncio.Queue()
        self.finish: FinishReason | None = None
        self.num_tokens = 0
        self._detokenizer = Detokenizer(tokenizer, shown)
        self._stop = StopMatcher(order.sampling.stop) if order.sampling.stop else None
        self._first_s: float | None = None
        self._last_s = 0.0

    def take(self, frame: Sampled) -> TokenText:
        """Turn a sampled token into text; sets `finish` when the answer ends with it."""
        self._last_s = time.monotonic()
        if self._first_s is None:
            self._first_s = self._last_s
        self.num_tokens += 1
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
            cached_tokens=0,
            ttft_s=None if self._first_s is None else self._first_s - self.begun_s,
            decode_tokens_per_s=(self.num_tokens - 1) / decode_s if decode_s > 0 else None,
        )


class EmbeddingSession:
    """A prompt whose mean hidden state is asked for. Owned by the task that awaits it, as an answer is."""

    def __init__(self, order: SessionOrder) -> None:
        self.order = order
        self.mailbox: asyncio.Queue[DriverFrame] = asyncio.Queue()  # bounded as that of an answer is


def embedding_chunks(session: str, tokens: tuple[int, ...], chunk_tokens: int) -> list[Prompt]:
    """Cut a prompt that is only read: nothing is sampled after its last token, so that stays in its chunk."""
    return [
        Prompt(session, start, tokens[start : start + chunk_tokens], start + chunk_tokens >= len(tokens))
        for start in range(0, len(tokens), chunk_tokens)
    ]


def prompt_chunks(session: str, tokens: tuple[int, ...], chunk_tokens: int) -> list[Prompt]:
    """Cut a prompt as mlx-lm does: chunks of all but the last token, then that one, which is sampled after.

    The same shapes give the same kernels and so the same bits.
    """
    body, last = tokens[:-1], len(tokens) - 1
    chunks = [
        Prompt(session, start, body[start : start + chunk_tokens], False)
        for start in range(0, len(body), chunk_tokens)
    ]
    return [*chunks, Prompt(session, last, tokens[last:], True)]
