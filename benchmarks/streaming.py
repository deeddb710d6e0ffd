"""A model that is larger than memory: what streaming from disk costs, against the disk and against mlx-lm.

    uv run python -m benchmarks.streaming [--layers L] [--hidden H] [--budget-mb B] [--tokens N]
                                          [--own-disks MB_PER_S] [--soak N]

A llama of random weights, four times as large as the budget of a shard, runs on rings of one and two local
shards, with one round and more, with one buffer (nothing is read ahead) and more. Reads are cold: the shard
reads past the page cache (O_DIRECT, else it drops the pages with posix_fadvise DONTNEED), and the bytes that
its process took from the device are printed to show it. As root with cgroup v1 every shard runs under a cap
of budget + 10 %, and so does plain mlx-lm with the same model. `bound` is the larger of streamed bytes / disk
speed and of compute + hops. At the end stand the goals, with what was measured: the exit code is 1 when one
is missed.

Shards of one machine share its disk, so that several of them read no faster than one and rounds gain
nothing. So rounds are compared with a disk of its own for each shard, as several machines have: one of
`--own-disks` MB/s, by throttling its reads (cgroup v1, blkio; it must be less than the real disk's share of
each shard).
"""

from __future__ import annotations

import argparse
import asyncio
import mmap
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.ring import PROMPT_TEXT
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.disk_reads import whole_pages
from dnet_core.slices.layers import PRODUCER
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.store.repack import (
    LayerFile,
    LayerReader,
    find_layer,
    layer_path,
    layers_folder,
    source_mark,
)
from dnet_core.types.generation import SamplingParams, TokenText
from tests.ring_tools import ring_plan
from tests.tiny_models import write_large_random_model

CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "dnet-benchmark-"  # of cgroups and scratch folders; the process id follows
CHUNK_TOKENS = 64

PROCESS_BYTES = 200_000_000
"""What a shard takes before it holds a weight: Python, MLX, gRPC; and the activations of a chunk."""

NAIVE = """
import os, sys, time
from pathlib import Path
if sys.argv[3]:
    Path(sys.argv[3]).write_text(str(os.getpid()))
import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

model, _ = load_model(Path(sys.argv[1]), lazy=True)
times = []
for _ in generate_step(mx.array([1, 2, 3]), model, max_tokens=int(sys.argv[2])):
    times.append(time.perf_counter())
print((times[-1] - times[0]) / (len(times) - 1))
"""


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    shards: int
    rounds: int
    num_buffers: int
    has_own_disks: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    seconds_per_token: float
    streamed_bytes: int  # per token, by the plan
    most_streamed_bytes: int  # the same of the shard that streams most
    device_bytes: float  # per token, by the processes' own count
    compute_s: float  # per token, with hops
    wait_s: float
    peak_bytes: int  # of the largest shard: resident set, high-water mark
    swapped_bytes: int  # of all shards, at the end


@contextmanager
def cgroup(controller: str, name: str, setting: str, value: str) -> Iterator[Path | None]:
    """The file of a new cgroup that takes processes; None where there are none for us."""
    folder = CGROUPS / controller / f"{PREFIX}{os.getpid()}-{name}"
    try:
        folder.mkdir()
    except OSError:
        yield None
        return
    try:
        (folder / setting).write_text(value)
        yield folder / "cgroup.procs"
    finally:
        while (folder / "cgroup.procs").read_text():
            time.sleep(0.05)
        folder.rmdir()


def remove_leftovers() -> None:
    """Remove what runs that were killed have left behind: cgroups that nobody is in, and their models."""
    for folder in (*CGROUPS.glob(f"*/{PREFIX}*"), *Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        if psutil.pid_exists(int(folder.name.removeprefix(PREFIX).partition("-")[0])):
            continue
        if not folder.is_relative_to(CGROUPS):
            shutil.rmtree(folder)
        elif not (folder / "cgroup.procs").read_text():
            folder.rmdir()


def cap(name: str, num_bytes: int) -> AbstractContextManager[Path | None]:
    """A memory cgroup of `num_bytes`."""
    return cgroup("memory", name, "memory.limit_in_bytes", str(num_bytes))


def own_disk(name: str, on: Path, bytes_per_s: int) -> AbstractContextManager[Path | None]:
    """Reads of the disk that `on` lies on, no faster than `bytes_per_s`."""
    device = os.stat(on).st_dev  # noqa: PTH116 - its number
    number = f"{os.major(device)}:{os.minor(device)}"
    return cgroup("blkio", name, "blkio.throttle.read_bps_device", f"{number} {bytes_per_s}")


def shard_processes() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "dnet_core.shard.main" in p.cmdline()]


