"""Who was killed is told once by the next start; who runs or ended is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dnet_tui.marker import Marker

PROGRAM = """
import sys
from pathlib import Path
from dnet_tui.marker import Marker
marker = Marker(Path(sys.argv[1]))
print(marker.begin(), flush=True)
if sys.stdin.readline():
    marker.end()
"""


def begun(folder: Path) -> tuple[subprocess.Popen[str], bool]:
    """A process with a note in `folder`, and whether it was told of one that was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip() == "True"


def test_a_process_that_was_killed_is_told_once(tmp_path: Path) -> None:
    first, was_killed = begun(tmp_path)
    assert not was_killed
    second, was_killed = begun(tmp_path)
    assert not was_killed, "the first one runs"
    first.kill()
    first.communicate()
    third, was_killed = begun(tmp_path)
    assert was_killed
    third.communicate("end\n")
    marker = Marker(tmp_path)
    assert not marker.begin(), "told once, and an end is no kill"
    marker.end()
    second.communicate("end\n")


def test_a_folder_that_cannot_be_written_costs_only_the_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    marker = Marker(tmp_path / "file" / "running")
    assert not marker.begin()
    marker.end()
