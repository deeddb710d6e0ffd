"""The devices, the plan, and loading it: `/v1/devices`, `/v1/prepare_topology`, `/v1/load_model`, ...

The names and shapes are those that users of dnet know (hence topology, instance, residency_size). What
prepare answers can be posted to load unchanged, now or later: a plan that is not the last one made here is
measured and checked first.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from dnet_core import plan_json
from dnet_core.api import sse
from dnet_core.api.body import Body, Many
from dnet_core.api.errors import ApiError
from dnet_core.api.reading import read
from dnet_core.api.service import Service
from dnet_core.coordinator import Coordinator, canonical
from dnet_core.errors import DnetError
from dnet_core.loading import LoadedModel
from dnet_core.plan_json import KV_NAMES, Json
from dnet_core.planning import Prepared, Wishes
from dnet_core.transport.control import ShardStatus
from dnet_core.types.devices import UNIX, Peer
from dnet_core.types.ring import LayerWindow, RingPlan

_MAX_BATCH_EXP = 8
"""A batch of 256: far more than a ring of desktop machines has users."""

# ---- what is read ----


def _kv_bits(value: object) -> object:
    """`"4bit"`, `"8bit"`, `"fp16"`, or the number itself."""
    for bits, name in KV_NAMES.items():
        if value in (name, bits):
            return bits
    raise PydanticCustomError("kv_bits", "must be '4bit', '8bit' or 'fp16'")


def _windows(value: object) -> object:
    """`[[0, 1], [4, 5]]`, a list per round, or `[0, 1, 4, 5]`: each run of layers is a window."""
    if not isinstance(value, list):
        return value
    nested = any(isinstance(item, list) for item in value)
    rounds = [item for item in value if item != []] if nested else _runs(value)
    return tuple(_window(layers) for layers in rounds)


def _runs(layers: list[object]) -> list[list[object]]:
    """Cut a flat list where the numbers do not follow one another."""
    runs: list[list[object]] = []
    for layer in layers:
        if runs and isinstance(layer, int) and runs[-1][-1] == layer - 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return runs


def _window(layers: object) -> LayerWindow:
    if not isinstance(layers, list) or not all(type(layer) is int and layer >= 0 for layer in layers):
        raise PydanticCustomError("layers", "must be layer numbers, one list per round")
    if any(after != before + 1 for before, after in pairwise(layers)):
        raise PydanticCustomError("layers", "the layers of one round must follow one another")
    return LayerWindow(layers[0], layers[-1] + 1)


def _not_empty(windows: tuple[LayerWindow, ...]) -> tuple[LayerWindow, ...]:
    if not windows:
        raise PydanticCustomError("layers", "there are none: leave the device out instead")
    return windows


class AssignmentBody(Body):
    """The layers of one device; without `residency_size` as many of them stay in memory as fit.

    What follows from these (window_size, next_instance, what streams) is not read.
    """

    instance: str
    layers: Annotated[tuple[LayerWindow, ...], BeforeValidator(_windows), AfterValidator(_not_empty)]
    residency_size: int | None = Field(default=None, ge=0)


def _named_once(assignments: tuple[AssignmentBody, ...]) -> tuple[AssignmentBody, ...]:
    if len({a.instance for a in assignments}) < len(assignments):
        raise PydanticCustomError("assignments", "a device is named twice: give it one list per round")
    return assignments


Assignments = Annotated[Many[AssignmentBody], AfterValidator(_named_once)]


class WishesBody(Body):
    """What may be wanted of any plan; what is missing stays as this process was started."""

    kv_bits: Annotated[int, BeforeValidator(_kv_bits)] | None = None
    seq_len: int | None = Field(default=None, ge=1)
    max_batch_exp: int | None = Field(default=None, ge=0, le=_MAX_BATCH_EXP)

    def over(self, wishes: Wishes) -> Wishes:
        return replace(
            wishes,
            context_tokens=self.seq_len or wishes.context_tokens,
            kv_bits=self.kv_bits or wishes.kv_bits,
            batch=wishes.batch if self.max_batch_exp is None else 2**self.max_batch_exp,
        )


class PrepareBody(WishesBody):
    model: str


class ManualBody(PrepareBody):
    """A placement made by hand, on devices that were found: addresses in `devices` are not read."""

    assignments: Assignments
    num_layers: int | None = Field(default=None, ge=1)


class LoadBody(WishesBody):
    """What prepare answered, or less: a model alone goes where its last plan says, `{}` is the last plan."""

    model: str | None = None
    assignments: Assignments | None = None
    num_layers: int | None = Field(default=None, ge=1)


# ---- routes ----


async def devices(service: Service, request: Request) -> Response:
    """Every device by its name: where it is, what it holds, or why it cannot be used."""
    found = await service.coordinator.survey()
    return sse.reply({"devices": {peer.name: _device(peer, status) for peer, status in found}})


async def prepare_topology(service: Service, request: Request) -> Response:
    """Measure the devices and place the model; nothing is loaded."""
    body = await read(request, PrepareBody)
    coordinator = service.coordinator
    return sse.reply(_topology(service, await coordinator.prepare(body.model, body.over(coordinator.wishes))))


async def prepare_topology_manual(service: Service, request: Request) -> Response:
    """Check and predict a placement made by hand; nothing is loaded."""
    body = await read(request, ManualBody)
    _check_layers(body)
    prepared = await _prepare_by_hand(service.coordinator, body.model, body, body.assignments)
    return sse.reply(_topology(service, prepared))


async def topology(service: Service, request: Request) -> Response:
    """The plan that was made last. 400 before there is one."""
    return sse.reply(_topology(service, _last(service)))


async def load_model(service: Service, request: Request) -> Response:
    """Load a model as its plan says, in place of what was loaded; answers when it is ready.

    The load goes on when the client hangs up or the endpoint stops: the model is the whole program's.
    """
    body = await read(request, LoadBody)
    model = body.model if body.model is not None else _last(service).model
    _check_layers(body)
    async with service.attended(request):  # not begun when the endpoint has stopped meanwhile
        loading = service.coordinator.keep_on(_load(service.coordinator, model, body))
        return sse.reply(_loaded(await asyncio.shield(loading)))


async def _load(coordinator: Coordinator, model: str, body: LoadBody) -> LoadedModel:
    last = coordinator.prepared
    if body.assignments is not None and not (last is not None and _is_same(last.solution.plan, model, body)):
        await coordinator.unload()  # devices that serve cannot be measured
        last = await _prepare_by_hand(coordinator, model, body, body.assignments)
    plan = last.solution.plan if last is not None and last.model == canonical(model) else None
    return await coordinator.load(model, plan)


async def unload_model(service: Service, request: Request) -> Response:
    """Free the memory on every device. The plan stays."""
    loaded = service.coordinator.loaded
    await service.coordinator.unload()
    peers = [a.peer for a in loaded.plan.assignments] if loaded else []
    return sse.reply(
        {
            "success": True,
            "shard_statuses": [{"instance": peer, "success": True, "message": None} for peer in peers],
            "message": f"{loaded.model} is unloaded" if loaded else "nothing was loaded",
        }
    )


def _check_layers(body: ManualBody | LoadBody) -> None:
    """Raise ApiError 400 when the assignments do not reach the stated number of layers."""
    if body.assignments is None:
        return
    reached = max((window.stop for a in body.assignments for window in a.layers), default=0)
    if body.num_layers not in (None, reached):
        message = f"assignments: they end at layer {reached} of {body.num_layers}"
        raise ApiError(400, message, param="assignments", code="invalid_value")


async def _prepare_by_hand(
    coordinator: Coordinator,
    model: str,
    body: ManualBody | LoadBody,
    assignments: tuple[AssignmentBody, ...],
) -> Prepared:
    return await coordinator.prepare_by_hand(
        model,
        {a.instance: a.layers for a in assignments},
        {a.instance: a.residency_size for a in assignments if a.residency_size is not None},
        body.over(coordinator.wishes),
    )


def _last(service: Service) -> Prepared:
    prepared = service.coordinator.prepared
    if prepared is None:
        message = "there is no plan yet: post a model to /v1/prepare_topology first"
        raise ApiError(400, message, code="no_topology")
    return prepared


def _is_same(plan: RingPlan, model: str, body: LoadBody) -> bool:
    """Whether `body` asks for `plan`, so that nothing has to be measured and checked again."""
    given = {a.instance: a for a in body.assignments or ()}
    return (
        plan.model == canonical(model)
        and body.kv_bits in (None, plan.kv_bits)
        and body.seq_len in (None, plan.context_tokens)
        and given.keys() == {a.peer for a in plan.assignments}
        and all(given[a.peer].layers == a.windows for a in plan.assignments)
        and all(given[a.peer].residency_size in (None, len(a.resident)) for a in plan.assignments)
    )


# ---- what is told ----


def _topology(service: Service, prepared: Prepared) -> Json:
    """The plan, where its devices are, and whether it is what is loaded now."""
    told = plan_json.topology(prepared.request, prepared.solution)
    peers = {peer.name: peer for peer in service.coordinator.peers}
    profiles = told["devices"]
    assert isinstance(profiles, list), "plan_json lists the devices"
    loaded = service.coordinator.loaded
    return {
        **told,
        "devices": [{**device, **_whereabouts(peers.get(device["instance"]))} for device in profiles],
        "loaded": loaded is not None and loaded.plan == prepared.solution.plan,
    }


def _whereabouts(peer: Peer | None) -> Json:
    """None: it has left since the plan was made."""
    if peer is None:
        return {}
    host = peer.addresses[0].host
    return {
        "local_ip": "127.0.0.1" if host.startswith(UNIX) else host,
        "server_port": peer.http_port,
        "shard_port": peer.grpc_port,
    }


def _device(peer: Peer, status: ShardStatus | DnetError) -> Json:
    told: Json = {
        "instance": peer.name,
        **_whereabouts(peer),
        "is_manager": False,
        "is_busy": isinstance(status, ShardStatus) and bool(status.sessions),
        "addresses": [
            {"host": a.host, "medium": a.medium.value} for a in peer.addresses if not a.host.startswith(UNIX)
        ],
        "source": peer.source.value,
        "version": peer.version,
        "cannot_join": peer.cannot_join,
    }
    if isinstance(status, DnetError):
        return {**told, "error": str(status)}
    return {
        **told,
        "error": None,
        "backend": status.backend,
        "memory_total_bytes": status.memory_total_bytes,
        "active_bytes": status.active_bytes,
        "model": status.model,
        "sessions": len(status.sessions),
    }


def _loaded(loaded: LoadedModel) -> Json:
    return {
        "model": loaded.model,
        "success": True,
        "shard_statuses": [
            {"instance": a.peer, "success": True, "layers_loaded": list(a.layers), "message": None}
            for a in loaded.plan.assignments
        ],
        "message": f"{loaded.model} is ready, with a context of {loaded.context_tokens:,} tokens",
    }
