"""What a device is: chip, system, memory; what to measure on it for a model; and its profile as JSON.

Nothing here needs MLX: the head reads and writes profiles too. Measuring is `profile/measure.py`, on a shard.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from dnet_core.disk_reads import LEAST_READ_BYTES, whole_pages
from dnet_core.errors import ProfileError, RequestError, UnsupportedModel
from dnet_core.profile.tensors import number, text_config
from dnet_core.types.profiles import (
    DeviceProfile,
    FormatSpeed,
    LayerShape,
    ModelProfile,
    ProfileRequest,
    Quantization,
    WeightFormat,
)

PROFILE_VERSION = 2
"""Bumped when a figure is measured otherwise or means something else: older profiles are then stale."""

MOST_DISK_READ_BYTES = 32 << 20
"""A larger layer is read no faster: it is cut into slices, of which some are in flight."""

_RESERVE_SHARE = 0.1
_RESERVE_BYTES = 1 << 30

_HARDWARE_COMMAND = ("system_profiler", "SPHardwareDataType", "SPDisplaysDataType", "-json")
_HARDWARE_DEADLINE_S = 10.0
_GROUP_SIZE = 64
_MLX_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One machine as its operating system tells of it."""

    chip: str
    os: str
    memory_total_bytes: int
    memory_available_bytes: int


def host_facts(device: str) -> HostFacts:
    """Ask the operating system. Blocks for up to a second on macOS. Raises ProfileError naming `device`."""
    memory = psutil.virtual_memory()
    if sys.platform == "darwin":
        chip, system = _mac_chip(device), f"macOS {platform.mac_ver()[0]}"
    else:
        chip, system = _linux_chip(), _linux_name()
    return HostFacts(chip, system, memory.total, memory.available)


def parse_mac_hardware(text: str) -> str:
    """The chip from `system_profiler SPHardwareDataType SPDisplaysDataType -json`, with its cores.

    Raises ValueError when the text is not that report or names no chip.
    """
    report = json.loads(text)
    if not isinstance(report, dict):
        raise ValueError("the hardware report is not an object")  # noqa: TRY004 - one kind of error to catch
    hardware = _entries(report, "SPHardwareDataType")
    chip = next((entry.get("chip_type") or entry.get("cpu_type") for entry in hardware), None)
    if not isinstance(chip, str):
        raise ValueError("the hardware report names no chip")  # noqa: TRY004 - as above
    cores = []
    # "proc 12:8:4" (all, performance, efficiency) on Apple Silicon, a number before it.
    processors = str(next((entry.get("number_processors", "") for entry in hardware), ""))
    if count := processors.removeprefix("proc ").split(":")[0].strip():
        cores.append(f"{count} CPU")
    displays = _entries(report, "SPDisplaysDataType")
    if gpu := next((str(d["sppci_cores"]) for d in displays if "sppci_cores" in d), ""):
        cores.append(f"{gpu} GPU")
    return f"{chip} ({' and '.join(cores)} cores)" if cores else chip


def parse_cpuinfo(text: str) -> str | None:
    """The processor's name from `/proc/cpuinfo`; None where it gives none (many ARM systems)."""
    for wanted in ("model name", "Model", "Hardware"):
        for line in text.splitlines():
            key, separator, value = line.partition(":")
            if separator and key.strip() == wanted and value.strip():
                return " ".join(value.split())
    return None


