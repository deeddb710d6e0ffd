"""This machine: software, MLX, memory, disk, the model store, the cluster key, the clock, Thunderbolt."""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from pathlib import Path

import psutil
from huggingface_hub import constants

import dnet_core
from dnet_core import __version__
from dnet_core.discover.interfaces import read_network
from dnet_core.discover.thunderbolt import read_thunderbolt
from dnet_core.doctor.finding import Finding, Level
from dnet_core.errors import DnetError, LoadError
from dnet_core.profile.device import HostFacts, memory_budget_bytes
from dnet_core.settings import inherited_cluster_key, paths
from dnet_core.store.catalog import list_local
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.transport import tls
from dnet_core.types.devices import Medium

LOW_MEMORY_BYTES = 2 * 10**9
LOW_DISK_BYTES = 20 * 10**9
"""A model of 8 billion weights in 16 bits, and some room."""
NO_DISK_BYTES = 10**9

_MLX_PROBE = """
import json
import mlx.core as mx
from dnet_core.profile.mlx_facts import mlx_facts
mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))
facts = mlx_facts()
print(json.dumps([facts.version, facts.backend, facts.recommended_working_set_bytes]))
"""


def software() -> list[Finding]:
    """Versions, and whether MLX exists for this system at all."""
    system = f"macOS {platform.mac_ver()[0]}" if sys.platform == "darwin" else platform.system()
    text = f"dnet {__version__}, Python {platform.python_version()}, {system} on {platform.machine()}"
    if sys.platform == "darwin" and platform.machine() != "arm64":
        advice = "use a Mac with Apple Silicon and a Python built for it (not one under Rosetta)"
        return [Finding("software", Level.BROKEN, text, advice)]
    return [Finding("software", Level.GOOD, text)]


async def mlx(command: tuple[str, ...] = (sys.executable, "-c", _MLX_PROBE)) -> list[Finding]:
    """Multiply two matrices in a child process: what this process must not import may also crash."""
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        why = lines[-1] if lines else f"the process ended with {process.returncode}"
        advice = "install dnet-tui again for this Python, on macOS 14 or later"
        return [Finding("mlx", Level.BROKEN, f"MLX does not work: {why}", advice)]
    version, backend, working_set_bytes = json.loads(output)
    text = f"MLX {version} computes on {backend}"
    if working_set_bytes is not None:
        text += f", {_gb(working_set_bytes)} may be wired for a model"
    if sys.platform == "darwin" and backend == "cpu":
        return [Finding("mlx", Level.WARNING, text, "the GPU is not used: is this a virtual machine?")]
    return [Finding("mlx", Level.GOOD, text)]


def memory() -> list[Finding]:
    """What a model could have now."""
    found = psutil.virtual_memory()
    budget = memory_budget_bytes(HostFacts("", "", found.total, found.available), None)
    text = f"{_gb(found.available)} of {_gb(found.total)} are free, {_gb(budget)} of it for a model"
    if budget < LOW_MEMORY_BYTES:
        return [Finding("memory", Level.WARNING, text, "close programs that take much memory")]
    return [Finding("memory", Level.GOOD, text)]


def disk() -> list[Finding]:
    """Room where models are put."""
    by_disk: dict[int, list[Path]] = {}
    for folder in (Path(constants.HF_HUB_CACHE), paths().models):
        by_disk.setdefault(_existing(folder).stat().st_dev, []).append(folder)
    found = []
    for folders in by_disk.values():
        unusable = [folder for folder in folders if not _is_usable(folder)]
        found += [unusable_finding(folder) for folder in unusable]
        if folders != unusable:
            names = " and ".join(str(folder) for folder in folders if folder not in unusable)
            found.append(disk_finding(names, shutil.disk_usage(_existing(folders[0])).free))
    return found


def unusable_finding(folder: Path) -> Finding:
    """`folder` is no folder that this user can write to, and none can be made there."""
    there = _nearest(folder)
    why = f"{there} is a file" if not there.is_dir() else f"{there} cannot be written"
    advice = "set DNET_HOME (HF_HOME for hub models) to a folder of yours on a disk with room"
    return Finding("disk", Level.BROKEN, f"models cannot be put in {folder}: {why}", advice)


