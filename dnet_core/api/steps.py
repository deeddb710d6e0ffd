"""An answer as the replies see it: steps, and what they have used."""

from __future__ import annotations

from dataclasses import dataclass

from dnet_core.api.logprobs import TokenEntry
from dnet_core.api.output import Part


@dataclass(frozen=True, slots=True)
class Step:
    """What one token adds to answer number `index`; `finish` comes once, with its last step."""

    index: int
    parts: tuple[Part, ...]
    logprobs: tuple[TokenEntry, ...]
    finish: str | None


@dataclass(slots=True)
class Usage:
    """What a request has used so far: prompts are known before, the rest is counted by `answers`."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