def memory_budget_bytes(host: HostFacts, recommended_working_set_bytes: int | None) -> int:
    """What a shard may take: MLX's recommended working set, else available memory less a reserve.

    The reserve, for the system and the person at the machine, is a tenth of all memory, 1 GiB at least; on a
    machine that has less than twice that available, half of what is there.
    """
    if recommended_working_set_bytes is not None:
        return recommended_working_set_bytes
    reserve = max(_RESERVE_BYTES, int(_RESERVE_SHARE * host.memory_total_bytes))
    return max(host.memory_available_bytes - reserve, host.memory_available_bytes // 2)


def fingerprint(host: HostFacts, mlx_version: str, backend: str) -> str:
    """Equal as long as a profile stays true: hardware, system, MLX and this program's way to measure."""
    facts = (PROFILE_VERSION, host.chip, host.os, host.memory_total_bytes, mlx_version, backend)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def request_for(model: ModelProfile, config: Mapping[str, Any], chunk_tokens: int) -> ProfileRequest:
    """What to measure for `model`, whose `config.json` is `config`: a middle layer, in all its formats.

    The MLP is made so wide that a layer has the model's arithmetic per token, whatever its architecture.
    Raises UnsupportedModel when the config's heads make no layer.
    """
    text = text_config(config)
    hidden = model.hidden_size
    num_heads = int(number(text, ("num_attention_heads", "n_head", "num_heads")) or max(1, hidden // 64))
    num_kv_heads = int(number(text, ("num_key_value_heads", "n_kv_heads", "num_kv_heads")) or num_heads)
    if num_heads < 1 or num_kv_heads < 1:
        raise UnsupportedModel(model.model, f"its config.json has {num_heads} heads and {num_kv_heads} of KV")
    if num_heads % num_kv_heads:  # heads that differ by layer; as many as queries is the safe side
        num_kv_heads = num_heads
    head_dim = int(number(text, ("head_dim",)) or max(1, hidden // num_heads))
    if head_dim < 1:
        raise UnsupportedModel(model.model, f"its config.json gives its heads {head_dim} dimensions")
    elements = sorted(layer.flops_per_token for layer in model.layers)[model.num_layers // 2] // 2
    attention = 2 * hidden * head_dim * (num_heads + num_kv_heads)
    intermediate = max((elements - attention) // (3 * hidden), min(hidden, 64))
    return ProfileRequest(
        shape=LayerShape(hidden, intermediate, num_heads, num_kv_heads, head_dim),
        formats=tuple(_weight_format(name, model, config) for name in model.weight_formats),
        chunk_tokens=max(2, chunk_tokens),
        disk_read_size_bytes=_disk_read_bytes(model),
    )


def _disk_read_bytes(model: ModelProfile) -> int:
    """A middle layer of `model` in whole pages, as the loader reads it at once; within what a disk shows."""
    layer_bytes = sorted(layer.weight_bytes for layer in model.layers)[model.num_layers // 2]
    return min(max(whole_pages(layer_bytes), LEAST_READ_BYTES), MOST_DISK_READ_BYTES)


def _weight_format(name: str, model: ModelProfile, config: Mapping[str, Any]) -> WeightFormat:
    if not name.startswith("q"):
        return WeightFormat(name)
    text = text_config(config)
    stated = _MLX_DTYPES.get(str(text.get("torch_dtype") or text.get("dtype")), "bf16")
    is_wide = model.activation_bytes_per_token >= 4 * model.hidden_size
    dtype = "f32" if is_wide else "bf16" if stated == "f32" else stated
    bits = int(name[1:])
    settings = _quantization(config, bits)
    mode = settings.get("mode")
    known = mode in ("mxfp4", "mxfp8", "nvfp4")
    group_size = int(number(settings, ("group_size",)) or (32 if known else _GROUP_SIZE))
    return WeightFormat(dtype, Quantization(bits, group_size, str(mode) if known else "affine"))


def _quantization(config: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """The settings of the modules that have so many bits: the config's own, or those of some modules."""
    settings = config.get("quantization") or config.get("quantization_config")
    if not isinstance(settings, dict):
        return {}
    if settings.get("bits") == bits:
        return settings
    own = (value for value in settings.values() if isinstance(value, dict) and value.get("bits") == bits)
    return {**settings, **next(own, {})}


def _mac_chip(device: str) -> str:
    try:
        report = subprocess.run(
            _HARDWARE_COMMAND, capture_output=True, text=True, check=True, timeout=_HARDWARE_DEADLINE_S
        )
        return parse_mac_hardware(report.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):  # the older way knows no GPU cores
        pass
    try:
        name = subprocess.run(
            ("sysctl", "-n", "machdep.cpu.brand_string"),
            capture_output=True,
            text=True,
            check=True,
            timeout=_HARDWARE_DEADLINE_S,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ProfileError(device, "chip", str(error)) from error
    return name.stdout.strip()


def _linux_chip() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    return parse_cpuinfo(text) or platform.processor() or platform.machine()


def _linux_name() -> str:
    kernel = f"{platform.system()} {platform.release()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']} ({kernel})"
    except (OSError, KeyError):
        return kernel


def _entries(report: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    entries = report.get(kind)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def printable(text: str) -> str:
    """Check a word from a file that may come from anybody: it is drawn on terminals."""
    if not text.isprintable():
        raise ValueError("it has characters that cannot be shown")
    return text


Figure = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1), AfterValidator(printable)]
MemoryBytes = Annotated[int, Field(ge=1, le=1 << 50)]  # sums of them fit into 64 bits


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class _SpeedDocument(_Document):
    weight_format: Text
    decode_flops_per_s: Figure
    decode_bytes_per_s: Figure
    prefill_flops_per_s: Figure
    prefill_chunk_tokens: PositiveInt


class _DeviceDocument(_Document):
    profile_version: Literal[2]
    peer: Text
    chip: Text
    os: Text
    mlx_version: Text
    backend: Text
    memory_total_bytes: MemoryBytes
    memory_available_bytes: Annotated[int, Field(ge=0, le=1 << 50)]
    memory_budget_bytes: MemoryBytes
    memory_bytes_per_s: Figure
    disk_read_bytes_per_s: Figure
    disk_read_size_bytes: PositiveInt
    layer_overhead_s: Figure
    speeds: tuple[_SpeedDocument, ...] = Field(min_length=1)
    fingerprint: Text
    measured_at_unix_s: Figure


def profile_to_json(profile: DeviceProfile) -> str:
    """`profile` as a JSON object, indented, its fields by their names."""
    return json.dumps({"profile_version": PROFILE_VERSION, **asdict(profile)}, indent=2) + "\n"


def profile_from_json(text: str, source: str) -> DeviceProfile:
    """Read what `profile_to_json` wrote. Raises RequestError that names `source` (a file) and the field."""
    try:
        document = _DeviceDocument.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        where = f"{source}: field '{field}'" if field else source
        raise RequestError(f"{where} of the device profile: {first['msg']}; profile it again") from error
    fields = document.model_dump(exclude={"profile_version", "speeds"})
    speeds = tuple(FormatSpeed(**speed.model_dump()) for speed in document.speeds)
    return DeviceProfile(**fields, speeds=speeds)