def disk_finding(folders: str, free_bytes: int) -> Finding:
    """Judge the room for models in `folders`."""
    text = f"{_gb(free_bytes)} are free for models in {folders}"
    advice = "delete models you do not use, or set HF_HOME (hub models) or DNET_HOME to a larger disk"
    if free_bytes < NO_DISK_BYTES:
        return Finding("disk", Level.BROKEN, text, advice)
    if free_bytes < LOW_DISK_BYTES:
        return Finding("disk", Level.WARNING, text, advice)
    return Finding("disk", Level.GOOD, text)


def store() -> list[Finding]:
    """Whether models can be read and new ones kept."""
    models = list_local()
    total = sum(model.size_bytes for model in models)
    found = [Finding("models", Level.GOOD, f"{len(models)} here, {_gb(total)}")]
    there = _existing(paths().models)
    if not _can_write(there):
        text = f"{there} cannot be written"
        found.append(Finding("models", Level.BROKEN, text, f"make it yours: sudo chown $USER '{there}'"))
    for model in models:
        if model.path.is_dir():
            try:
                read_checkpoint(model.path)
            except LoadError as error:
                advice = f"delete {model.path}: it is made or fetched again when it is needed"
                found.append(Finding("models", Level.WARNING, f"{model.id} is damaged: {error}", advice))
    return found


def cluster_key() -> list[Finding]:
    """The key, if there is one: readable, whole, and for its owner only."""
    path = paths().cluster_key
    if inherited_cluster_key() is None and not path.exists():
        text = "none yet: one is made at the first start"
        advice = "on a second device: dnet-shard --join KEY (dnet-shard --show-key on the first tells it)"
        return [Finding("cluster key", Level.GOOD, text, advice)]
    try:
        tls.find_key(inherited_cluster_key(), path)
    except DnetError as error:
        return [Finding("cluster key", Level.BROKEN, str(error))]
    return [Finding("cluster key", Level.GOOD, f"{path}, for you alone")]


def clock(now_unix_s: float | None = None) -> list[Finding]:
    """Whether this machine believes in a time before this program was installed."""
    now = time.time() if now_unix_s is None else now_unix_s
    installed = Path(dnet_core.__file__).stat().st_mtime
    if now < installed - 60:
        days = (installed - now) / 86400
        text = f"the clock is at least {days:.1f} days behind: certificates of other devices will be refused"
        return [Finding("clock", Level.BROKEN, text, "let the system set date and time by itself")]
    return [Finding("clock", Level.GOOD, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))]


async def thunderbolt() -> list[Finding]:
    """On a Mac: whether a cable to another one has an address to use. Nothing elsewhere."""
    if sys.platform != "darwin":
        return []
    ports, network = await read_thunderbolt(), await read_network()
    cables = sum(bool(port.connected) for port in ports)
    return [thunderbolt_finding(cables, any(i.medium is Medium.THUNDERBOLT for i in network.interfaces))]


def thunderbolt_finding(cables: int, has_address: bool) -> Finding:
    """Judge the Thunderbolt bridge by the Macs on its ports and whether it has an address."""
    if not cables:
        text = "no other Mac hangs on a Thunderbolt port"
        return Finding("thunderbolt", Level.GOOD, text, "a cable between two Macs is the fastest link")
    if not has_address:
        return Finding(
            "thunderbolt",
            Level.WARNING,
            "a Mac hangs on a Thunderbolt port, but the Thunderbolt bridge has no address",
            "System Settings > Network > Thunderbolt Bridge: make it active, configure it by DHCP",
        )
    return Finding("thunderbolt", Level.GOOD, f"{cables} port(s) lead to other Macs, and the bridge is up")


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _is_usable(folder: Path) -> bool:
    """Whether this user can make or fill `folder`."""
    there = _nearest(folder)
    return there.is_dir() and _can_write(there)


def _nearest(path: Path) -> Path:
    """`path`, or what is nearest above it, be it a folder or not."""
    return next(above for above in (path, *path.parents) if above.exists())


def _can_write(folder: Path) -> bool:
    """Whether a file can be made in `folder`: permissions alone do not tell (/proc, a read-only disk)."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
