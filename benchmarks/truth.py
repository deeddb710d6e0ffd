"""What a plan predicts against what the ring then does, on this machine, with shards of its own.

    uv run python -m benchmarks.truth [--tokens N] [--prompt N] [--repeats R] [--only sample|large]

For the sample model and a larger one with random weights, over one and two local shards, with all layers
resident and with half of them read from disk for every token: ms per token and time to first token, predicted
from profiles measured a moment before, measured (median of the repeats), and their ratio. The goal is a ratio
between 0.8 and 1.2; the spread of the repeats says how quiet the machine was meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.ring import Sample, run_ring
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.errors import DnetError
from dnet_core.planning import Prepared, Wishes
from dnet_core.settings import paths
from dnet_core.solve.plan import plan_from_edit
from dnet_core.store.catalog import SAMPLE_ID
from dnet_core.types.plan import Prediction
from tests.tiny_models import write_large_random_model

CONTEXT_TOKENS = 512
GOAL = (0.8, 1.2)
ROW = "{:<8}{:>7}  {:<10}{:>11}{:>11}{:>8}{:>16}{:>11}{:>11}{:>8}"


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the ring, and how often."""

    prompt_tokens: int
    answer_tokens: int
    repeats: int


async def prepared(ring: Coordinator, model: str, streaming: bool) -> Prepared:
    """A plan over all shards; with `streaming` half of each shard's layers are read for every token."""
    shutil.rmtree(paths().cache / "profiles", ignore_errors=True)  # other programs make a profile stale
    wishes = Wishes(context_tokens=CONTEXT_TOKENS)
    found = await ring.prepare(model, wishes)
    if not streaming:
        return found
    plan = found.solution.plan
    windows = {a.peer: a.windows for a in plan.assignments}
    resident = {a.peer: len(a.layers) - len(a.layers) // 2 for a in plan.assignments}
    return await ring.prepare_by_hand(model, windows, resident, wishes)


def predict(found: Prepared, load: Load) -> Prediction:
    """What the plan should do with just this load."""
    request = replace(
        found.request,
        prompt_tokens=load.prompt_tokens,
        answer_tokens=load.answer_tokens,
        allow_streaming=True,
    )
    plan = found.solution.plan
    windows = {a.peer: a.windows for a in plan.assignments}
    resident = {a.peer: len(a.resident) for a in plan.assignments}
    return plan_from_edit(request, windows, resident).prediction


async def measure(ring: Coordinator, load: Load) -> list[Sample]:
    """One answer per repeat, after one that warms up; no two prompts begin alike, or the KV would be kept."""
    samples = []
    for first in range(10, 11 + load.repeats):
        prompt = tuple(range(first, first + load.prompt_tokens))
        samples.append((await run_ring(ring, prompt, load.answer_tokens))[0])
    return samples[1:]


async def compare(name: str, model: str, shards: int, streaming: bool, load: Load) -> float:
    """Print one row; returns measured / predicted ms per token."""
    async with Coordinator(ClusterOptions(local_shards=shards)) as ring:
        found = await prepared(ring, model, streaming)
        prediction = predict(found, load)
        loaded = await ring.load(model, found.solution.plan, found.request.chunk_tokens)
        samples = await measure(ring, load)
    assert loaded.plan == found.solution.plan, "what was predicted is what ran"
    tokens_ms = sorted(1e3 / sample.tokens_per_s for sample in samples)
    token_ms, ttft_s = statistics.median(tokens_ms), statistics.median(s.ttft_s for s in samples)
    ratio = token_ms / (1e3 * prediction.tpot_s)
    print(
        ROW.format(
            name,
            shards,
            "streaming" if streaming else "resident",
            f"{1e3 * prediction.tpot_s:.1f}",
            f"{token_ms:.1f}",
            f"{ratio:.2f}",
            f"{tokens_ms[0]:.1f}-{tokens_ms[-1]:.1f}",
            f"{prediction.ttft_s:.2f}",
            f"{ttft_s:.2f}",
            f"{ttft_s / prediction.ttft_s:.2f}",
        ),
        flush=True,
    )
    return ratio


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=24, help="tokens of each answer (default: 24)")
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens (default: 32)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["sample", "large"], help="one of the two models")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the larger model (default: 1024)")
    parser.add_argument("--layers", type=int, default=12, help="its layers (default: 12)")
    options = parser.parse_args()
    load = Load(options.prompt, options.tokens, options.repeats)
    print(f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(
        f"prompt of {load.prompt_tokens}, answer of {load.answer_tokens} tokens, {load.repeats} repeats;"
        f" large: {options.layers} layers, hidden size {options.hidden}, float32"
    )
    print(
        ROW.format("", "", "", "ms/token", "", "", "", "first, s", "", "").rstrip(),
        ROW.format(
            "model",
            "shards",
            "layers",
            "predicted",
            "measured",
            "ratio",
            "min-max",
            "predicted",
            "measured",
            "ratio",
        ),
        sep="\n",
    )
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["DNET_HOME"] = scratch  # profiles of its own, measured now
        directory = Path(scratch) / "large"
        models = {"sample": SAMPLE_ID, "large": str(directory)}
        if options.only != "sample":
            write_large_random_model(directory, layers=options.layers, hidden=options.hidden)
        for name in (options.only,) if options.only else models:
            for streaming in (False, True):
                for shards in (1, 2):
                    try:
                        ratios.append(await compare(name, models[name], shards, streaming, load))
                    except DnetError as error:
                        print(f"{name} {shards} {'streaming' if streaming else 'resident'}: {error}")
    good = sum(GOAL[0] <= ratio <= GOAL[1] for ratio in ratios)
    print(f"{good} of {len(ratios)} within {GOAL[0]} to {GOAL[1]}")


if __name__ == "__main__":
    asyncio.run(main())
