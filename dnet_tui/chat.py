"""The conversation as frozen values: what was asked, what came back, and how each turn stands.

Queued -> Reading -> Answering -> Finished | Stopped | Failed
               ^---- Recovering ----'
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dnet_core.types.generation import GenerationDone, GenerationRequest, Message, Role, SamplingParams


@dataclass(frozen=True, slots=True)
class Queued:
    """Waits for the model, or for the answer before it."""

    why: str


@dataclass(frozen=True, slots=True)
class Reading:
    """The ring reads the prompt; `total_tokens` is None until it has told how long the prompt is."""

    done_tokens: int
    total_tokens: int | None


@dataclass(frozen=True, slots=True)
class Answering:
    num_tokens: int
    ttft_s: float
    tokens_per_s: float | None  # None: fewer than two tokens


@dataclass(frozen=True, slots=True)
class Recovering:
    """Device `lost` left during the answer; the others take over its layers and read the prompt again."""

    lost: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    done: GenerationDone


@dataclass(frozen=True, slots=True)
class Stopped:
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    message: str
    num_tokens: int


Phase = Queued | Reading | Answering | Recovering | Finished | Stopped | Failed


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer so far."""

    prompt: str
    answer: str
    phase: Phase

    @property
    def is_live(self) -> bool:
        return isinstance(self.phase, Reading | Answering | Recovering)

    @property
    def is_over(self) -> bool:
        return isinstance(self.phase, Finished | Stopped | Failed)


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How this chat asks: the system prompt (None: the model's own) and the sampling."""

    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.7, top_p=0.95))
    system: str | None = None


def request_for(turns: tuple[Turn, ...], settings: ChatSettings) -> GenerationRequest:
    """Ask for the answer to the last of `turns`; earlier turns without an answer are left out.

    Left out, because a question followed by a question breaks most chat templates.
    """
    *earlier, last = turns
    messages = [Message(Role.SYSTEM, settings.system)] if settings.system else []
    for turn in earlier:
        if turn.answer:
            messages += [Message(Role.USER, turn.prompt), Message(Role.ASSISTANT, turn.answer)]
    messages.append(Message(Role.USER, last.prompt))
    return GenerationRequest(messages=tuple(messages), sampling=settings.sampling)
