"""What tests of a ring share: a real ring of real processes, and mlx-lm in one process to compare with."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from dnet_core.coordinator import Coordinator
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.transport.control import ShardStatus
from dnet_core.types.devices import Peer
from dnet_core.types.generation import SamplingParams, TokenText
from dnet_core.types.ring import Assignment, LayerWindow, RingPlan


def reference_tokens(model: Path, prompt: Sequence[int], count: int, chunk_tokens: int) -> list[int]:
    """Greedy tokens of mlx-lm's own loop in this process, up to and with the first end of sequence."""
    loaded, _ = load_model(model)
    eos = Tokenizer.load(model).eos_token_ids
    tokens: list[int] = []
    for token, _ in generate_step(
        mx.array(list(prompt)), loaded, max_tokens=count, prefill_step_size=chunk_tokens
    ):
        tokens.append(int(token))
        if token in eos:
            break
    return tokens


@cache
def sample_tokens(model: Path, prompt: tuple[int, ...], count: int, chunk_tokens: int) -> list[int]:
    """As `reference_tokens`, of the sample model: it takes seconds, and is asked the same for every split."""
    return reference_tokens(model, prompt, count, chunk_tokens)


def ring_plan(
    model: Path | str,
    peers: Sequence[Peer],
    boundaries: Sequence[int],
    rounds: int = 1,
    streamed: Collection[int] = (),
    num_buffers: int = 0,
) -> RingPlan:
    """A plan with windows that end at `boundaries`, dealt round the peers `rounds` times.

    The layers `streamed` are read from disk, each peer's into `num_buffers` buffers, or as many as it needs.
    """
    names = [peer.name for peer in peers]
    assert len(boundaries) <= len(names) * rounds
    windows: dict[str, list[LayerWindow]] = {name: [] for name in names}
    for slot, (start, stop) in enumerate(pairwise((0, *boundaries))):
        windows[names[slot % len(names)]].append(LayerWindow(start, stop))
    assignments = []
    for name, found in windows.items():
        own = tuple(layer for window in found for layer in window.layers if layer in streamed)
        if found:
            assignments.append(Assignment(name, tuple(found), own, min(num_buffers, len(own))))
    return RingPlan(
        model=str(model),
        num_layers=boundaries[-1],
        rounds=max(len(a.windows) for a in assignments),
        context_tokens=512,
        kv_bits=16,
        assignments=tuple(assignments),
    )


async def ring_tokens(
    coordinator: Coordinator, prompt: Sequence[int], sampling: SamplingParams
) -> list[TokenText]:
    """The tokens that the ring answers to `prompt`."""
    return [
        event
        async for event in coordinator.generate_from(tuple(prompt), sampling)
        if isinstance(event, TokenText)
    ]


async def statuses(coordinator: Coordinator) -> tuple[ShardStatus, ...]:
    """What every shard says of itself now."""
    return await coordinator.statuses()


async def until_idle(coordinator: Coordinator) -> tuple[ShardStatus, ...]:
    """Wait until no shard has a session (at most the test's own timeout)."""
    while True:
        found = await coordinator.statuses()
        if not any(status.sessions for status in found):
            return found
        await asyncio.sleep(0.01)
