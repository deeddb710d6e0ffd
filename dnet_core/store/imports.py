"""Importing GGUF files, as the head sees it: once per file, in a child process, never half.

models/NAME/             whole, with ORIGIN_NAME saying what it was made from
models/.NAME.partial/    being made, or left by an importer that died
models/.NAME.lock        held by whoever makes it
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from dnet_core.errors import LoadError
from dnet_core.settings import child_environment
from dnet_core.store.child import Progress, run_child

ORIGIN_NAME = "dnet_import.json"
IMPORT_VERSION = 2
"""Part of every import's origin: raise it when the importer's output changes, and files are imported anew."""


def lock_path(directory: Path) -> Path:
    return directory.parent / f".{directory.name}.lock"


def origin_of(source: Path) -> dict[str, object]:
    """What an import was made from: this importer, and the file by name, size and time. Raises LoadError."""
    try:
        status = source.stat()
    except OSError as error:
        raise LoadError(f"{source} cannot be read: {error.strerror}") from error
    return {
        "version": IMPORT_VERSION,
        "source": source.name,
        "source_bytes": status.st_size,
        "source_mtime_ns": status.st_mtime_ns,
    }


def is_imported(directory: Path, source: Path) -> bool:
    """Whether `directory` is a whole import of `source` as it is now."""
    try:
        origin = json.loads((directory / ORIGIN_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return bool(origin == origin_of(source))


def import_name(source: Path) -> str:
    """A directory name for the import of `source`: its own name, and a mark of where it lies."""
    stem = re.sub(r"[^a-z0-9._-]+", "-", source.stem.lower()).strip("-.") or "model"
    return f"{stem[:80]}-{hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]}"


async def import_gguf(source: Path, directory: Path, progress: Progress, dtype: str = "auto") -> Path:
    """Make `directory` an ordinary MLX model directory of the GGUF file `source`, unless it is one already.

    Two importers at the same time do the work once; cancelling ends the child and leaves no model directory.
    Raises LoadError (unreadable, damaged, disk full) and UnsupportedModel (saying what is not).
    """
    if not is_imported(directory, source):
        arguments = [str(source), str(directory), "--dtype", dtype]
        await run_child("dnet_core.store.gguf", arguments, child_environment(), progress)
    return directory
