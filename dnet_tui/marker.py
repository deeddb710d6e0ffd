"""Notes that the application runs, so that the next start knows of one that was killed.

running/PID    when that process began, as the system tells it; its own end removes it
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

import psutil

log = logging.getLogger(__name__)


class Marker:
    """The note of this process in `folder`. A folder that cannot be written costs only the note."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = folder / str(os.getpid())

    def begin(self) -> bool:
        """Write the note; return whether an earlier process was killed before it could remove its own."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            killed = [note for note in self._folder.iterdir() if not _is_running(note)]
            for note in killed:
                note.unlink(missing_ok=True)
            self._own.write_text(str(psutil.Process().create_time()), encoding="utf-8")
        except OSError as error:
            log.warning("the next start will not know how this one ended: %s", error)
            return False
        return bool(killed)

    def end(self) -> None:
        with suppress(OSError):
            self._own.unlink(missing_ok=True)


def _is_running(note: Path) -> bool:
    """Whether the process of `note` still runs; its number may have been given to another one."""
    try:
        begun = psutil.Process(int(note.name)).create_time()
        return abs(begun - float(note.read_text(encoding="utf-8"))) < 1
    except (psutil.Error, ValueError, OSError):
        return False
