"""How one chat asks, as a form: the fields that a person sets, and the values that the ring is sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dnet_core.types.generation import RECOMMENDABLE, SamplingParams
from dnet_tui.chat import ChatSettings
from dnet_tui.preferences import Penalty, Share, Temperature

_PLAIN = SamplingParams()


class ChatForm(BaseModel):
    """The settings of one chat; the description of each is what the screen shows."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    system: str = Field(default="", description="System prompt; empty: the model's own.")
    thinking: Literal["as the model likes", "on", "off"] = Field(
        default="as the model likes", description="Think before answering, where the model can be told."
    )
    temperature: Temperature | None = Field(
        default=None,
        description="0 always takes the likeliest token; empty: as the model's authors recommend.",
    )
    top_p: Share | None = Field(
        default=None, description="The likeliest tokens up to this share of probability; 1: all."
    )
    top_k: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Only the k likeliest tokens; 0: all."
    )
    min_p: Share | None = Field(
        default=None, description="Only tokens with this share of the likeliest one's probability; 0: all."
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = Field(
        default=None, description="Above 1: what was said lately is less likely."
    )
    presence_penalty: Penalty = Field(
        default=0.0, description="Above 0: tokens that were used are less likely."
    )
    frequency_penalty: Penalty = Field(
        default=0.0, description="Above 0: the more so, the more often they were used."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = Field(
        default=None, description="The same answer every time; empty: another one every time."
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="The longest answer; empty: up to the end of the context."
    )

    def applied_to(self, settings: ChatSettings) -> ChatSettings:
        """`settings` with what this form says."""
        told = {name: getattr(self, name) for name in RECOMMENDABLE}
        left = frozenset(name for name, value in told.items() if value is None)
        sampling = replace(
            settings.sampling,
            **{name: getattr(_PLAIN, name) if name in left else value for name, value in told.items()},
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=self.seed,
            max_tokens=self.max_tokens,
        )
        thinks = {"on": True, "off": False}.get(self.thinking)
        return ChatSettings(sampling, self.system or None, thinks, left)


def form_of(settings: ChatSettings) -> ChatForm:
    """The form that says what `settings` are."""
    sampling = settings.sampling
    told = {n: getattr(sampling, n) for n in RECOMMENDABLE if n not in settings.left_to_model}
    return ChatForm(
        system=settings.system or "",
        thinking={None: "as the model likes", True: "on", False: "off"}[settings.thinks],  # type: ignore[arg-type]
        **told,
        presence_penalty=float(sampling.presence_penalty),
        frequency_penalty=float(sampling.frequency_penalty),
        seed=sampling.seed,
        max_tokens=sampling.max_tokens,
    )
