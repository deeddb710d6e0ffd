"""The models of one head: what is here, what the hub has, what fits the devices; downloads in the background.

Figures come from the solver over the devices as they were measured for the last plan, or over a first
measurement; they are kept until the devices change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from dnet_core import planning
from dnet_core.chunks import chunk_tokens_of
from dnet_core.cluster import Cluster
from dnet_core.errors import DnetError, InfeasiblePlan, NotReady, RequestError
from dnet_core.events import STOPPED, DownloadEnded, DownloadProgressed, Event
from dnet_core.planning import Prepared, Wishes
from dnet_core.profile.device import MOST_DISK_READ_BYTES
from dnet_core.profile.model import profile_model
from dnet_core.profile.published import WELL_KNOWN, Shape, find_well_known, published_profile
from dnet_core.store import shelf
from dnet_core.store.catalog import read_headers
from dnet_core.store.fetch import fetch, parse_hub_id, search_hub
from dnet_core.tasks import TaskScope
from dnet_core.types.devices import PeerSource
from dnet_core.types.models import Fits, ModelEntry, ModelFit, ModelOrigin, Room, TooBig
from dnet_core.types.plan import Solution, SolveRequest
from dnet_core.types.profiles import (
    DeviceProfile,
    LayerShape,
    LinkProfile,
    ModelProfile,
    ProfileRequest,
    Quantization,
    WeightFormat,
)

_TYPICAL = LayerShape(hidden=2048, intermediate=6144, num_heads=16, num_kv_heads=8, head_dim=128)
"""What devices are measured with before anybody has asked for a model."""
_FORMATS = (WeightFormat("bf16", Quantization(4, 64, "affine")), WeightFormat("bf16"))


@dataclass(frozen=True, slots=True)
class Facts:
    """The devices as they were measured, and the links between them."""

    devices: tuple[DeviceProfile, ...]
    links: tuple[LinkProfile, ...]
    chunk_tokens: int
    one_machine: bool  # as of `planning.Prepared`


class Library:
    """Owned by the coordinator, whose tasks it uses; `planned` is the plan made last, `loaded` the model."""

    def __init__(
        self,
        cluster: Cluster,
        tasks: TaskScope,
        emit: Callable[[Event], None],
        planned: Callable[[], Prepared | None],
        loaded: Callable[[], str | None],
        wishes: Wishes,
    ) -> None:
        self._cluster = cluster
        self._tasks = tasks
        self._emit = emit
        self._planned = planned
        self._loaded = loaded
        self._wishes = wishes
        self._measuring = asyncio.Lock()
        self._facts: Facts | None = None
        self._fits: dict[tuple[str, Facts], ModelFit] = {}
        self._downloads: dict[str, asyncio.Task[None]] = {}

    # ---- what there is ----

    async def here(self) -> tuple[ModelEntry, ...]:
        """Models on this machine, whole or partly. Raises LoadError when the disk cannot be read."""
        return await asyncio.to_thread(shelf.entries)

    async def elsewhere(self) -> Mapping[str, frozenset[str]]:
        """Of each device of another machine the models that it has; one that does not say is left out."""
        others = [
            p for p in self._cluster.peers if p.source is not PeerSource.LOCAL and p.cannot_join is None
        ]
        told = await asyncio.gather(*(self._models_of(peer.name) for peer in others))
        return {peer.name: models for peer, models in zip(others, told, strict=True) if models is not None}

    async def _models_of(self, peer: str) -> frozenset[str] | None:
        try:
            async with self._cluster.client(peer) as shard:
                return frozenset(await shard.models())
        except DnetError:
            return None

    async def room(self) -> Room:
        """What is free where models are put. Raises LoadError when the disk cannot be read."""
        return await asyncio.to_thread(shelf.room)

    async def well_known(self) -> tuple[ModelEntry, ...]:
        """A good model of every size, small to large; no network is used."""
        return tuple(map(well_known_entry, WELL_KNOWN))

    async def search(self, words: str) -> tuple[ModelEntry, ...]:
        """Models on the hub. Cancelling ends the search. Raises LoadError when the hub does not answer."""
        return await search_hub(words)

    # ---- what fits ----

    async def fit(self, model: str) -> ModelFit:
        """What `model` would do on the devices that are here now; nothing is loaded, no weight is fetched.

        Raises what `coordinator.prepare` raises for a model that cannot be read.
        """
        facts = await self._measured()
        known = self._fits.get((model, facts))
        if known is None:
            profile = await _profile(model)
            known = await asyncio.to_thread(fit_of, profile, facts, self._wishes)
            self._fits[model, facts] = known
        return known

    async def _measured(self) -> Facts:
        """The devices of the last plan if all are still there, else a first measurement, made once."""
        here = {peer.name for peer in await self._cluster.usable_peers()}
        async with self._measuring:
            found = self._of_plan(here) or self._facts
            if found is None or {device.peer for device in found.devices} != here:
                try:
                    found = self._facts = await self._measure()
                except NotReady:  # a model is being loaded by now: its plan knows the devices
                    found = self._of_plan(here)
                    if found is None:
                        raise
            return found

    def _of_plan(self, here: set[str]) -> Facts | None:
        """What the last plan was made from, if it knew the devices that are `here`."""
        prepared = self._planned()
        if prepared is None or {device.peer for device in prepared.request.devices} != here:
            return None
        request = prepared.request
        return Facts(request.devices, request.links, request.chunk_tokens, prepared.one_machine)

    async def _measure(self) -> Facts:
        if self._loaded() is not None:
            raise NotReady("a device has come or gone, and devices that serve cannot be measured")
        peers = await self._cluster.usable_peers()
        chunk_tokens = await chunk_tokens_of(self._cluster, peers)
        request = ProfileRequest(_TYPICAL, _FORMATS, chunk_tokens, MOST_DISK_READ_BYTES)
        devices, _ = await self._cluster.profiles(peers, request)
        names = {device.peer for device in devices}
        links = await self._cluster.links(tuple(peer for peer in peers if peer.name in names))
        return Facts(devices, links, chunk_tokens, planning.is_one_machine(peers))

    def forget(self) -> None:
        """Measure the devices again before the next answer."""
        self._facts = None
        self._fits.clear()

    # ---- downloads ----

    @property
    def downloading(self) -> tuple[str, ...]:
        """The models that are being fetched beside everything else."""
        return tuple(self._downloads)

    def start_download(self, model: str) -> None:
        """Fetch `model` beside everything else; DownloadProgressed and DownloadEnded tell of it.

        Raises RequestError for what is not on the hub. A model that is being fetched goes on.
        """
        if parse_hub_id(model) is None:
            raise RequestError(f"'{model}' is not on the hub: there is nothing to fetch")
        if model not in self._downloads:
            self._downloads[model] = task = self._tasks.start(self._download(model))
            task.add_done_callback(partial(self._unbegun, model))

    def cancel_download(self, model: str) -> None:
        """Stop fetching `model`; what has come stays, and the next fetch goes on from it."""
        task = self._downloads.get(model)
        if task is not None:
            task.cancel()

    async def _download(self, model: str) -> None:
        hub_id = parse_hub_id(model)
        assert hub_id is not None, "checked when it was asked for"
        noting: asyncio.Task[None] | None = None

        def progress(done_bytes: int, total_bytes: int) -> None:
            nonlocal noting
            if noting is None:  # beside the event loop, as all that the shelf does
                noting = self._tasks.start(asyncio.to_thread(shelf.begin_fetch, hub_id, total_bytes))
            self._emit(DownloadProgressed(model, done_bytes, total_bytes))

        try:
            await fetch(hub_id, progress)
            if noting is not None:
                await noting
            await asyncio.to_thread(shelf.end_fetch, hub_id)
        except DnetError as error:
            self._end(model, str(error))
        except asyncio.CancelledError:
            self._end(model, STOPPED)
            raise
        else:
            self._end(model, None)

    def _unbegun(self, model: str, task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step runs nothing of `_download`, not even its end."""
        if self._downloads.get(model) is task:
            self._end(model, STOPPED)

    def _end(self, model: str, problem: str | None) -> None:
        self._downloads.pop(model, None)
        self._emit(DownloadEnded(model, problem))

    async def delete(self, model: str) -> int:
        """Take `model` off this machine; returns the bytes that became free.

        Raises RequestError while it is loaded or fetched, and when the store does not have it; LoadError.
        """
        if model == self._loaded():
            raise RequestError(f"'{model}' is loaded: load another one first")
        if model in self._downloads:
            raise RequestError(f"'{model}' is being fetched: cancel that first")
        return await asyncio.to_thread(shelf.delete, model)


