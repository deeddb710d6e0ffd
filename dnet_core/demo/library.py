"""The library of a simulated cluster: the well-known models, some of them "here", and slow downloads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace

from dnet_core.demo import models
from dnet_core.demo.worlds import World
from dnet_core.errors import RequestError
from dnet_core.events import STOPPED, DownloadEnded, DownloadProgressed, Event
from dnet_core.library import well_known_entry
from dnet_core.tasks import TaskScope
from dnet_core.types.devices import PeerSource
from dnet_core.types.models import ModelEntry, ModelFit, ModelOrigin, Room

_DOWNLOAD_BYTES_PER_S = 90e6
_STEP_S = 0.25
_FREE_BYTES = 212 * 10**9
_HUB_S = 0.6  # until the hub answers


class DemoLibrary:
    """Speaks the interface of `dnet_core.library.Library`; models whose ids are in `here` need no fetch."""

    def __init__(
        self,
        world: World,
        tasks: TaskScope,
        tell: Callable[[Event], None],
        pause: Callable[[float], Awaitable[object]],
        loaded: Callable[[], str | None],
        gone: Callable[[], frozenset[str]],
        here: frozenset[str],
    ) -> None:
        self._world = world
        self._tasks = tasks
        self._tell = tell
        self._pause = pause
        self._loaded = loaded
        self._gone = gone
        self._here = set(here)
        everywhere = frozenset(peer.name for peer in world.peers)
        self._elsewhere = dict.fromkeys(here, everywhere)
        self._partial: dict[str, int] = {}
        self._downloads: dict[str, asyncio.Task[None]] = {}
        self._entries = {shape.id: well_known_entry(shape) for shape in models.MODELS}

    def missing_bytes(self, model: str) -> int:
        """Raises UnknownModel."""
        entry = self._entries[models.find(model).id]
        assert entry.size_bytes is not None, "shapes have sizes"
        return 0 if model in self._here else entry.size_bytes - self._partial.get(model, 0)

    def fetched(self, model: str) -> None:
        """A load has brought the model here."""
        self._here.add(model)
        self._partial.pop(model, None)

    def missing_on(self, model: str, peers: Collection[str]) -> dict[str, int]:
        """Bytes that each of `peers`, other machines, has to fetch; those that lack nothing are left out."""
        size = self._entries[model].size_bytes if model in self._entries else None
        if size is None:
            return {}
        having = self._elsewhere.get(model, frozenset())
        return {peer: size for peer in peers if peer not in having}

    def fetched_on(self, model: str, peers: Collection[str]) -> None:
        """A load has brought the model to these."""
        self._elsewhere[model] = self._elsewhere.get(model, frozenset()) | frozenset(peers)

    async def here(self) -> tuple[ModelEntry, ...]:
        whole = (entry for entry in self._entries.values() if entry.id in self._here)
        partly = (
            replace(self._entries[model], origin=ModelOrigin.PARTIAL, here_bytes=size)
            for model, size in self._partial.items()
        )
        return (*(_whole(entry) for entry in whole), *partly)

    async def elsewhere(self) -> Mapping[str, frozenset[str]]:
        others = (p.name for p in self._world.peers if p.source is not PeerSource.LOCAL)
        return {
            name: frozenset(model for model, names in self._elsewhere.items() if name in names)
            for name in others
            if name not in self._gone()
        }

    async def room(self) -> Room:
        return Room("~/.cache/huggingface/hub", _FREE_BYTES)

    async def well_known(self) -> tuple[ModelEntry, ...]:
        return tuple(entry for entry in self._entries.values() if entry.id != models.SAMPLE.id)

    async def search(self, words: str) -> tuple[ModelEntry, ...]:
        await self._pause(_HUB_S)
        wanted = words.lower().split()
        return tuple(
            replace(entry, origin=ModelOrigin.FOUND)
            for entry in self._entries.values()
            if all(word in entry.id.lower() for word in wanted)
        )

    async def fit(self, model: str) -> ModelFit:
        return await self._world.fit(model, self._gone())

    @property
    def downloading(self) -> tuple[str, ...]:
        return tuple(self._downloads)

    def start_download(self, model: str) -> None:
        if models.find(model) == models.SAMPLE:
            raise RequestError(f"'{model}' is not on the hub: there is nothing to fetch")
        if model not in self._downloads and model not in self._here:
            self._downloads[model] = self._tasks.start(self._download(model))

    def cancel_download(self, model: str) -> None:
        task = self._downloads.get(model)
        if task is not None:
            task.cancel()

    async def _download(self, model: str) -> None:
        total = self._entries[model].size_bytes
        assert total is not None, "shapes have sizes"
        done = self._partial.get(model, 0)
        problem: str | None = STOPPED
        try:
            while done < total:
                self._tell(DownloadProgressed(model, done, total))
                await self._pause(_STEP_S)
                done = min(total, done + int(_STEP_S * _DOWNLOAD_BYTES_PER_S))
                self._partial[model] = done
            self._tell(DownloadProgressed(model, total, total))
            self._partial.pop(model, None)
            self._here.add(model)
            problem = None
        finally:
            self._downloads.pop(model, None)
            self._tell(DownloadEnded(model, problem))

    async def delete(self, model: str) -> int:
        if model == self._loaded():
            raise RequestError(f"'{model}' is loaded: load another one first")
        if model in self._downloads:
            raise RequestError(f"'{model}' is being fetched: cancel that first")
        if model not in self._here and model not in self._partial:
            raise RequestError(f"'{model}' is not in the model store")
        self._here.discard(model)
        part = self._partial.pop(model, None)
        size = self._entries[model].size_bytes
        assert size is not None, "shapes have sizes"
        return size if part is None else part


def _whole(entry: ModelEntry) -> ModelEntry:
    sample = entry.id == models.SAMPLE.id
    assert entry.size_bytes is not None, "shapes have sizes"
    return replace(
        entry,
        origin=ModelOrigin.SAMPLE if sample else ModelOrigin.CACHED,
        here_bytes=entry.size_bytes,
    )
