"""The ring against mlx-lm in one process, on the same model, in one run.

    uv run python -m benchmarks.ring [--model M] [--tokens N] [--repeats R]

Prints decode tokens/s, CPU seconds per token and time to first token for rings of one and two local shards,
as ratios to `mlx_lm.stream_generate` in a process of its own, taken in turn; then what one hop costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.store.catalog import SAMPLE_ID, resolve
from dnet_core.types.generation import GenerationDone, SamplingParams, TokenText
from tests.tiny_models import write_tiny_model

PROMPT_TEXT = "Write a long story about a lighthouse keeper, a storm, and a ship full of books. "

REFERENCE = """
import json, resource, sys, time
import mlx.core as mx
from mlx_lm.generate import stream_generate
from mlx_lm.utils import load_model, load_tokenizer

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

model, _ = load_model(__import__("pathlib").Path(sys.argv[1]))
tokenizer = load_tokenizer(__import__("pathlib").Path(sys.argv[1]))
for line in sys.stdin:
    job = json.loads(line)
    begun, times = time.perf_counter(), []
    tokenizer._eos_token_ids = set()
    for response in stream_generate(model, tokenizer, job["prompt"], max_tokens=job["tokens"],
                                    prefill_step_size=job["chunk"]):
        if not times:
            first_cpu = cpu()
        times.append(time.perf_counter())
    n = len(times) - 1
    print(json.dumps({"ttft_s": times[0] - begun, "tokens_per_s": n / (times[-1] - times[0]),
                      "cpu_s_per_token": (cpu() - first_cpu) / n}), flush=True)
"""


@dataclass(frozen=True, slots=True)
class Sample:
    ttft_s: float
    tokens_per_s: float
    cpu_s_per_token: float


class Reference:
    """`mlx_lm.stream_generate` in a process of its own, greedy, never stopping early."""

    def __init__(self, model: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", REFERENCE, str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, prompt: tuple[int, ...], tokens: int, chunk: int) -> Sample:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"prompt": list(prompt), "tokens": tokens, "chunk": chunk}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Sample(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def cpu_seconds() -> float:
    """CPU time of this process (the head) and its children (the shards) so far."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children()):
        if process is me or "dnet_core.shard.main" in process.cmdline():
            used = process.cpu_times()
            total += used.user + used.system
    return total


async def run_ring(ring: Coordinator, prompt: tuple[int, ...], tokens: int) -> tuple[Sample, list[TokenText]]:
    """One greedy answer of `tokens` tokens; end-of-sequence ids are biased away so that it never stops."""
    eos = tuple((token, -1e9) for token in ring.tokenizer.eos_token_ids)
    sampling = SamplingParams(max_tokens=tokens, logit_bias=eos)
    answer: list[TokenText] = []
    first_cpu = 0.0
    async for event in ring.generate_from(prompt, sampling):
        if isinstance(event, TokenText):
            if not answer:
                first_cpu = cpu_seconds()
            answer.append(event)
        elif isinstance(event, GenerationDone):
            assert event.ttft_s is not None
            assert event.decode_tokens_per_s is not None
            used = (cpu_seconds() - first_cpu) / (len(answer) - 1)
            return Sample(event.ttft_s, event.decode_tokens_per_s, used), answer
    raise AssertionError("an answer ends with GenerationDone")


def ratios(samples: list[Sample], references: list[Sample], field: str) -> str:
    pairs = [getattr(a, field) / getattr(b, field) for a, b in zip(samples, references, strict=True)]
    return f"{statistics.median(pairs):.3f} ({min(pairs):.3f}-{max(pairs):.3f})"


async def compare(model: str, directory: Path, tokens: int, repeats: int, prompt_tokens: int) -> None:
    tokenizer = Tokenizer.load(directory)
    words = tokenizer.encode(PROMPT_TEXT * (1 + prompt_tokens // 8), add_special_tokens=True)
    chunk = 32
    reference = Reference(directory)
    references: list[Sample] = []
    rings: dict[int, list[Sample]] = {1: [], 2: []}
    try:
        async with AsyncExitStack() as stack:
            running = {}
            for shards in rings:
                running[shards] = await stack.enter_async_context(
                    Coordinator(ClusterOptions(local_shards=shards))
                )
                await running[shards].load(model, chunk_tokens=chunk)
            for repeat in range(repeats + 1):
                prompt = (100 + repeat, *words[1:prompt_tokens])  # begins as none before: no KV is kept
                reference_sample = reference.run(prompt, tokens, chunk)
                for shards, ring in running.items():
                    sample, _ = await run_ring(ring, prompt, tokens)
                    if repeat:  # the first turn warms everything up
                        rings[shards].append(sample)
                if repeat:
                    references.append(reference_sample)
    finally:
        reference.close()
    base = statistics.median(r.tokens_per_s for r in references)
    print(f"{model}: {len(prompt)} prompt tokens in chunks of {chunk}, {tokens} tokens of answer,")
    print(f"  {repeats} repeats in turn, median (min-max) of the ratio to mlx-lm in the same turn")
    print(f"  mlx-lm alone: {base:.2f} tokens/s")
    print(f"  {'':>9}  {'tokens/s':>20}  {'CPU s per token':>20}  {'time to first token':>20}")
    for shards, samples in rings.items():
        cells = [ratios(samples, references, f) for f in ("tokens_per_s", "cpu_s_per_token", "ttft_s")]
        print(f"  {shards} shard{'s' if shards > 1 else ' '}  " + "  ".join(f"{cell:>20}" for cell in cells))


async def hop_cost(tokens: int, repeats: int) -> None:
    """What a lap over two shards takes beyond computing, halved: two hops, everything included."""
    with tempfile.TemporaryDirectory() as scratch:
        # Wide activations, thin layers: what is left is the hop.
        model = write_tiny_model(
            "llama",
            Path(scratch) / "hop",
            overrides={
                "num_hidden_layers": 2,
                "hidden_size": 2048,
                "intermediate_size": 64,
                "num_attention_heads": 1,
                "num_key_value_heads": 1,
                "head_dim": 64,
            },
        )
        async with Coordinator(ClusterOptions(local_shards=2)) as ring:
            await ring.load(str(model))
            hops, wires, queues = [], [], []
            for _ in range(repeats + 1):
                sample, answer = await run_ring(ring, (1, 2, 3), tokens)
                laps = [t.stages for t in answer[1:]]
                compute = sum(s.compute_s for lap in laps for s in lap) / len(laps)
                hops.append((1 / sample.tokens_per_s - compute) / 2)
                wires.append(statistics.median(s.wire_s for lap in laps for s in lap))
                queues.append(statistics.median(s.queue_s for lap in laps for s in lap))
    print("one hop of 8 KiB on loopback, everything that is not computing, halved per lap:")
    for name, values in (("mean lap", hops), ("wire, median", wires), ("queue, median", queues)):
        micros = sorted(1e6 * value for value in values[1:])
        print(f"  {name:>13}: {statistics.median(micros):4.0f} µs ({micros[0]:.0f}-{micros[-1]:.0f})")


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=SAMPLE_ID)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only-hop", action="store_true", help="skip the comparison with mlx-lm")
    options = parser.parse_args()
    machine = f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}")
    if not options.only_hop:
        directory = await resolve(options.model, lambda _done, _total: None)
        await compare(options.model, directory, options.tokens, options.repeats, options.prompt)
    await hop_cost(200, options.repeats)


if __name__ == "__main__":
    asyncio.run(main())