def well_known_entry(shape: Shape) -> ModelEntry:
    """A published model as an entry of the list."""
    size = published_profile(shape).weight_bytes
    return ModelEntry(shape.id, ModelOrigin.LISTED, size, 0, shape.quantization, shape.num_layers)


async def _profile(model: str) -> ModelProfile:
    """From the model's own headers if they are here or can be had without asking twice, else as published."""
    shape = find_well_known(model)
    if shape is not None and not await asyncio.to_thread(_is_here, model):
        return published_profile(shape)
    return profile_model(await read_headers(model))


def _is_here(model: str) -> bool:
    return any(entry.id == model and entry.is_here for entry in shelf.entries())


def fit_of(model: ModelProfile, facts: Facts, wishes: Wishes) -> ModelFit:
    """Ask the solver. A device that was not measured with the model's formats stands in with what it was."""
    measured = {speed.weight_format for device in facts.devices for speed in device.speeds}
    devices = tuple(_with_formats(device, model.weight_formats) for device in facts.devices)
    request = planning.request_from(model, devices, facts.links, facts.chunk_tokens, wishes)
    try:
        solution = planning.place(request, one_machine=facts.one_machine)
    except (InfeasiblePlan, RequestError) as error:
        missing = sum(error.missing_bytes.values()) if isinstance(error, InfeasiblePlan) else 0
        return TooBig(model.num_layers, model.weight_bytes, missing, str(error).splitlines()[0])
    return _fits(request, solution, is_measured=set(model.weight_formats) <= measured)


def _with_formats(device: DeviceProfile, formats: tuple[str, ...]) -> DeviceProfile:
    known = {speed.weight_format for speed in device.speeds}
    others = tuple(replace(device.speeds[0], weight_format=name) for name in formats if name not in known)
    return replace(device, speeds=(*device.speeds, *others))


def _fits(request: SolveRequest, solution: Solution, *, is_measured: bool) -> Fits:
    return Fits(
        num_layers=request.model.num_layers,
        weight_bytes=request.model.weight_bytes,
        num_devices=len(solution.plan.assignments),
        num_streamed=sum(len(a.streamed) for a in solution.plan.assignments),
        tokens_per_s=solution.prediction.tokens_per_s,
        ttft_s=solution.prediction.ttft_s,
        is_measured=is_measured,
    )
