"""The conversation as frozen values: what was asked, what came back, and how each turn stands.

Queued -> Reading -> Answering -> Finished | Stopped | Failed
               ^---- Recovering ----'
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dnet_core.types.generation import (
    RECOMMENDABLE,
    GenerationDone,
    GenerationRequest,
    Message,
    Role,
    SamplingParams,
)


@dataclass(frozen=True, slots=True)
class Queued:
    """Waits for the model, or for the answer before it."""

    why: str


@dataclass(frozen=True, slots=True)
class Reading:
    """The ring reads the prompt; what it has not told yet is None."""

    done_tokens: int
    total_tokens: int | None
    left_s: float | None


@dataclass(frozen=True, slots=True)
class Answering:
    num_tokens: int
    ttft_s: float
    tokens_per_s: float | None  # None: fewer than two tokens


@dataclass(frozen=True, slots=True)
class Recovering:
    """Device `peer` left during the answer, or `is_back`; layers move and the prompt is read again."""

    peer: str
    num_tokens: int
    is_back: bool = False

    @property
    def why(self) -> str:
        """`air left after 84 tok`, `air takes part again after 84 tok`."""
        did = "takes part again" if self.is_back else "left"
        return f"{self.peer} {did} after {self.num_tokens} tok"


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
class Thought:
    """What the model thought before its answer; `seconds` run until the answer begins."""

    text: str
    num_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer so far; `thought` is None for a model that does not think.

    `notes` are sentences on what happened to the ring meanwhile; they stay.
    """

    text: str
    phase: Phase
    thought: Thought | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_over(self) -> bool:
        return isinstance(self.phase, Finished | Stopped | Failed)


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answers: more than one after `again`; number `shown` is the one that counts."""

    prompt: str
    replies: tuple[Reply, ...]
    shown: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.shown < len(self.replies), "a turn shows one of its replies"

    @property
    def reply(self) -> Reply:
        return self.replies[self.shown]

    @property
    def answer(self) -> str:
        return self.reply.text

    @property
    def phase(self) -> Phase:
        return self.reply.phase

    def with_reply(self, reply: Reply) -> Turn:
        """The turn with the reply that is shown replaced."""
        replies = (*self.replies[: self.shown], reply, *self.replies[self.shown + 1 :])
        return replace(self, replies=replies)

    def with_phase(self, phase: Phase) -> Turn:
        return self.with_reply(replace(self.reply, phase=phase))

    def again(self, phase: Phase) -> Turn:
        """The turn with room for one more reply; those that say anything are kept."""
        kept = tuple(reply for reply in self.replies if reply.text)
        return Turn(self.prompt, (*kept, Reply("", phase)), len(kept))


def asked(prompt: str, phase: Phase) -> Turn:
    """A turn that nothing has answered yet."""
    return Turn(prompt, (Reply("", phase),))


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How this chat asks: the system prompt (None: the model's own), the sampling, and whether to think.

    Of `sampling` the fields in `left_to_model` are as the model's authors recommend. `thinks` None leaves
    that to the model, too.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    system: str | None = None
    thinks: bool | None = None
    left_to_model: frozenset[str] = frozenset()

    def sampling_for(self, recommended: SamplingParams) -> SamplingParams:
        """How to ask a model whose authors recommend `recommended`."""
        return replace(
            self.sampling, **{name: getattr(recommended, name) for name in sorted(self.left_to_model)}
        )

    def with_set(self, **wishes: float | int | None) -> ChatSettings:
        """These settings with what is not None of `wishes` in the sampling; raises ValueError."""
        told = {name: value for name, value in wishes.items() if value is not None}
        sampling = replace(self.sampling, **told)  # type: ignore[arg-type]  # the names are its own
        return replace(self, sampling=sampling, left_to_model=self.left_to_model - told.keys())


AS_THE_MODEL_LIKES = ChatSettings(left_to_model=frozenset(RECOMMENDABLE))


@dataclass(frozen=True, slots=True)
class ChatOverrides:
    """What the command line says of new chats; None: it says nothing. Raises ValueError out of range."""

    system: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        self.over(ChatSettings())

    def over(self, settings: ChatSettings) -> ChatSettings:
        """`settings` with what is said here."""
        told = settings.with_set(
            temperature=self.temperature, top_p=self.top_p, seed=self.seed, max_tokens=self.max_tokens
        )
        return replace(told, system=self.system or settings.system)


def request_for(
    turns: tuple[Turn, ...],
    settings: ChatSettings,
    recommended: SamplingParams,
    thinking_switches: tuple[str, ...] = (),
) -> GenerationRequest:
    """Ask for the answer to the last of `turns`; earlier turns without an answer are left out.

    Left out, because a question followed by a question breaks most chat templates. What a model thought is
    not told to it again. `recommended` is the sampling that the model's authors recommend,
    `thinking_switches` are the variables with which its template is told to think.
    """
    *earlier, last = turns
    messages = [Message(Role.SYSTEM, settings.system)] if settings.system else []
    for turn in earlier:
        if turn.answer:
            messages += [Message(Role.USER, turn.prompt), Message(Role.ASSISTANT, turn.answer)]
    messages.append(Message(Role.USER, last.prompt))
    switches = () if settings.thinks is None else tuple((name, settings.thinks) for name in thinking_switches)
    sampling = settings.sampling_for(recommended)
    return GenerationRequest(messages=tuple(messages), sampling=sampling, template_kwargs=switches)
