"""What the endpoint adds to an answer, and what a grammar takes off it: each pair measured in one run.

    uv run python -m benchmarks.api [--model M] [--shards N] [--tokens N] [--repeats R]

HTTP on loopback against the driver called directly: both ask the same ring the same chat, greedy, in turns of
four (driver, HTTP, HTTP, driver), so that a drift of the machine falls on both. What the two calls of the
driver differ by in a turn is told, too: that is what the machine does by itself. The client is a bare socket
that reads server-sent events, so what is measured is the endpoint and not a client library. Target: less than
5 ms more to the first token.

Bound against free: answers to the same chat, bound to a JSON schema of six properties and free, as long as
the bound one. Tokens that the grammar forces go round the ring together: there are fewer laps than tokens.
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
from dnet_core.grammar.build import GrammarWriter, json_schema
from dnet_core.types.generation import GenerationRequest, Message, Role, SamplingParams, TokenText
from tests.tiny_models import write_tiny_model

QUESTION = "Tell me about lighthouses, storms and books. " * 4


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "height_in_meters": {"type": "integer", "minimum": 1, "maximum": 200},
        "construction_material": {"enum": ["granite", "brick", "concrete", "cast iron"]},
        "is_inhabited": {"type": "boolean"},
        "nearest_harbour": {"type": ["string", "null"], "maxLength": 20},
        "visible_colours": {"type": "array", "items": {"enum": ["red", "white", "green"]}, "maxItems": 3},
    },
    "additionalProperties": False,
}
SCHEMA["required"] = list(SCHEMA["properties"])


@dataclass(frozen=True, slots=True)
class Decoding:
    """One answer from its first token on."""

    num_tokens: int
    num_laps: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return (self.num_tokens - 1) / self.seconds


@dataclass(frozen=True, slots=True)
class Timing:
    first_s: float  # request to first token
    next_s: float  # mean between tokens after that


@dataclass(frozen=True, slots=True)
class Turn:
    """Two calls of the driver, and between them two over HTTP."""

    directly: tuple[Timing, Timing]
    by_http: tuple[Timing, Timing]

    @property
    def added_s(self) -> float:
        """What HTTP adds to the first token."""
        return sum(timing.first_s for timing in self.by_http) / 2 - sum(t.first_s for t in self.directly) / 2

    @property
    def drift_s(self) -> float:
        """How much later the first token of the second call of the driver came than that of the first."""
        return self.directly[1].first_s - self.directly[0].first_s


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


async def decode(ring: Coordinator, sampling: SamplingParams) -> Decoding:
    """Ask the driver; a token that came without a lap of its own was forced."""
    request = GenerationRequest((Message(Role.USER, QUESTION),), sampling)
    num_tokens = num_laps = 0
    first_s = last_s = 0.0
    async for event in ring.generate(request):
        if isinstance(event, TokenText):
            last_s = time.perf_counter()
            first_s = first_s or last_s
            num_tokens += 1
            num_laps += bool(event.stages)
    return Decoding(num_tokens, num_laps, last_s - first_s)


async def bound_against_free(ring: Coordinator, repeats: int) -> None:
    """Answers that fit SCHEMA, and others of the same length, in turn."""
    writer = GrammarWriter(ring.tokenizer.control_tokens)
    grammar = writer.grammar(writer.part(json_schema(SCHEMA)))
    bias = tuple((token, -100.0) for token in ring.tokenizer.eos_token_ids)
    pairs: list[tuple[Decoding, Decoding]] = []
    for repeat in range(repeats + 2):
        bound = await decode(
            ring, SamplingParams(max_tokens=400, grammar=grammar, temperature=0.7, seed=repeat)
        )
        free = await decode(ring, SamplingParams(max_tokens=bound.num_tokens, logit_bias=bias))
        if repeat >= 2:
            pairs.append((bound, free))
    for name, answers in zip(
        ("bound to a schema", "free             "), zip(*pairs, strict=True), strict=True
    ):
        laps = sum(answer.num_laps for answer in answers) / sum(answer.num_tokens for answer in answers)
        print(f"{name}        {laps:.2f} laps per token")
    print(f"tokens per s, bound      {spread([b.tokens_per_s for b, _ in pairs], '/s', 1)}")
    print(f"tokens per s, free       {spread([f.tokens_per_s for _, f in pairs], '/s', 1)}")
    print(f"bound / free             {spread([b.tokens_per_s / f.tokens_per_s for b, f in pairs], '  ', 1)}")


def _timing(begun: float, times: list[float]) -> Timing:
    return Timing(times[0] - begun, (times[-1] - times[0]) / max(1, len(times) - 1))


def spread(values: list[float], unit: str = "ms", scale: float = 1e3) -> str:
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
    return (
        f"{statistics.median(ordered) * scale:8.2f} {unit}  (80 % in {low * scale:.2f} to {high * scale:.2f})"
    )


async def compare(model: str, shards: int, tokens: int, repeats: int) -> None:
    """Measure both on a ring of `shards`."""
    async with (
        Coordinator(ClusterOptions(local_shards=shards)) as ring,
        endpoint(ring, "127.0.0.1", 0) as served,
    ):
        await ring.load(model)
        bias = {str(token): -100.0 for token in ring.tokenizer.eos_token_ids}
        turns: list[Turn] = []
        for repeat in range(repeats + 2):
            before = await direct(ring, bias, tokens)
            by_http = (await over_http(served, bias, tokens), await over_http(served, bias, tokens))
            turn = Turn((before, await direct(ring, bias, tokens)), by_http)
            if repeat >= 2:  # the first turns warm everything up
                turns.append(turn)
        print(f"{Path(model).name}, {shards} shards, {tokens} tokens, {repeats} turns; {machine()}\n")
        report(turns)
        await bound_against_free(ring, max(3, repeats // 4))


def report(turns: list[Turn]) -> None:
    directly = [timing for turn in turns for timing in turn.directly]
    by_http = [timing for turn in turns for timing in turn.by_http]
    print(f"first token, driver      {spread([t.first_s for t in directly])}")
    print(f"first token, endpoint    {spread([t.first_s for t in by_http])}")
    print(f"added to first token     {spread([turn.added_s for turn in turns])}")
    print(f"driver against itself    {spread([turn.drift_s for turn in turns])}")
    print(f"between tokens, driver   {spread([t.next_s for t in directly])}")
    print(f"between tokens, endpoint {spread([t.next_s for t in by_http])}\n")


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
