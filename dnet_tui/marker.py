"""Notes that the application runs, so that the next start knows of one that was killed.

running/PID    locked as long as that process lives, however it ends; its own end removes it
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)


class Marker:
    """The note of this process in `folder`. A folder that cannot be written costs only the note."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / str(os.getpid())
        self._file: IO[str] | None = None  # open as long as this process has the lock

    def begin(self) -> bool:
        """Write the note; return whether an earlier process was killed before it could remove its own."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            killed = [note for note in self._folder.glob("[0-9]*") if not _is_running(note)]
            for note in killed:
                note.unlink(missing_ok=True)
            unseen = self._own.with_name(f".{self._own.name}")  # until it is locked
            self._file = unseen.open("w", encoding="utf-8")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            unseen.rename(self._own)
        except OSError as error:
            log.warning("the next start will not know how this one ended: %s", error)
            return False
        return bool(killed)

    def end(self) -> None:
        with suppress(OSError):
            self._own.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()


def _is_running(note: Path) -> bool:
    """Whether the process of `note` still runs; one that has no note any more is no matter."""
    try:
        with note.open(encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
