"""Models from the Hugging Face hub, as the head sees it.

The hub library blocks and has its own threads, so it runs in a child process (hub.py), which can be killed
at any moment: whole files stay in the library's cache, and the next fetch takes a partial one up again.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from dnet_core.settings import child_environment
from dnet_core.store.checkpoint import CONFIG_NAME, INDEX_NAME, Checkpoint, build_checkpoint, parse_index
from dnet_core.store.child import Progress, run_child
from dnet_core.types.models import ModelEntry, ModelOrigin

_HUB = "dnet_core.store.hub"
_HUB_SEARCH = "dnet_core.store.hub_search"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubId:
    """`owner/name` on the hub, and a branch, tag or commit."""

    repository: str
    revision: str

    def __str__(self) -> str:
        default = self.revision == constants.DEFAULT_REVISION
        return self.repository if default else f"{self.repository}@{self.revision}"


def parse_hub_id(model: str) -> HubId | None:
    """`owner/name[@revision]`, or None when `model` is nothing of the kind (a path, a URL, ...)."""
    repository, at, revision = model.partition("@")
    if not _REPOSITORY.fullmatch(repository) or ".." in model or "--" in repository:
        return None
    if at and not _REVISION.fullmatch(revision):
        return None
    return HubId(repository, revision or constants.DEFAULT_REVISION)


async def fetch(hub_id: HubId, progress: Progress) -> Path:
    """Bring the model into the hub library's cache; return its directory. Cancelling stops the download.

    Raises UnknownModel (no such repository or revision), RequestError (licence or token wanted),
    UnsupportedModel (no safetensors), LoadError (network, disk).
    """
    arguments = [hub_id.repository, hub_id.revision, "model"]
    return Path(str(await run_child(_HUB, arguments, _environment(), progress)))


async def fetch_headers(hub_id: HubId) -> Checkpoint:
    """Read only the config and the safetensors headers, by range requests. Raises as `fetch` does."""
    arguments = [hub_id.repository, hub_id.revision, "headers"]
    parts = await run_child(_HUB, arguments, _environment(), lambda _done, _total: None)
    texts: dict[str, bytes] = {name: base64.b64decode(text) for name, text in parts["texts"].items()}
    headers = {name: (size, base64.b64decode(header)) for name, (size, header) in parts["headers"].items()}
    weight_map = parse_index(texts[INDEX_NAME], f"{hub_id}: {INDEX_NAME}") if INDEX_NAME in texts else None
    generation = texts.get("generation_config.json")
    return build_checkpoint(str(hub_id), None, texts[CONFIG_NAME], generation, headers, weight_map)


async def search_hub(words: str) -> tuple[ModelEntry, ...]:
    """The models on the hub whose names have `words`, most downloaded first. Cancelling ends the search.

    Raises LoadError when the hub does not answer.
    """
    found = await run_child(_HUB_SEARCH, [words], _environment(), lambda _done, _total: None)
    return tuple(
        ModelEntry(
            id=model["id"],
            origin=ModelOrigin.FOUND,
            size_bytes=model["bytes"],
            here_bytes=0,
            quantization=f"{model['bits']}bit" if model["bits"] else None,
            num_layers=model["layers"],
            is_gated=model["gated"],
        )
        for model in found
    )


def find_cached(hub_id: HubId) -> Path | None:
    """The directory of `hub_id` in the cache, as far as `config.json` is there; no network is used."""
    path = try_to_load_from_cache(hub_id.repository, CONFIG_NAME, revision=hub_id.revision)
    return Path(path).parent if isinstance(path, str) else None


def _environment() -> dict[str, str]:
    return child_environment(
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_HUB_DISABLE_XET="1",  # plain HTTP takes up a partial file where it stopped
    )
