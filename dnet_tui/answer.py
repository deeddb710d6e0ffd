"""What has arrived of the answer that is being written, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from dnet_core.types.generation import (
    GenerationDone,
    GenerationEvent,
    Paused,
    PromptProgress,
    Resumed,
    TokenText,
)
from dnet_tui.chat import Answering, Failed, Finished, Phase, Reading, Recovering, Stopped, Turn


class LiveAnswer:
    """Hears the events of one answer and tells the turn as it stands. Owned by the worker that reads them."""

    def __init__(self, index: int, prompt: str, clock: Callable[[], float]) -> None:
        self.index = index  # of its turn
        self._prompt = prompt
        self._clock = clock
        self._started_s = clock()
        self._first_s: float | None = None
        self._text = ""
        self._num_tokens = 0
        self._phase: Phase = Reading(0, None)

    def hear(self, event: GenerationEvent) -> None:
        match event:
            case PromptProgress(done_tokens=done, total_tokens=total):
                self._phase = Reading(done, total)
            case TokenText(text=text):
                if self._first_s is None:
                    self._first_s = self._clock()
                self._text += text
                self._num_tokens += 1
                self._phase = self._answering(self._first_s)
            case Paused(lost=lost):
                self._phase = Recovering(lost, self._num_tokens)
            case Resumed():
                self._phase = Reading(0, None)
            case GenerationDone():
                self._phase = Finished(event)
            case _:
                assert_never(event)

    def stop(self) -> None:
        self._phase = Stopped(self._num_tokens)

    def fail(self, message: str) -> None:
        self._phase = Failed(message, self._num_tokens)

    @property
    def turn(self) -> Turn:
        return Turn(self._prompt, self._text, self._phase)

    @property
    def speeds(self) -> tuple[float | None, float | None]:
        """(time to first token in seconds, tokens per second), as far as they are known."""
        match self._phase:
            case Answering(ttft_s=ttft_s, tokens_per_s=rate):
                return ttft_s, rate
            case Finished(done=done):
                return done.ttft_s, done.decode_tokens_per_s
            case _ if self._first_s is not None:
                last = self._answering(self._first_s)
                return last.ttft_s, last.tokens_per_s
            case _:
                return None, None

    def _answering(self, first_s: float) -> Answering:
        decoding_s = self._clock() - first_s
        rate = (self._num_tokens - 1) / decoding_s if self._num_tokens > 1 and decoding_s > 0 else None
        return Answering(self._num_tokens, first_s - self._started_s, rate)
