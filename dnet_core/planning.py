"""From a model's name and the devices at hand to a plan: facts are gathered here, the choice is `solve`'s."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from dnet_core.chunks import chunk_tokens_of, widen
from dnet_core.cluster import Cluster
from dnet_core.errors import InfeasiblePlan, RequestError
from dnet_core.profile.device import request_for
from dnet_core.profile.model import profile_model
from dnet_core.store.catalog import read_headers
from dnet_core.types.devices import Peer, PeerSource
from dnet_core.types.plan import DeviceReason, Objective, Pin, Solution, SolveRequest
from dnet_core.types.profiles import DeviceProfile, LinkProfile, ModelProfile
from dnet_core.types.ring import LayerWindow, RingPlan, split_evenly

log = logging.getLogger(__name__)

DEFAULT_CONTEXT_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user may want of a plan. `context_tokens` None: the model's own, at most 8192."""

    context_tokens: int | None = None
    kv_bits: int = 16
    batch: int = 1
    objective: Objective = Objective.LATENCY
    max_rounds: int = 8
    pins: tuple[Pin, ...] = ()
    excluded: frozenset[str] = frozenset()


Told = Callable[[SolveRequest], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan for `model` with the facts it was made from, so that it can be changed by hand."""

    model: str
    request: SolveRequest
    solution: Solution
    one_machine: bool  # shards of one machine are started to try a ring: all of them take part

    @property
    def known(self) -> frozenset[str]:
        """The devices that have been measured."""
        return frozenset(device.peer for device in self.request.devices)

    @property
    def budgets(self) -> dict[str, int]:
        """Bytes that each of these may take."""
        return {device.peer: device.memory_budget_bytes for device in self.request.devices}


async def prepare(
    cluster: Cluster, model: str, wishes: Wishes, told: Told, without: Collection[str] = ()
) -> Prepared:
    """Measure the devices and place `model` on them; nothing is loaded and no weight is fetched.

    `without` are devices that are not even looked at. `told` hears the facts before the choice is made.
    Raises UnknownModel and other RequestErrors, NotReady, InfeasiblePlan.
    """
    peers = tuple(peer for peer in await cluster.usable_peers() if peer.name not in without)
    request, failed = await _facts(cluster, peers, model, wishes)
    told(request)
    one_machine = is_one_machine(peers)
    # A fraction of a second of arithmetic: beside the event loop, so that streams and screen go on.
    solution = await asyncio.to_thread(place, request, one_machine=one_machine)
    return Prepared(model, request, replace(solution, reasons=(*solution.reasons, *failed)), one_machine)


async def prepare_by_hand(
    cluster: Cluster,
    model: str,
    windows: Mapping[str, tuple[LayerWindow, ...]],
    num_resident: Mapping[str, int],
    wishes: Wishes,
    told: Told,
) -> Prepared:
    """Measure the devices and check a placement made by hand; otherwise like `prepare`."""
    peers = await cluster.usable_peers()
    request, failed = await _facts(cluster, peers, model, wishes)
    told(request)
    solution = await asyncio.to_thread(_plan_from_edit, request, windows, num_resident)
    reasons = (*solution.reasons, *failed)
    return Prepared(model, request, replace(solution, reasons=reasons), is_one_machine(peers))


def place(request: SolveRequest, *, one_machine: bool) -> Solution:
    """Choose where the layers go. Shards of one machine share them equally, though one would be faster."""
    names = tuple(device.peer for device in request.devices if device.peer not in request.excluded)
    if not one_machine or len(names) < 2 or request.pins:
        return _solve(request)
    model = request.model
    if model.num_layers < len(names):
        raise RequestError(f"'{model.model}' has {model.num_layers} layers: too few for {len(names)} shards")
    plan = split_evenly(model.model, model.num_layers, names, 1, request.context_tokens)
    return _plan_from_edit(request, {a.peer: a.windows for a in plan.assignments})


def replan(prepared: Prepared, excluded: Collection[str] = (), pins: tuple[Pin, ...] = ()) -> Solution:
    """Choose again from the facts of `prepared`, without `excluded` and around `pins`; nothing is measured.

    Raises InfeasiblePlan and RequestError.
    """
    request = replace(prepared.request, excluded=frozenset(excluded), pins=pins)
    return _with_unmeasured(prepared, place(request, one_machine=prepared.one_machine))


def plan_on(prepared: Prepared, names: Collection[str], plan: RingPlan) -> Prepared:
    """Place the model on the devices `names` alone, as `plan` serves it, from the facts of `prepared`.

    A device that serves cannot be measured, and need not be: it is what it was. Pins are kept if they can be.
    Raises InfeasiblePlan and RequestError.
    """
    old = prepared.request
    request = replace(
        old,
        devices=tuple(device for device in old.devices if device.peer in names),
        links=tuple(link for link in old.links if {link.source, link.target} <= set(names)),
        pins=tuple(pin for pin in old.pins if pin.peer in names),
        context_tokens=plan.context_tokens,
        prompt_tokens=min(old.prompt_tokens, plan.context_tokens),
        kv_bits=plan.kv_bits,
    )
    try:
        solution = place(request, one_machine=prepared.one_machine)
    except (InfeasiblePlan, RequestError):
        if not request.pins:
            raise
        request = replace(request, pins=())
        solution = place(request, one_machine=prepared.one_machine)
    return replace(prepared, request=request, solution=solution)


def predict(
    prepared: Prepared, windows: Mapping[str, tuple[LayerWindow, ...]], num_resident: Mapping[str, int]
) -> Solution:
    """Check and predict a placement made by hand from the facts of `prepared`; nothing is measured.

    Raises InfeasiblePlan and RequestError.
    """
    request = replace(prepared.request, excluded=frozenset(), pins=())
    return _with_unmeasured(prepared, _plan_from_edit(request, windows, num_resident))


def _solve(request: SolveRequest) -> Solution:
    from dnet_core.solve.plan import solve  # noqa: PLC0415 - SciPy takes a second: not while a screen starts

    return widen(request, solve(request))


def _plan_from_edit(
    request: SolveRequest,
    windows: Mapping[str, tuple[LayerWindow, ...]],
    num_resident: Mapping[str, int] | None = None,
) -> Solution:
    from dnet_core.solve.plan import plan_from_edit  # noqa: PLC0415 - as above

    return widen(request, plan_from_edit(request, windows, num_resident), num_resident)


def _with_unmeasured(prepared: Prepared, solution: Solution) -> Solution:
    """Say of devices that could not be measured what `prepared` says."""
    known = {device.peer for device in prepared.request.devices}
    others = tuple(reason for reason in prepared.solution.reasons if reason.peer not in known)
    return replace(solution, reasons=(*solution.reasons, *others))


def request_from(
    model: ModelProfile,
    devices: tuple[DeviceProfile, ...],
    links: tuple[LinkProfile, ...],
    chunk_tokens: int,
    wishes: Wishes,
) -> SolveRequest:
    """What the solver is asked: the typical request, with what is wished."""
    context = min(wishes.context_tokens or DEFAULT_CONTEXT_TOKENS, model.context_tokens)
    return SolveRequest(
        model=model,
        devices=devices,
        links=links,
        context_tokens=context,
        kv_bits=wishes.kv_bits,
        batch=wishes.batch,
        prompt_tokens=min(1000, context),
        chunk_tokens=chunk_tokens,
        objective=wishes.objective,
        max_rounds=wishes.max_rounds,
        excluded=wishes.excluded,
        pins=wishes.pins,
    )


async def _facts(
    cluster: Cluster, peers: tuple[Peer, ...], model: str, wishes: Wishes
) -> tuple[SolveRequest, tuple[DeviceReason, ...]]:
    """Everything the solver asks for, and why some devices could not be measured."""
    checkpoint = await read_headers(model)
    profile = replace(profile_model(checkpoint), model=model)
    chunk_tokens = await chunk_tokens_of(cluster, peers)
    measured, failed = await cluster.profiles(peers, request_for(profile, checkpoint.config, chunk_tokens))
    names = {device.peer for device in measured}
    links = await cluster.links(tuple(peer for peer in peers if peer.name in names))
    request = request_from(profile, measured, links, chunk_tokens, wishes)
    return request, tuple(DeviceReason(name, False, why) for name, why in failed.items())


def is_one_machine(peers: tuple[Peer, ...]) -> bool:
    """Whether all of `peers` are shards of this machine."""
    return all(peer.source is PeerSource.LOCAL for peer in peers)
