"""`dnet-api profile` and `dnet-api solve`: the facts and the plan as tables or JSON, without serving.

    dnet-api profile device --json > studio.json     on each device
    dnet-api profile model ID --json > model.json    from config and headers alone
    dnet-api solve --devices *.json --model model.json

Nothing of the last needs a device: profiles can be taken home, and plans made for clusters elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dnet_core import plan_json, plan_tables
from dnet_core.chunks import CHUNK_TOKENS, chunk_tokens_of
from dnet_core.cluster import Cluster
from dnet_core.cluster_options import ClusterOptions, add_cluster_options, read_cluster_options
from dnet_core.errors import RequestError
from dnet_core.option_types import MAX_NAME_BYTES, a_name, at_least_one, one_of
from dnet_core.planning import DEFAULT_CONTEXT_TOKENS
from dnet_core.profile.device import MOST_DISK_READ_BYTES, profile_from_json, profile_to_json, request_for
from dnet_core.profile.model import profile_model
from dnet_core.profile.model_json import (
    links_from_json,
    links_to_json,
    model_profile_from_json,
    model_profile_to_json,
)
from dnet_core.solve.plan import solve
from dnet_core.store.catalog import read_headers
from dnet_core.tasks import TaskScope
from dnet_core.types.devices import Medium
from dnet_core.types.plan import Objective, SolveRequest
from dnet_core.types.profiles import (
    DeviceProfile,
    LayerShape,
    LinkProfile,
    ModelProfile,
    ProfileRequest,
    Quantization,
    WeightFormat,
)

COMMANDS = ("profile", "solve")

_COMMON_LAYER = LayerShape(hidden=4096, intermediate=14336, num_heads=32, num_kv_heads=8, head_dim=128)
"""What is measured when no model is named: a layer of an 8-billion model."""
_COMMON_FORMATS = (
    WeightFormat("bf16"),
    WeightFormat("bf16", Quantization(8, 64, "affine")),
    WeightFormat("bf16", Quantization(4, 64, "affine")),
)


@dataclass(frozen=True, slots=True)
class _Assumed:
    """A hop as one may expect it where nobody has measured."""

    latency_s: float
    bytes_per_s: float


_ASSUMED = {
    Medium.THUNDERBOLT: _Assumed(300e-6, 2e9),
    Medium.ETHERNET: _Assumed(500e-6, 110e6),  # 1 Gbit/s
    Medium.WIFI: _Assumed(3e-3, 40e6),
}


def run(arguments: Sequence[str]) -> None:
    """Run one of `COMMANDS` and print what it finds. Raises DnetErrors; SystemExit 2 for wrong options."""
    options = _parse(arguments)
    match options.command, getattr(options, "what", None):
        case "solve", _:
            text = asyncio.run(_solve(options))
        case _, "device":
            text = asyncio.run(_profile_device(options))
        case _, "links":
            text = asyncio.run(_profile_links(options))
        case _:
            text = asyncio.run(_profile_model(options))
    print(text, end="" if text.endswith("\n") else "\n")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dnet-api",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    profile = commands.add_parser("profile", help="measure this device or the links; read a model's headers")
    kinds = profile.add_subparsers(dest="what", required=True)
    device = kinds.add_parser("device", help="measure this device with a shard of its own")
    device.add_argument(
        "--model", metavar="ID_OR_PATH", help="measure what this model needs (default: a common layer)"
    )
    device.add_argument(
        "--name",
        type=a_name,
        default=socket.gethostname().split(".")[0][:MAX_NAME_BYTES] or "here",
        help="what to call it (default: %(default)s)",
    )
    device.add_argument("--fresh", action="store_true", help="even if it was measured before")
    links = kinds.add_parser("links", help="measure every hop between the devices that are found")
    add_cluster_options(links)
    model = kinds.add_parser("model", help="bytes, caches and arithmetic from a model's headers")
    model.add_argument("model", metavar="MODEL", help="Hugging Face id, local directory or .gguf file")
    solving = commands.add_parser("solve", help="make a plan from saved profiles; needs no device")
    _add_solve_options(solving)
    for each in (device, links, model, solving):
        each.add_argument("--json", action="store_true", help="JSON instead of tables")
    return parser.parse_args(arguments)


def _add_solve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--devices", nargs="+", type=Path, required=True, metavar="FILE", help="device profiles"
    )
    parser.add_argument("--links", type=Path, metavar="FILE", help="link profiles (default: assumed)")
    parser.add_argument(
        "--assume-links",
        type=one_of(Medium),
        choices=list(_ASSUMED),
        default=Medium.ETHERNET,
        help="what all links are like without --links (default: %(default)s)",
    )
    parser.add_argument("--model", required=True, metavar="FILE|ID", help="a model profile, or a model")
    parser.add_argument(
        "--seq-len", type=at_least_one, metavar="TOKENS", help="context (default: the model's, at most 8192)"
    )
    parser.add_argument(
        "--kv-bits",
        type=int,
        choices=[16, 8, 4],
        default=16,
        help="of each number in the KV cache (default: 16)",
    )
    parser.add_argument(
        "--batch", type=at_least_one, default=1, metavar="N", help="sequences at once (default: 1)"
    )
    parser.add_argument(
        "--prompt-tokens",
        type=at_least_one,
        default=1000,
        metavar="N",
        help="of a typical request (default: 1000)",
    )
    parser.add_argument(
        "--answer-tokens",
        type=at_least_one,
        default=300,
        metavar="N",
        help="of a typical request (default: 300)",
    )
    parser.add_argument(
        "--objective",
        type=one_of(Objective),
        choices=list(Objective),
        default=Objective.LATENCY,
        help="what is made best: one request, or many together (default: %(default)s)",
    )
    parser.add_argument(
        "--max-rounds",
        type=at_least_one,
        default=8,
        metavar="K",
        help="at most so many windows on a device (default: 8)",
    )
    parser.add_argument("--no-streaming", action="store_true", help="all layers must stay in memory")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="DEVICE",
        help="gets no layers; may be given several times",
    )
    parser.add_argument("--head", metavar="DEVICE", help="who has the embedding (default: whoever is best)")


# ---- profile ----


async def _profile_model(options: argparse.Namespace) -> str:
    profile = await _model(options.model)
    return model_profile_to_json(profile) if options.json else "\n".join(plan_tables.model_lines(profile))


async def _profile_device(options: argparse.Namespace) -> str:
    async with TaskScope() as tasks:
        cluster = _started(ClusterOptions(), tasks)
        peers = await cluster.usable_peers()
        wanted = await _measured_layer(options.model, await chunk_tokens_of(cluster, peers))
        (device,), _ = await cluster.profiles(peers, wanted, options.fresh)
    device = replace(device, peer=options.name)
    return profile_to_json(device) if options.json else "\n".join(plan_tables.device_lines(device))


async def _measured_layer(model: str | None, chunk_tokens: int) -> ProfileRequest:
    """What to measure: a layer of `model`, or one that is like those of many."""
    if model is None:
        return ProfileRequest(_COMMON_LAYER, _COMMON_FORMATS, chunk_tokens, MOST_DISK_READ_BYTES)
    checkpoint = await read_headers(model)
    return request_for(profile_model(checkpoint), checkpoint.config, chunk_tokens)


async def _profile_links(options: argparse.Namespace) -> str:
    async with TaskScope() as tasks:
        cluster = _started(read_cluster_options(options), tasks)
        peers = await cluster.usable_peers()
        links = await cluster.links(peers)
    if not links:
        names = ", ".join(peer.name for peer in peers)
        raise RequestError(f"there is no link to measure: only {names} was found; name others with --peer")
    return links_to_json(links) if options.json else "\n".join(plan_tables.link_lines(links))


def _started(options: ClusterOptions, tasks: TaskScope) -> Cluster:
    cluster = Cluster(options, tasks, emit=lambda _event: None)
    cluster.start()
    return cluster


# ---- solve ----


async def _solve(options: argparse.Namespace) -> str:
    devices = tuple(device for path in options.devices for device in _read_devices(path))
    if not devices:
        raise RequestError("the --devices files hold no device: dnet-api profile device --json makes them")
    if unknown := set(options.exclude) - {device.peer for device in devices}:
        raise RequestError(f"--exclude {min(unknown)}: no --devices file is of a device with that name")
    model = await _model(options.model)
    links, assumptions = _links(options, devices)
    context = min(options.seq_len or DEFAULT_CONTEXT_TOKENS, model.context_tokens)
    try:
        request = SolveRequest(
            model=model,
            devices=devices,
            links=links,
            context_tokens=context,
            kv_bits=options.kv_bits,
            batch=options.batch,
            prompt_tokens=min(options.prompt_tokens, context),
            answer_tokens=options.answer_tokens,
            chunk_tokens=min(CHUNK_TOKENS.get(d.backend, CHUNK_TOKENS["cpu"]) for d in devices),
            objective=options.objective,
            max_rounds=options.max_rounds,
            allow_streaming=not options.no_streaming,
            head_device=options.head,
            excluded=frozenset(options.exclude),
        )
    except ValueError as error:
        raise RequestError(f"{error}: each --devices file must be of another device") from error
    solution = solve(request)
    if options.json:
        told = {**plan_json.topology(request, solution), "assumptions": assumptions}
        return json.dumps(told, indent=2)
    return "\n".join(plan_tables.plan_lines(request, solution, assumptions))


async def _model(name: str) -> ModelProfile:
    """A saved profile (`.json`), or a model's headers."""
    if name.endswith(".json"):
        return model_profile_from_json(_read(Path(name)), name)
    return replace(profile_model(await read_headers(name)), model=name)


def _read_devices(path: Path) -> list[DeviceProfile]:
    """One profile, or a list of them."""
    text = _read(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path} is not JSON: {error}") from error
    profiles = value if isinstance(value, list) else [value]
    return [profile_from_json(json.dumps(profile), str(path)) for profile in profiles]


def _links(
    options: argparse.Namespace, devices: Sequence[DeviceProfile]
) -> tuple[tuple[LinkProfile, ...], list[str]]:
    """The links, and what about them is assumed."""
    if options.links is not None:
        return links_from_json(_read(options.links), str(options.links)), []
    medium: Medium = options.assume_links
    hop = _ASSUMED[medium]
    links = tuple(
        LinkProfile(a.peer, b.peer, "assumed", medium.value, hop.latency_s, hop.bytes_per_s)
        for a in devices
        for b in devices
        if a.peer != b.peer
    )
    text = (
        f"every link is like {medium.value}: {plan_tables.seconds(hop.latency_s)} one way,"
        f" {plan_tables.size(hop.bytes_per_s)}/s (measured ones: dnet-api profile links --json, then --links)"
    )
    return links, [text] if links else []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RequestError(f"cannot read {path}: {reason}") from error