def peak_bytes(process: psutil.Process) -> int:
    """The most that was ever in memory of `process`: weights, Python, libraries."""
    return _status_bytes(process, "VmHWM") if sys.platform == "linux" else int(process.memory_info().rss)


def swapped_bytes(process: psutil.Process) -> int:
    """What of `process` is not in memory but in swap."""
    return _status_bytes(process, "VmSwap") if sys.platform == "linux" else 0


def _status_bytes(process: psutil.Process, name: str) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


def disk_bytes_per_s(files: Sequence[LayerFile]) -> float:
    """The median speed of cold reads, as the loader does them."""
    memory = memoryview(mmap.mmap(-1, whole_pages(max(file.num_bytes for file in files))))
    reader = LayerReader()
    speeds = []
    for turn in range(2):  # the first checks the sums
        for file in files:
            begun = time.perf_counter()
            reader.read(file, memory)
            if turn:
                speeds.append(file.num_bytes / (time.perf_counter() - begun))
    reader.close()
    return statistics.median(speeds)


def boundaries(layers: int, windows: int) -> list[int]:
    return [round(layers * (i + 1) / windows) for i in range(windows)]


def layer_files(model: Path, layers: int) -> list[LayerFile]:
    """The files that loading has written."""
    checkpoint = read_checkpoint(model)
    folder, source = layers_folder(checkpoint), source_mark(checkpoint, PRODUCER)
    found = (find_layer(layer_path(folder, layer), source) for layer in range(layers))
    return [file for file in found if file is not None]


async def answer(ring: Coordinator, tokens: int) -> list[tuple[float, TokenText]]:
    """Greedy tokens with the times at which they came; it never stops early."""
    prompt = ring.tokenizer.encode(PROMPT_TEXT, add_special_tokens=True)[:CHUNK_TOKENS]
    eos = tuple((token, -1e9) for token in ring.tokenizer.eos_token_ids)
    sampling = SamplingParams(max_tokens=tokens, logit_bias=eos)
    return [
        (time.perf_counter(), event)
        async for event in ring.generate_from(prompt, sampling)
        if isinstance(event, TokenText)
    ]


async def measure(
    case: Case,
    model: Path,
    layers: int,
    layer_bytes: int,
    budget_bytes: int,
    tokens: int,
    disk_bytes_per_s: int | None,
) -> Result:
    """Fill each shard's budget with resident layers, stream the rest, and time a few tokens."""
    per_shard = layers // case.shards
    fitting = (budget_bytes - PROCESS_BYTES) // layer_bytes
    assert fitting >= case.num_buffers, f"the budget has room for {fitting} layers"
    resident = fitting - case.num_buffers
    assert per_shard > resident, "nothing would be streamed"
    ends = boundaries(layers, case.shards * case.rounds)
    streamed = spread(ends, case.shards, resident)
    async with AsyncExitStack() as stack:
        caps = stack.enter_context(ExitStack())  # left when the shards are gone
        ring = await stack.enter_async_context(Coordinator(ClusterOptions(local_shards=case.shards)))
        await ring.wait_for_local_shards()
        shards = shard_processes()
        for shard in shards:
            procs = caps.enter_context(cap(str(shard.pid), int(budget_bytes * 1.1)))
            if procs is not None:
                procs.write_text(str(shard.pid))
            if disk_bytes_per_s is not None:
                procs = caps.enter_context(own_disk(str(shard.pid), model, disk_bytes_per_s))
                assert procs is not None, "--own-disks needs root and cgroup v1 with blkio"
                procs.write_text(str(shard.pid))
        plan = ring_plan(model, ring.peers, ends, case.rounds, streamed, case.num_buffers)
        await ring.load(str(model), plan, CHUNK_TOKENS)
        before = [shard.io_counters().read_bytes for shard in shards]
        timed = await answer(ring, tokens + 2)  # the first two come out of the prompt's reads
        read = sum(s.io_counters().read_bytes - b for s, b in zip(shards, before, strict=True))
        stages = [stage for _, token in timed[2:] for stage in token.stages]
        return Result(
            (timed[-1][0] - timed[1][0]) / tokens,
            len(streamed) * layer_bytes,
            max(len(a.streamed) for a in plan.assignments) * layer_bytes,
            read / (tokens + 3),  # the prompt passes as one chunk and as its last token
            sum(s.compute_s + s.queue_s + s.wire_s for s in stages) / tokens,
            sum(s.disk_wait_s for s in stages) / tokens,
            max(peak_bytes(shard) for shard in shards),
            sum(swapped_bytes(shard) for shard in shards),
        )


