"""Between the picker and the library: asks in workers, keeps what came as one frozen `Catalogue`.

Fits are computed one after the other and kept as long as devices and loaded model stay the same: all in the
list are of one measurement. A model that only the hub has is looked at when it is highlighted, because its
headers have to be fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from textual.app import App
from textual.worker import WorkType

from dnet_core.errors import DnetError, NotReady, RequestError
from dnet_core.types.models import ModelEntry, ModelFit, ModelOrigin, Room
from dnet_tui.arrival import Arrival
from dnet_tui.catalogue import Catalogue, Unknown
from dnet_tui.work import Transfer

_PAUSE_S = 0.35
"""After the last letter before the hub is asked, and on a row before its headers are fetched."""


class Library(Protocol):
    """What the librarian needs of the cluster. Awaited methods may raise `DnetError`."""

    async def here(self) -> tuple[ModelEntry, ...]: ...
    async def elsewhere(self) -> Mapping[str, frozenset[str]]: ...
    async def room(self) -> Room: ...
    async def well_known(self) -> tuple[ModelEntry, ...]: ...
    async def search(self, words: str) -> tuple[ModelEntry, ...]: ...
    async def fit(self, model: str) -> ModelFit: ...
    def start_download(self, model: str) -> None: ...
    def cancel_download(self, model: str) -> None: ...
    async def delete(self, model: str) -> int: ...


class ModelLibrarian:
    """Owned by the app. `library` is None while no cluster is open; `changed` hears every new catalogue."""

    def __init__(
        self,
        app: App[None],
        library: Callable[[], Library | None],
        changed: Callable[[Catalogue], None],
        load: Callable[[str], None],
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._app = app
        self._library = library
        self._changed = changed
        self._load = load
        self._pause_s = pause_s
        self._is_open = False
        self._is_placing = False
        self._to_load: str | None = None  # once it is fetched
        self._devices: frozenset[str] = frozenset()
        self.catalogue = Catalogue()

    # --- what the app tells -----------------------------------------------------------------------------

    def open(self) -> None:
        """The picker is shown: read what is here, and see what fits."""
        self._is_open = True
        self._start(self._read, "models-here")

    def close(self) -> None:
        """The picker is gone: nobody waits for figures any more; downloads go on."""
        self._is_open = False
        for group in ("models-here", "models-elsewhere", "models-fit", "models-search", "models-look"):
            self._app.workers.cancel_group(self._app, group)

    def tell_arrival(self, arrival: Arrival | None) -> None:
        """How far the model is that is being loaded."""
        if arrival != self.catalogue.arrival:
            self._set(replace(self.catalogue, arrival=arrival))

    def tell(
        self,
        loaded: str | None,
        transfers: Mapping[str, Transfer],
        local: tuple[str, ...],
        remote: tuple[str, ...],
        *,
        is_placing: bool,
    ) -> None:
        """The loaded model, the downloads, the devices that are here: of this machine and others.

        `is_placing`: devices are being measured for a model, or will be at once. What fits is seen then, from
        the same figures: no device is measured twice, nor by two at once.
        """
        devices = frozenset((*local, *remote))
        ended = set(self.catalogue.transfers) - set(transfers)
        moved = devices != self._devices
        if moved:
            self._devices = devices
            self._set(replace(self.catalogue, fits={}, local=local, remote=remote))
        is_placed = self._is_placing and not is_placing
        self._is_placing = is_placing
        if is_placed:  # its plan knows the devices better
            self._set(replace(self.catalogue, fits={}))
        is_other = loaded != self.catalogue.loaded
        if is_other or transfers != self.catalogue.transfers:
            self._set(replace(self.catalogue, loaded=loaded, transfers=transfers))
        if self._is_open and (ended or moved or is_placed or is_other):
            self.open()

    def _set(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._changed(catalogue)

    # --- what the picker asks ---------------------------------------------------------------------------

    def search(self, words: str) -> None:
        """Ask the hub; with no `words` stop asking."""
        self._start(partial(self._search, words), "models-search")

    def look_at(self, model: str) -> None:
        self._start(partial(self._look_at, model), "models-look")

    def load(self, model: str) -> None:
        """Load `model`; what has to be fetched is fetched first, beside what is loaded, which goes on."""
        self._to_load = None
        is_here = any(entry.id == model and entry.is_here for entry in self.catalogue.here)
        library, loaded = self._library(), self.catalogue.loaded
        if library is None or is_here or loaded is None or _is_path(model):
            self._load(model)
            return
        try:
            library.start_download(model)
        except RequestError:  # it is not from the hub
            self._load(model)
        else:
            self._to_load = model
            short = loaded.rpartition("/")[2]
            self._app.notify(f"{model} is loaded when it is here; {short} answers until then.", markup=False)

    def takes_fetched(self, model: str) -> bool:
        """`model` is fetched, or not any more: whether it was to be loaded."""
        is_wanted = self._to_load == model
        if is_wanted:
            self._to_load = None
        return is_wanted

    def download(self, model: str) -> None:
        library = self._library()
        if library is None:
            return
        try:
            library.start_download(model)
        except DnetError as error:
            self._app.notify(str(error), severity="error")

    def cancel_download(self, model: str) -> None:
        library = self._library()
        if library is not None:
            library.cancel_download(model)

    def delete(self, model: str) -> None:
        self._start(partial(self._delete, model), "models-delete", exclusive=False)

    def _start(self, job: WorkType[None], group: str, *, exclusive: bool = True) -> None:
        """Run `job`: no coroutine yet, for one that is replaced before it begins would never be awaited."""
        self._app.run_worker(job, group=group, exclusive=exclusive)

    # --- workers ----------------------------------------------------------------------------------------

    async def _read(self) -> None:
        library = self._library()
        if library is None:
            return
        try:
            here = await library.here()
        except DnetError as error:
            self._app.notify(str(error), severity="error")
            here = ()
        try:
            room = await library.room()
        except DnetError:
            room = None  # the question says that it is not known
        known = await library.well_known()
        self._set(replace(self.catalogue, here=here, well_known=known, room=room))
        self._start(self._ask_others, "models-elsewhere")
        if self._is_placing:
            self._set(replace(self.catalogue, is_measuring=True))
        else:
            self._start(self._fit_all, "models-fit")

    async def _ask_others(self) -> None:
        library = self._library()
        if library is not None:
            self._set(replace(self.catalogue, elsewhere=await library.elsewhere()))

    async def _fit_all(self) -> None:
        """See what every model does whose headers are here; small ones first."""
        catalogue = self.catalogue
        entries = [entry for entry in (*catalogue.here, *catalogue.well_known) if _has_headers(entry)]
        for entry in sorted(entries, key=lambda entry: (not entry.is_here, entry.size_bytes or 0)):
            await self._fit(entry.id)

    async def _fit(self, model: str) -> None:
        library = self._library()
        if library is None or model in self.catalogue.fits:
            return
        self._set(replace(self.catalogue, is_measuring=not self.catalogue.fits))
        fit: ModelFit | Unknown
        try:
            fit = await library.fit(model)
        except NotReady as error:
            if self.catalogue.loaded is None:  # busy with one: `tell` asks again
                self._set(replace(self.catalogue, is_measuring=True))
                return
            fit = Unknown(str(error))
        except DnetError as error:
            fit = Unknown(str(error))
        fits = {**self.catalogue.fits, model: fit}
        self._set(replace(self.catalogue, fits=fits, is_measuring=False))

    async def _look_at(self, model: str) -> None:
        if model not in self.catalogue.fits:
            await asyncio.sleep(self._pause_s)
            if not self._is_placing:
                await self._fit(model)

    async def _search(self, words: str) -> None:
        library = self._library()
        if library is None:
            return
        if not words:
            self._set(replace(self.catalogue, is_searching=False, problem=None, found=(), searched=""))
            return
        await asyncio.sleep(self._pause_s)
        self._set(replace(self.catalogue, is_searching=True, problem=None))
        try:
            found = await library.search(words)
        except DnetError as error:
            problem = f"{error}; models that are here work without it"
            self._set(replace(self.catalogue, is_searching=False, problem=problem, found=(), searched=""))
        else:
            self._set(replace(self.catalogue, is_searching=False, found=found, searched=words))

    async def _delete(self, model: str) -> None:
        library = self._library()
        if library is None:
            return
        try:
            await library.delete(model)
        except DnetError as error:
            self._app.notify(str(error), severity="error")
        self.open()


def _is_path(model: str) -> bool:
    try:
        return model[0] in "./~" or Path(model).exists()
    except OSError:  # longer than a path can be
        return False


def _has_headers(entry: ModelEntry) -> bool:
    return entry.is_here or entry.origin is ModelOrigin.LISTED
