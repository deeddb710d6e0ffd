"""The frames of the ring: two closed unions, one per direction. A frame has no optional facts.

driver --Prompt--> first shard --Activation--> ... --Activation--> tail
                        ^-------------Tokens--------------------------+
driver <--PromptRead, Sampled, Embedded (tail), Fault (any shard)
driver --Cancel--> every shard
"""

from __future__ import annotations

from dataclasses import dataclass

from dnet_core.types.generation import FinishReason, StageTime, TokenLogprob


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array's bytes, row-major, in its own dtype (`"bfloat16"`, `"float32"`, ...); never converted."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of the prompt at `[position, position + len(tokens))`; `last`: sample after this chunk."""

    session: str
    position: int
    tokens: tuple[int, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class Activation:
    """What the layers below `next_layer` made of `[position, position + num_tokens)`.

    `tensors` is usually one array `[batch, tokens, hidden]`; architectures that hand a tuple from layer to
    layer send all of it. `stages` are the turns of this lap so far.
    """

    session: str
    position: int
    num_tokens: int
    next_layer: int
    last: bool
    tensors: tuple[Tensor, ...]
    stages: tuple[StageTime, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The token sampled for `position` and those that a grammar forces after it, from tail to first shard.

    No more than a prompt's chunk has; what is forced beyond it follows when this has passed.
    """

    session: str
    position: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cancel:
    session: str


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token sampled for `position`, told to the driver, with where its lap spent its time.

    A token that a grammar forces comes right behind the one before it: it had no lap, and has no `stages`.
    """

    session: str
    position: int
    token: int
    finish: FinishReason | None
    logprob: float | None
    top_logprobs: tuple[TokenLogprob, ...]
    stages: tuple[StageTime, ...]


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The KV caches of the whole ring hold the prompt up to `position`."""

    session: str
    position: int
    stages: tuple[StageTime, ...]


@dataclass(frozen=True, slots=True)
class Embedded:
    """The mean of the prompt's hidden states, as float32 values, and how the last chunk's lap went."""

    session: str
    values: tuple[float, ...]
    stages: tuple[StageTime, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """`session` cannot go on. `kind` is the class name of the error in `dnet_core.errors`."""

    session: str
    peer: str
    kind: str
    message: str


RingFrame = Prompt | Activation | Tokens | Cancel
DriverFrame = Sampled | PromptRead | Embedded | Fault