def spread(ends: list[int], shards: int, resident: int) -> list[int]:
    """The layers to stream: of each shard all but `resident`, which lie evenly over its windows."""
    windows = list(zip([0, *ends], ends, strict=False))
    streamed = []
    for shard in range(shards):
        own = [layer for start, stop in windows[shard::shards] for layer in range(start, stop)]
        kept = {own[len(own) * i // resident] for i in range(resident)}
        streamed += [layer for layer in own if layer not in kept]
    return sorted(streamed)


def naive(model: Path, budget_bytes: int, tokens: int) -> float | str:
    """Plain mlx-lm, lazily, under the same cap: seconds per token, or how it failed."""
    with cap("mlx-lm", int(budget_bytes * 1.1)) as procs:
        command = [sys.executable, "-c", NAIVE, str(model), str(tokens), str(procs or "")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}: it does not fit the cap"
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    if not procs:
        return f"{1000 * float(done.stdout):.0f} ms per token, with no cap here: all of it is in memory"
    return float(done.stdout)


@dataclass(frozen=True, slots=True)
class Measured:
    """A case and its result, with the speed of the disk and the seconds per token that it allows."""

    case: Case
    result: Result
    disk_bytes_per_s: float
    bound_s: float

    @property
    def ratio(self) -> float:
        return self.result.seconds_per_token / self.bound_s


async def compare(
    layers: int, hidden: int, budget_bytes: int, tokens: int, scratch: Path, own_disks: int | None
) -> bool:
    """Measure all cases and print them; whether every goal is met. `own_disks` None: not with such."""
    model = write_large_random_model(scratch / "model", layers=layers, hidden=hidden, vocab=512)
    total_bytes = (model / "model.safetensors").stat().st_size
    layer_bytes = total_bytes // layers
    print(f"model {total_bytes / 1e9:.2f} GB, {layers} layers of {layer_bytes / 1e6:.0f} MB;", end=" ")
    print(f"budget of a shard {budget_bytes / 1e9:.2f} GB, the process itself included")
    plain = naive(model, budget_bytes, 4)
    told = plain if isinstance(plain, str) else f"{1000 * plain:.0f} ms per token"
    print(f"  plain mlx-lm, same model, same cap: {told}")
    print(
        f"  {'':>36}  {'ms/token':>8}  {'bound':>6}  {'ratio':>5}  {'streamed':>8}  {'from device':>11}"
        f"  {'compute+hops':>12}  {'waiting':>7}  {'peak/budget':>11}  {'disk MB/s':>9}",
        flush=True,
    )
    found: dict[str, Measured] = {}
    for case in CASES:
        throttle = own_disks if case.has_own_disks else None
        if case.has_own_disks and throttle is None:
            continue
        result = await measure(case, model, layers, layer_bytes, budget_bytes, tokens, throttle)
        files = layer_files(model, layers)[:SPEED_LAYERS]
        speed = throttle or disk_bytes_per_s(files)
        streamed = result.most_streamed_bytes if throttle else result.streamed_bytes
        measured = Measured(case, result, speed, max(streamed / speed, result.compute_s))
        found[case.name] = measured
        print(
            f"  {case.name:>36}  {1000 * result.seconds_per_token:8.0f}  {1000 * measured.bound_s:6.0f}"
            f"  {measured.ratio:5.2f}  {result.streamed_bytes / 1e6:5.0f} MB"
            f"  {result.device_bytes / 1e6:8.0f} MB  {1000 * result.compute_s:9.0f} ms"
            f"  {1000 * result.wait_s:4.0f} ms  {result.peak_bytes / budget_bytes:11.2f}  {speed / 1e6:9.0f}",
            flush=True,
        )
    return print_goals(found, plain, budget_bytes)


def print_goals(found: dict[str, Measured], plain: float | str, budget_bytes: int) -> bool:
    """Tell of every goal what was measured; whether all are met.

    One round of shards with disks of their own is no case of the bound: there the disks wait for one another,
    which is what more rounds are for. The best number of rounds is.
    """
    ahead = [m for m in found.values() if m.case.num_buffers > 1 and not m.case.has_own_disks]
    rounds_of = [m for m in found.values() if m.case.has_own_disks]
    if rounds_of:
        ahead.append(min(rounds_of, key=lambda measured: measured.ratio))
    seconds = {name: measured.result.seconds_per_token for name, measured in found.items()}
    peak = max(measured.result.peak_bytes for measured in found.values()) / budget_bytes
    swapped = sum(measured.result.swapped_bytes for measured in found.values())
    worst = max(ahead, key=lambda measured: measured.ratio)
    gain = seconds[NOTHING_AHEAD] / seconds[ONE_SHARD]
    rows = [
        ("peak memory of a shard, over its budget", "<= 1.10", f"{peak:.2f}", peak <= 1.1),
        ("swapped", "nothing", f"{swapped} bytes", swapped == 0),
        (
            f"ms per token over the bound ({worst.case.name})",
            "<= 1.25",
            f"{worst.ratio:.2f}",
            worst.ratio <= 1.25,
        ),
        ("reading ahead, against nothing read ahead", "faster", f"{gain:.2f} x", gain > 1),
    ]
    for rounds in (2, 4):
        if (name := OWN_DISKS.format(rounds)) in seconds:
            gain = seconds[OWN_DISKS.format(1)] / seconds[name]
            rows.append((f"{rounds} rounds against 1, own disks", "faster", f"{gain:.2f} x", gain > 1))
    if isinstance(plain, str):
        rows.append(("against plain mlx-lm under the same cap", "faster", plain, True))
    else:
        gain = plain / seconds[ONE_SHARD]
        rows.append(("against plain mlx-lm under the same cap", "faster", f"{gain:.2f} x", gain > 1))
    print("  goals")
    for what, goal, measured, is_met in rows:
        print(f"  {what:>60}  {goal:>8}  {measured:>10}  {'met' if is_met else 'MISSED'}")
    return all(is_met for *_, is_met in rows)


NOTHING_AHEAD = "1 shard, nothing read ahead"
ONE_SHARD = "1 shard"
OWN_DISKS = "2 shards, own disks, rounds: {}"
CASES = (
    Case(NOTHING_AHEAD, 1, 1, 1),
    Case(ONE_SHARD, 1, 1, 3),
    Case("2 shards", 2, 1, 3),
    *(Case(OWN_DISKS.format(rounds), 2, rounds, 3, has_own_disks=True) for rounds in (1, 2, 4)),
)
SPEED_LAYERS = 12
"""Layers of which the disk's speed is taken, after every case: half a gigabyte twice."""


async def soak(tokens: int, scratch: Path) -> None:
    """One answer of many tokens, every second layer streamed: its KV cache had its room from the start.

    What still grows is the workspace of attention over ever more positions, one layer's at a time (about 2 kB
    a position here: on the CPU MLX repeats keys and values for each query head). The budget counts it.
    """
    num_layers = 24
    model = write_large_random_model(scratch / "soak", layers=num_layers, hidden=256, vocab=512)
    async with Coordinator(ClusterOptions(local_shards=1)) as ring:
        await ring.wait_for_local_shards()
        plan = replace(
            ring_plan(model, ring.peers, [num_layers], 1, range(0, num_layers, 2), 2),
            context_tokens=tokens + CHUNK_TOKENS,
        )
        await ring.load(str(model), plan, CHUNK_TOKENS)
        (shard,) = shard_processes()
        quarters = [0] * 4
        prompt = ring.tokenizer.encode(PROMPT_TEXT, add_special_tokens=True)[:CHUNK_TOKENS]
        eos = tuple((token, -1e9) for token in ring.tokenizer.eos_token_ids)
        seen = 0
        async for event in ring.generate_from(prompt, SamplingParams(max_tokens=tokens, logit_bias=eos)):
            if isinstance(event, TokenText):
                quarter = 4 * seen // tokens
                quarters[quarter] = max(quarters[quarter], shard.memory_info().rss)
                seen += 1
        assert seen == tokens
        (status,) = await ring.statuses()
    print(
        f"soak: one answer of {tokens} tokens, memory per quarter",
        *(f"{peak / 1e6:.1f}" for peak in quarters),
        "MB;",
        end=" ",
    )
    print(f"last / second {quarters[3] / quarters[1]:.4f}; MLX's own peak {status.peak_bytes / 1e6:.1f} MB")


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--budget-mb", type=int, help="of each shard (default: a quarter of the model)")
    parser.add_argument("--tokens", type=int, default=3)
    parser.add_argument(
        "--own-disks",
        type=int,
        metavar="MB_PER_S",
        help="compare rounds, too, each shard throttled as if it had a disk of its own",
    )
    parser.add_argument(
        "--soak", type=int, default=0, metavar="N", help="only this: N tokens, memory by quarter"
    )
    options = parser.parse_args()
    machine = f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}")
    remove_leftovers()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as folder:
        os.environ["DNET_HOME"] = f"{folder}/home"  # layer files go away with the rest
        # A run that is cut off leaves nothing behind either.
        stopped = asyncio.current_task()
        assert stopped is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.cancel)
        if options.soak:
            await soak(options.soak, Path(folder))
            return
        layer_bytes = 11 * options.hidden**2 * 4
        budget_bytes = 1_000_000 * (options.budget_mb or options.layers * layer_bytes // 4_000_000)
        disks = 1_000_000 * options.own_disks if options.own_disks else None
        if not await compare(
            options.layers, options.hidden, budget_bytes, options.tokens, Path(folder), disks
        ):
            sys.exit(1)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        sys.exit("stopped before the end")
