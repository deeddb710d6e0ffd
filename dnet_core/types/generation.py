"""What a user asks of a loaded model, and what the ring tells back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

RECOMMENDABLE = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""The fields of `SamplingParams` that a model's authors recommend values for."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tail picks a token; the names and meanings of mlx-lm's samplers and processors.

    `presence_penalty` and `frequency_penalty` are OpenAI's: they count all tokens of the answer, and only
    these. With a number of context tokens they are mlx-lm's: they look at the last so many tokens, prompt
    included. `temperature` 0 is greedy. `seed` None lets the driver draw one. `logprobs` None sends none,
    n >= 0 sends the token's own and the n likeliest. `max_tokens` None means up to the context's end.
    `grammar` binds the answer: text that llguidance reads, as `dnet_core.grammar` makes it; None: it is free.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    min_tokens_to_keep: int = 1
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repetition_penalty: float = 1.0
    repetition_context_tokens: int = 20
    presence_penalty: float = 0.0
    presence_context_tokens: int | None = None
    frequency_penalty: float = 0.0
    frequency_context_tokens: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    grammar: str | None = None

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("xtc_probability", 0.0, 1.0),
            ("xtc_threshold", 0.0, 0.5),
            ("repetition_penalty", 1e-6, 100.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low:g} and {high:g}, not {value}")
        for name in (
            "min_tokens_to_keep",
            "repetition_context_tokens",
            "presence_context_tokens",
            "frequency_context_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, not {self.top_k}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.logprobs is not None and not 0 <= self.logprobs <= 20:
            raise ValueError(f"logprobs must be between 0 and 20, not {self.logprobs}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError(f"seed must fit 64 bits, not {self.seed}")
        if any(not s for s in self.stop):
            raise ValueError("a stop string must not be empty")

    @property
    def penalty_context_tokens(self) -> int:
        """How many of the last tokens the active penalties look at (0: none looks at the last ones)."""
        return max(
            self.repetition_context_tokens if self.repetition_penalty != 1.0 else 0,
            (self.presence_context_tokens or 0) if self.presence_penalty != 0.0 else 0,
            (self.frequency_context_tokens or 0) if self.frequency_penalty != 0.0 else 0,
        )

    @property
    def answer_penalties(self) -> tuple[float, float]:
        """What a token loses for being in the answer already, and again for every time that it is."""
        return (
            self.presence_penalty if self.presence_context_tokens is None else 0.0,
            self.frequency_penalty if self.frequency_context_tokens is None else 0.0,
        )


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A conversation to continue. `template_kwargs` go to the chat template (`enable_thinking`, ...)."""

    messages: tuple[Message, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    template_kwargs: tuple[tuple[str, object], ...] = ()


class FinishReason(StrEnum):
    STOP = "stop"  # an end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens or the end of the context
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class StageTime:
    """Where one lap spent its time on one shard, in seconds, by that shard's own clock.

    Reads are those of streamed layers that ended since the shard's last such report, whichever lap that was:
    they go on while other shards compute.
    """

    peer: str
    queue_s: float  # frame received -> compute started
    compute_s: float
    disk_wait_s: float  # part of the turn in which compute waited for a layer's bytes
    wire_s: float  # handing the frame on: encode, send and the peer's receive, measured on this shard
    read_bytes: int
    read_s: float  # that the disk needed for them


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: int
    logprob: float


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """The ring has read the prompt up to `done_tokens`; without `stages` it had done so before."""

    done_tokens: int
    total_tokens: int
    stages: tuple[StageTime, ...]


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token's worth of answer; `text` may be empty while a character or stop string is incomplete.

    `thought` is what it adds to what the model thinks before the answer, where that is split from the text.
    """

    text: str
    token: int
    position: int  # in the whole sequence, prompt included
    logprob: float | None
    top_logprobs: tuple[TokenLogprob, ...]
    stages: tuple[StageTime, ...]
    thought: str = ""


@dataclass(frozen=True, slots=True)
class Paused:
    """The answer waits after `completion_tokens`, because layers move: the device `peer` left, or is back.

    Then it goes on (`Resumed`) with the text it would have had, or it ends with an error. `reason` is a
    sentence that names the device; `is_back` says which of the two it is.
    """

    peer: str
    reason: str
    completion_tokens: int
    is_back: bool


@dataclass(frozen=True, slots=True)
class Resumed:
    """The answer goes on, on the devices `peers` (in ring order), `seconds` after it paused."""

    peers: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class GenerationDone:
    """The last word of every generation that did not fail."""

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    ttft_s: float | None  # None: stopped before the first token
    decode_tokens_per_s: float | None  # None: fewer than two tokens


GenerationEvent = PromptProgress | TokenText | Paused | Resumed | GenerationDone
