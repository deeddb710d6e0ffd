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
from dnet_tui.chat import Answering, Failed, Finished, Phase, Reading, Recovering, Reply, Stopped, Thought
from dnet_tui.units import seconds_text


class LiveAnswer:
    """Hears the events of one answer and tells the reply as it stands. Owned by one worker."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started_s = self._reading_s = clock()  # the reading begins anew on another ring
        self._first_s: float | None = None
        self._text = ""
        self._thought = ""
        self._num_thought_tokens = 0
        self._thought_s = 0.0
        self._last_position = -1
        self._num_tokens = 0
        self._phase: Phase = Reading(0, None, None)
        self._notes: tuple[str, ...] = ()

    def hear(self, event: GenerationEvent) -> None:
        match event:
            case PromptProgress(done_tokens=done, total_tokens=total):
                self._phase = Reading(done, total, self._left_s(done, total))
            case TokenText():
                self._take(event)
            case Paused(peer=peer, is_back=is_back):
                self._phase = Recovering(peer, self._num_tokens, is_back)
            case Resumed(peers=peers, seconds=seconds):
                self._notes += (self._moved_text(peers, seconds),)
                self._reading_s = self._clock()
                self._phase = Reading(0, None, None)
            case GenerationDone():
                self._phase = Finished(event)
            case _:
                assert_never(event)

    def stop(self) -> None:
        self._phase = Stopped(self._num_tokens)

    def fail(self, message: str) -> None:
        self._phase = Failed(message, self._num_tokens)

    @property
    def reply(self) -> Reply:
        thought = None
        if self._num_thought_tokens:
            thought = Thought(self._thought, self._num_thought_tokens, self._thought_s)
        return Reply(self._text, self._phase, thought, self._notes)

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

    def _moved_text(self, peers: tuple[str, ...], seconds: float) -> str:
        """`air left after 84 tok; placed anew on studio, mini · 3.1 s later`."""
        assert isinstance(self._phase, Recovering), "an answer pauses before it goes on"
        where = ", ".join(peers)
        return f"{self._phase.why}; placed anew on {where} · went on after {seconds_text(seconds)}"

    def _take(self, event: TokenText) -> None:
        now_s = self._clock()
        if self._first_s is None:
            self._first_s = now_s
        is_new = event.position > self._last_position  # what is held back at the end comes with a token again
        self._num_tokens += is_new
        self._last_position = event.position
        if event.thought or (self._thought and not self._text and not event.text):
            self._num_thought_tokens += is_new
            self._thought_s = now_s - self._first_s
        self._thought += event.thought
        self._text += event.text
        self._phase = self._answering(self._first_s)

    def _left_s(self, done: int, total: int) -> float | None:
        """How long the rest of the prompt takes, if it is read as fast as the part before."""
        return (self._clock() - self._reading_s) * (total - done) / done if 0 < done < total else None

    def _answering(self, first_s: float) -> Answering:
        decoding_s = self._clock() - first_s
        rate = (self._num_tokens - 1) / decoding_s if self._num_tokens > 1 and decoding_s > 0 else None
        return Answering(self._num_tokens, first_s - self._started_s, rate)
