"""What the screen costs: its start, an idle minute, a streaming reply, and what it takes from the ring.

    uv run python -m benchmarks.tui [--seconds S] [--only start,idle,stream,ring]

start    the installed command in a pseudo-terminal: to the first painted frame, to a prompt that takes keys
idle     CPU of the process (children apart) with a loaded real ring of one shard and telemetry on
stream   a reply at 50 tokens/s after 30 earlier turns, as prose, list, fence, table: CPU of the process,
         and how late a 10 ms ticker on the same loop comes (p99)
ring     tokens/s of one local shard asked by the screen, against the same question to `dnet-api` alone

Goals: 1.0 s, 1.5 s; 2 %; 25 % and 20 ms; 0.97. A busy machine makes all of them worse: say how busy it was.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from tempfile import TemporaryDirectory

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.demo.answers import Answer
from dnet_core.demo.cluster import DemoCluster
from dnet_core.demo.worlds import Lap, Macs, PlacedOnMacs
from dnet_core.settings import child_environment
from dnet_core.types.generation import (
    FinishReason,
    GenerationDone,
    GenerationRequest,
    Message,
    Role,
    SamplingParams,
)
from dnet_tui.app import DnetApp
from dnet_tui.chat import ChatOverrides, Finished, Reply, Turn
from dnet_tui.main import SAMPLE_MODEL
from dnet_tui.pace import Timing
from dnet_tui.personal_app import Personal
from dnet_tui.state import Ready

COMMAND = Path(sys.executable).parent / "dnet-tui"
TOKENS_PER_S = 50
EARLIER_TURNS = 30
TICK_S = 0.01
QUESTION = "Name the planets of the solar system, and say one thing about each."

PROSE = "The ring hands an activation from one device to the next and the last one samples a token. " * 40
LIST = "".join(f"- point {i}: a device runs the layers that fit its memory\n" for i in range(60))
FENCE = "```python\n" + "".join(f"layers[{i}] = window.run(layers[{i - 1}])\n" for i in range(60)) + "```\n"
TABLE = "| device | layers |\n|---|---:|\n" + "".join(f"| mac-{i} | {i} |\n" for i in range(60))
KINDS = {"prose": PROSE, "list": LIST, "fence": FENCE, "table": TABLE}


def words(text: str) -> tuple[str, ...]:
    head, *rest = text.split(" ")
    return (head, *(f" {word}" for word in rest))


# --- start ----------------------------------------------------------------------------------------


@contextmanager
def terminal(home: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The installed command on a terminal of 120x40 of its own."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    environment = child_environment(DNET_HOME=str(home), TERM="xterm-256color")
    process = subprocess.Popen(
        [COMMAND, "--no-mdns", *options],
        stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    try:
        yield process, master
    finally:
        process.terminate()
        while process.poll() is None:  # what it paints while it ends must be read, or it waits
            _read(master, 0.1)
        os.close(master)


def _read(master: int, within_s: float) -> bytes:
    ready, _, _ = select.select([master], [], [], within_s)
    try:
        return os.read(master, 65536) if ready else b""
    except OSError:  # the other end is closed
        return b""


def start_times() -> tuple[float, float]:
    """Seconds until the prompt is painted, and until a typed letter stands in it."""
    with TemporaryDirectory() as home:
        begun = time.monotonic()
        with terminal(Path(home), "--model", SAMPLE_MODEL) as (_, master):
            seen = b""
            while b"Ask" not in seen:
                seen += _read(master, 1.0)
                assert time.monotonic() - begun < 60, seen[-500:]
            painted = time.monotonic() - begun
            os.write(master, b"Q")
            seen = b""
            while b"Q" not in seen:
                seen += _read(master, 1.0)
                assert time.monotonic() - begun < 60, seen[-500:]
            return painted, time.monotonic() - begun


# --- the app in this process ----------------------------------------------------------------------


def cpu_s() -> float:
    """Of this process alone: shards are children and count for themselves."""
    times = os.times()
    return times.user + times.system


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 - it looks at the screen, as a person does
        await asyncio.sleep(0.02)


async def lateness(seconds: float) -> list[float]:
    """How late each tick of the loop comes."""
    late, end = [], time.monotonic() + seconds
    while (due := time.monotonic() + TICK_S) < end:
        await asyncio.sleep(TICK_S)
        late.append(time.monotonic() - due)
    return late


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


async def idle_share(seconds: float) -> float:
    coordinator = Coordinator(ClusterOptions(local_shards=1))
    app = DnetApp(lambda: coordinator, SAMPLE_MODEL, timing=Timing(blink=False))
    async with app.run_test(size=(200, 60)):
        await until(lambda: isinstance(app.view.model, Ready))
        await asyncio.sleep(3)
        before, begun = cpu_s(), time.monotonic()
        await asyncio.sleep(seconds)
        return (cpu_s() - before) / (time.monotonic() - begun)


class _Steady50(PlacedOnMacs):
    def token_lap(self, index: int) -> Lap:
        return Lap(1 / TOKENS_PER_S, super().token_lap(index).stages)


class _SteadyMacs(Macs):
    async def place(self, *arguments: object, **options: object) -> _Steady50:
        placed = await super().place(*arguments, **options)  # type: ignore[arg-type]
        assert isinstance(placed, PlacedOnMacs)
        assert placed.prepared is not None
        return _Steady50(placed.prepared)


@dataclass(frozen=True, slots=True)
class Streamed:
    tokens_per_s: float
    share: float
    late_p99_s: float


async def streamed(text: str, seconds: float) -> Streamed:
    """A reply of the demonstration at 50 tokens/s on the large screen, below 30 earlier turns."""
    demo = DemoCluster(_SteadyMacs(4), answers=[Answer(words(text * 40))], known={})
    app = DnetApp(lambda: demo, "mlx-community/Qwen3-30B-A3B-4bit", timing=Timing(blink=False))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: isinstance(app.view.model, Ready))
        done = Finished(GenerationDone(FinishReason.STOP, 9, 99, 0, 1.0, 50.0))
        earlier = Turn("An earlier question", (Reply(text[:1500], done),))
        app.conversation.turns = (earlier,) * EARLIER_TURNS
        await pilot.pause(1)
        app.conversation.prompt.insert("Again")
        await pilot.press("enter")
        await until(lambda: app.conversation.turns[-1].answer)
        before, begun = cpu_s(), time.monotonic()
        first = len(app.conversation.turns[-1].answer)
        late = await lateness(seconds)
        taken = time.monotonic() - begun
        share = (cpu_s() - before) / taken
        got = len(words(app.conversation.turns[-1].answer[first:])) / taken
        await pilot.press("escape")
        return Streamed(got, share, p99(late))


# --- the ring -------------------------------------------------------------------------------------


async def rate_with_screen(tokens: int) -> float:
    """Tokens/s of an answer on one local shard, as the turn tells it."""
    coordinator = Coordinator(ClusterOptions(local_shards=1))
    personal = Personal(override=ChatOverrides(temperature=0.0, max_tokens=tokens).over)
    app = DnetApp(lambda: coordinator, SAMPLE_MODEL, personal, Timing(blink=False))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: isinstance(app.view.model, Ready))
        app.conversation.prompt.insert(QUESTION)
        await pilot.press("enter")
        turns = lambda: app.conversation.turns  # noqa: E731
        await until(lambda: turns() and isinstance(turns()[-1].phase, Finished))
        phase = turns()[-1].phase
        assert isinstance(phase, Finished)
        assert phase.done.decode_tokens_per_s is not None
        return phase.done.decode_tokens_per_s


async def rate_alone(tokens: int) -> float:
    """The same question to a coordinator without a screen, as `dnet-api` runs it."""
    async with Coordinator(ClusterOptions(local_shards=1)) as coordinator:
        await coordinator.load(SAMPLE_MODEL)
        request = GenerationRequest(
            (Message(Role.USER, QUESTION),), SamplingParams(temperature=0.0, max_tokens=tokens)
        )
        async with aclosing(coordinator.generate(request)) as events:
            async for event in events:
                if isinstance(event, GenerationDone):
                    assert event.decode_tokens_per_s is not None
                    return event.decode_tokens_per_s
    raise AssertionError("every generation ends with its last word")


# --- the table ------------------------------------------------------------------------------------


def line(what: str, value: str, goal: str, *, holds: bool) -> None:
    print(f"{what:<44}{value:>16}   goal {goal:<10} {'ok' if holds else 'MISSED'}", flush=True)


async def main(only: set[str], seconds: float, tokens: int) -> None:
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}")
    if "start" in only:
        runs = [start_times() for _ in range(4)][1:]  # the first reads the files from the disk
        painted, usable = (statistics.median(values) for values in zip(*runs, strict=True))
        line("start to the first painted prompt", f"{painted:.2f} s", "< 1.0 s", holds=painted < 1)
        line("start to a letter in the prompt", f"{usable:.2f} s", "< 1.5 s", holds=usable < 1.5)
    if "idle" in only:
        share = await idle_share(seconds)
        line("idle, one shard, telemetry on", f"{share:.1%} of a core", "< 2 %", holds=share < 0.02)
    if "stream" in only:
        for kind, text in KINDS.items():
            found = await streamed(text, seconds)
            line(f"{kind} at {found.tokens_per_s:.0f} tok/s", f"{found.share:.0%} of a core", "< 25 %",
                 holds=found.share < 0.25)  # fmt: skip
            late = found.late_p99_s * 1000
            line(f"{kind}: loop lateness p99", f"{late:.1f} ms", "<= 20 ms", holds=late <= 20)
    if "ring" in only:
        pairs = [(await rate_with_screen(tokens), await rate_alone(tokens)) for _ in range(2)]
        ratio = statistics.median(screen / alone for screen, alone in pairs)
        rates = " ".join(f"{screen:.1f}/{alone:.1f}" for screen, alone in pairs)
        line(f"ring with the screen / alone ({rates} tok/s)", f"{ratio:.3f}", ">= 0.97", holds=ratio >= 0.97)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="start,idle,stream,ring")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=80)
    options = parser.parse_args()
    asyncio.run(main(set(options.only.split(",")), options.seconds, options.tokens))
