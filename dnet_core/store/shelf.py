"""The models on this machine as a list to choose from, and how one is taken off it.

downloads/OWNER--NAME@REVISION.json    what a fetch that has begun will bring: {"total_bytes": n}

The note stays until the fetch is whole or deleted, so that after a restart a partial model is shown as what
it is. Everything here blocks on the disk.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound
from huggingface_hub.file_download import repo_folder_name

from dnet_core.errors import LoadError, RequestError
from dnet_core.files import replace_text
from dnet_core.settings import paths
from dnet_core.store.catalog import LocalModel, ModelKind, list_local
from dnet_core.store.checkpoint import CONFIG_NAME
from dnet_core.store.fetch import HubId, find_cached, parse_hub_id
from dnet_core.types.models import ModelEntry, ModelOrigin, Room

_ORIGINS = {
    ModelKind.SAMPLE: ModelOrigin.SAMPLE,
    ModelKind.IMPORTED: ModelOrigin.IMPORTED,
    ModelKind.HUB: ModelOrigin.CACHED,
}
_NUM_LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_DTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}


def entries() -> tuple[ModelEntry, ...]:
    """All models here: whole ones first, then those whose fetch was interrupted."""
    whole = tuple(_entry(model) for model in list_local())
    known = {entry.id for entry in whole}
    partial = (_partial(note) for note in sorted(_notes().glob("*.json")))
    return (*whole, *(entry for entry in partial if entry is not None and entry.id not in known))


def begin_fetch(hub_id: HubId, total_bytes: int) -> None:
    """Note that `total_bytes` are on their way; a disk that does not take the note stops nothing."""
    try:
        replace_text(_note(hub_id), json.dumps({"model": str(hub_id), "total_bytes": total_bytes}))
    except OSError:
        return


def end_fetch(hub_id: HubId) -> None:
    """The model is whole; a disk that keeps the note stops nothing."""
    with suppress(OSError):
        _note(hub_id).unlink(missing_ok=True)


def room() -> Room:
    """Where the hub's models are put; raises LoadError when the disk does not tell."""
    folder = Path(constants.HF_HUB_CACHE)
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        return Room(str(folder), shutil.disk_usage(there).free)
    except OSError as error:
        raise LoadError(f"the disk of {there} cannot be read: {error}") from error


def delete(model: str) -> int:
    """Take `model` off this machine; returns the bytes that became free.

    Only what the store itself has put there: an import, or a revision in the hub's cache. Raises RequestError
    for anything else, LoadError when the disk refuses.
    """
    try:
        own = next((local for local in list_local() if local.id == model), None)
        hub_id = parse_hub_id(model)
        if own is not None and own.kind is not ModelKind.HUB and own.path.parent == paths().models:
            shutil.rmtree(own.path)
            return own.size_bytes
        if hub_id is not None:
            return _delete_cached(hub_id)
    except OSError as error:
        raise LoadError(f"'{model}' cannot be deleted: {error}") from error
    raise RequestError(f"'{model}' is not in the model store, which only deletes what it fetched or imported")


def _delete_cached(hub_id: HubId) -> int:
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id.repository, repo_type="model")
    if not folder.is_dir():
        raise RequestError(f"'{hub_id}' is not in the model store")
    freed = 0
    for partial in folder.glob("blobs/*.incomplete"):  # nobody else will ever finish these
        freed += partial.stat().st_size
        partial.unlink(missing_ok=True)
        partial.with_suffix(".lock").unlink(missing_ok=True)
    directory = find_cached(hub_id)
    if directory is not None:
        try:
            strategy = scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(directory.name)
        except CacheNotFound as error:
            raise RequestError(f"'{hub_id}' is not in the model store") from error
        freed += strategy.expected_freed_size
        strategy.execute()
    if not any(folder.glob("snapshots/*")):
        shutil.rmtree(folder, ignore_errors=True)
    end_fetch(hub_id)
    return freed


def _entry(model: LocalModel) -> ModelEntry:
    config = _config(model.path)
    return ModelEntry(
        id=model.id,
        origin=_ORIGINS[model.kind],
        size_bytes=model.size_bytes,
        here_bytes=model.size_bytes,
        quantization=_quantization(config),
        num_layers=_first_number(config, _NUM_LAYERS),
    )


def _partial(note: Path) -> ModelEntry | None:
    """What a note promises and the disk holds; None for a note that means nothing."""
    try:
        told = json.loads(note.read_text(encoding="utf-8"))
        hub_id, total_bytes = parse_hub_id(str(told["model"])), int(told["total_bytes"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if hub_id is None:
        return None
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id.repository, repo_type="model")
    here = sum(blob.stat().st_size for blob in folder.glob("blobs/*") if blob.is_file())
    directory = find_cached(hub_id)
    config = _config(directory) if directory is not None else {}
    return ModelEntry(
        id=str(hub_id),
        origin=ModelOrigin.PARTIAL,
        size_bytes=total_bytes,
        here_bytes=min(here, total_bytes),
        quantization=_quantization(config),
        num_layers=_first_number(config, _NUM_LAYERS),
    )


def _config(directory: Path) -> dict[str, object]:
    try:
        config = json.loads((directory / CONFIG_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict):
        return {}
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _quantization(config: dict[str, object]) -> str | None:
    settings = config.get("quantization") or config.get("quantization_config")
    bits = settings.get("bits") if isinstance(settings, dict) else None
    if isinstance(bits, int):
        return f"{bits}bit"
    dtype = config.get("torch_dtype") or config.get("dtype")
    return _DTYPES.get(str(dtype)) if dtype else None


def _first_number(config: dict[str, object], names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := config.get(name), int)), None)


def _notes() -> Path:
    return paths().cache / "downloads"


def _note(hub_id: HubId) -> Path:
    return _notes() / f"{hub_id.repository.replace('/', '--')}@{hub_id.revision.replace('/', '--')}.json"
