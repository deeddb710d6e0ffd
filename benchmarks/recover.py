"""How long an answer pauses when a shard is killed: noticing, planning, loading, reading anew.

    uv run python -m benchmarks.recover [--model M] [--shards N] [--at TOKENS] [--repeats R]

Kills (SIGKILL) each place of a ring of local shards in turn, in mid-answer, and checks that the text is that
of an undisturbed answer. Then the survivors' load is compared with the same plan on empty shards.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.events import Event, Recovered, RingLost
from dnet_core.store.catalog import SAMPLE_ID
from dnet_core.types.generation import Resumed, SamplingParams, TokenText
from tests.ring.processes import local_process

PROMPT_TEXT = "Write a long story about a lighthouse keeper, a storm, and a ship full of books. "


@dataclass(frozen=True, slots=True)
class Pause:
    """Seconds from the kill to the next token, and its parts."""

    notice_s: float  # until the head knows
    solve_s: float
    load_s: float  # weights and streams
    read_s: float  # from the new ring on: prompt and answer so far, and one token
    total_s: float
    load_empty_s: float  # what the same plan takes on shards that hold nothing


@dataclass(slots=True)
class _Watch:
    lost_s: float = 0.0
    recovered: Recovered | None = None


@asynccontextmanager
async def watching(ring: Coordinator) -> AsyncIterator[_Watch]:
    """Notes when the ring is lost and what its recovery took."""
    watch = _Watch()

    async def listen(events: AsyncIterator[Event]) -> None:
        async for event in events:
            if isinstance(event, RingLost):
                watch.lost_s = time.monotonic()
            elif isinstance(event, Recovered):
                watch.recovered = event

    async with ring.subscribe() as events:
        listening = asyncio.ensure_future(listen(events))
        try:
            yield watch
        finally:
            listening.cancel()


async def answer(ring: Coordinator, prompt: tuple[int, ...], tokens: int) -> list[int]:
    sampling = SamplingParams(max_tokens=tokens)
    return [e.token async for e in ring.generate_from(prompt, sampling) if isinstance(e, TokenText)]


async def lose(model: str, shards: int, place: int, at: int, prompt_tokens: int) -> Pause:
    """One ring, one kill."""
    async with Coordinator(ClusterOptions(local_shards=shards)) as ring, watching(ring) as watch:
        loaded = await ring.load(model)
        words = ring.tokenizer.encode(PROMPT_TEXT * (1 + prompt_tokens // 8), add_special_tokens=True)
        prompt = words[:prompt_tokens]
        undisturbed = await answer(ring, prompt, at + 8)
        name = loaded.plan.assignments[place].peer
        found: list[int] = []
        killed_s = resumed_s = next_s = 0.0
        async for event in ring.generate_from(prompt, SamplingParams(max_tokens=at + 8)):
            if isinstance(event, TokenText):
                found.append(event.token)
                if resumed_s and not next_s:
                    next_s = time.monotonic()
                if len(found) == at:
                    local_process(ring, name).kill()
                    killed_s = time.monotonic()
            elif isinstance(event, Resumed):
                resumed_s = time.monotonic()
        assert found == undisturbed, "the answer is not the one that an undisturbed ring gives"
        recovered = watch.recovered
        assert recovered is not None
        assert next_s, "the answer had ended before the shard was missed: ask for more tokens"
        await ring.unload()
        begun_s = time.monotonic()
        await ring.load(model, recovered.plan)
        return Pause(
            notice_s=watch.lost_s - killed_s,
            solve_s=recovered.solve_s,
            load_s=recovered.load_s,
            read_s=next_s - resumed_s,
            total_s=next_s - killed_s,
            load_empty_s=time.monotonic() - begun_s,
        )


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=SAMPLE_ID)
    parser.add_argument("--shards", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--at", type=int, default=16, help="kill after so many tokens of answer")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    machine = f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}")
    print(
        f"{options.model} on {options.shards} local shards, {options.prompt} prompt tokens, a shard killed"
        f" after {options.at} tokens; median seconds of {options.repeats}"
    )
    names = [field.name for field in fields(Pause)]
    print(f"  {'killed':>6}  " + "  ".join(f"{name.removesuffix('_s'):>10}" for name in names))
    for place in range(options.shards):
        pauses = [
            await lose(options.model, options.shards, place, options.at, options.prompt)
            for _ in range(options.repeats)
        ]
        cells = [statistics.median(getattr(pause, name) for pause in pauses) for name in names]
        print(f"  {place:>6}  " + "  ".join(f"{cell:>10.3f}" for cell in cells))


if __name__ == "__main__":
    asyncio.run(main())
