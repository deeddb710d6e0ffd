"""How a prompt comes to the ring: in chunks of how many tokens, how many of them at once, in what memory.

A chunk is what a cancel has to wait for, so by default it is what the slowest backend computes in a moment.
But every chunk reads the streamed layers again: a plan that streams gets larger ones, by its prediction:

    chunk    32    64   128   256   512        the chunk doubles as long as the typical request gets faster by
    reads    32 x  16 x   8 x   4 x   2 x      a hundredth: until the disks are no longer what a prompt waits
    wait     |<- disk ------->|<- compute      for, or what is computed no longer fits the budgets

The memory in which a larger chunk is computed is taken from the layers that stay. A cancel does not wait for
the chunk then: it is heard between two streamed layers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dnet_core.cluster import Cluster
from dnet_core.errors import InfeasiblePlan
from dnet_core.generate.driver import Pace
from dnet_core.transport.control import Limits
from dnet_core.types.devices import Peer
from dnet_core.types.plan import Solution, SolveRequest
from dnet_core.types.profiles import ModelProfile
from dnet_core.types.ring import RingPlan

CHUNK_TOKENS = {"cpu": 32, "metal": 512, "cuda": 512}
"""Prompt tokens per frame, by the slowest backend of the ring."""

MOST_CHUNK_TOKENS = 4096

CHUNKS_IN_FLIGHT_PER_SHARD = 2
"""One being computed and one waiting on each shard keep the pipe full; more would only queue."""

_WORTH = 0.99
"""A larger chunk is taken when it makes the typical request shorter than this part of it."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How prompts come to a ring, and what each of its shards may take."""

    pace: Pace
    limits: Mapping[str, Limits]


async def chunk_tokens_of(cluster: Cluster, peers: tuple[Peer, ...]) -> int:
    """What the slowest backend of `peers` computes in a moment."""
    statuses = await asyncio.gather(*(cluster.status(peer.name) for peer in peers))
    return min(CHUNK_TOKENS[status.backend] for status in statuses)


def pace_of(plan: RingPlan, chunk_tokens: int) -> Pace:
    """How many chunks may be under way on `plan`.

    One, where a shard streams in several rounds: the windows of one chunk would come between those of
    another, and layers that are read ahead for the one be dropped for the other.
    """
    streams = any(assignment.streamed for assignment in plan.assignments)
    several = CHUNKS_IN_FLIGHT_PER_SHARD * len(plan.assignments)
    return Pace(chunk_tokens, 1 if streams and plan.rounds > 1 else several)


def widen(
    request: SolveRequest, solution: Solution, num_resident: Mapping[str, int] | None = None
) -> Solution:
    """`solution` of `request` with the chunk that suits what it streams: the same windows, fewer layers kept.

    `num_resident` are numbers of layers that a person has fixed.
    """
    from dnet_core.solve.plan import plan_from_edit  # noqa: PLC0415 - SciPy takes a second to import

    best = solution
    chunk = solution.prediction.chunk_tokens
    windows = {assignment.peer: assignment.windows for assignment in solution.plan.assignments}
    while best.prediction.streamed_bytes_per_token and chunk < min(request.prompt_tokens, MOST_CHUNK_TOKENS):
        chunk *= 2
        try:
            wider = plan_from_edit(replace(request, chunk_tokens=chunk, pins=()), windows, num_resident)
        except InfeasiblePlan:
            break
        if wider.prediction.request_s > _WORTH * best.prediction.request_s:
            break
        best = wider
    return best


async def serving(
    cluster: Cluster,
    plan: RingPlan,
    model: ModelProfile | None,
    budgets: Mapping[str, int],
    chunk_tokens: int | None,
) -> Serving:
    """How the ring of `plan` is to work.

    Devices without one of `budgets` find it themselves; `chunk_tokens` None: by backend. `model` None:
    nothing is known of it, and nothing is set aside for computing.
    """
    from dnet_core.solve.problem import workspace_bytes  # noqa: PLC0415 - as above

    names = [assignment.peer for assignment in plan.assignments]
    backends = [status.backend for status in await asyncio.gather(*map(cluster.status, names))]
    chunk = chunk_tokens or min(CHUNK_TOKENS[backend] for backend in backends)
    limits = {}
    for name, backend in zip(names, backends, strict=True):
        space = 0
        if model is not None:
            space = workspace_bytes(model, chunk, plan.context_tokens, plan.kv_bits, backend)
        limits[name] = Limits(budgets.get(name), space, chunk)
    return Serving(pace_of(plan, chunk), limits)
