"""What the endpoint adds to an answer: HTTP on loopback against the driver called directly, in one run.

    uv run python -m benchmarks.api [--model M] [--shards N] [--tokens N] [--repeats R]

Both ask the same ring the same chat, greedy, in turn. The client is a bare socket that reads server-sent
events, so what is measured is the endpoint and not a client library. Target: less than 5 ms more to the first
token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dnet_core.api.app import Endpoint, endpoint
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.types.generation import GenerationRequest, Message, Role, SamplingParams, TokenText
from tests.tiny_models import write_tiny_model

QUESTION = "Tell me about lighthouses, storms and books. " * 4


@dataclass(frozen=True, slots=True)
class Timing:
    first_s: float  # request to first token
    next_s: float  # mean between tokens after that


async def direct(ring: Coordinator, bias: dict[str, float], tokens: int) -> Timing:
    """Ask the driver."""
    sampling = SamplingParams(
        max_tokens=tokens, logit_bias=tuple((int(token), value) for token, value in bias.items())
    )
    request = GenerationRequest((Message(Role.USER, QUESTION),), sampling)
    begun = time.perf_counter()
    times = [time.perf_counter() async for event in ring.generate(request) if isinstance(event, TokenText)]
    return _timing(begun, times)


async def over_http(served: Endpoint, bias: dict[str, float], tokens: int) -> Timing:
    """Ask the endpoint, streamed; a chunk with a choice that has content counts as a token."""
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": tokens,
        "logit_bias": bias,
        "stream": True,
        "logprobs": False,
    }
    payload = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    begun = time.perf_counter()
    writer.write(head.encode() + payload)
    times: list[float] = []
    while (line := (await reader.readline()).strip()) != b"data: [DONE]":
        if line.startswith(b'data: {"id"') and b'"content":"' in line and b'"role"' not in line:
            times.append(time.perf_counter())
    writer.close()
    await writer.wait_closed()
    return _timing(begun, times)


def _timing(begun: float, times: list[float]) -> Timing:
    return Timing(times[0] - begun, (times[-1] - times[0]) / max(1, len(times) - 1))


def spread(values: list[float], unit: str = "ms", scale: float = 1e3) -> str:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return (
        f"{statistics.median(ordered) * scale:8.2f} {unit}  (80 % in {low * scale:.2f} to {high * scale:.2f})"
    )


async def compare(model: str, shards: int, tokens: int, repeats: int) -> None:
    async with (
        Coordinator(ClusterOptions(local_shards=shards)) as ring,
        endpoint(ring, "127.0.0.1", 0) as served,
    ):
        await ring.load(model)
        bias = {str(token): -100.0 for token in ring.tokenizer.eos_token_ids}
        directly: list[Timing] = []
        by_http: list[Timing] = []
        for repeat in range(repeats + 2):
            pair = (await direct(ring, bias, tokens), await over_http(served, bias, tokens))
            if repeat >= 2:  # the first turns warm everything up
                directly.append(pair[0])
                by_http.append(pair[1])
    print(f"{Path(model).name}, {shards} shards, {tokens} tokens, {repeats} turns; {machine()}\n")
    print(f"first token, driver      {spread([t.first_s for t in directly])}")
    print(f"first token, endpoint    {spread([t.first_s for t in by_http])}")
    added = [b.first_s - a.first_s for a, b in zip(directly, by_http, strict=True)]
    print(f"added to first token     {spread(added)}")
    print(f"between tokens, driver   {spread([t.next_s for t in directly])}")
    print(f"between tokens, endpoint {spread([t.next_s for t in by_http])}")


def machine() -> str:
    return f"{platform.machine()}, {psutil.cpu_count()} CPUs, load {psutil.getloadavg()[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.api", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="id or path (default: a tiny random llama)")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(write_tiny_model("llama", Path(folder) / "tiny-llama"))
        asyncio.run(compare(model, options.shards, options.tokens, options.repeats))


if __name__ == "__main__":
    main()
