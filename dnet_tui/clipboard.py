"""Where copied text goes: `pbcopy` on the Mac in front of you, else the terminal's OSC 52.

Terminal.app ignores OSC 52, so on a Mac the terminal is not asked; over ssh the clipboard is at the other
end, and only the terminal can reach it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

from dnet_core.settings import is_over_ssh


def uses_pbcopy(platform: str = sys.platform, *, over_ssh: bool | None = None) -> bool:
    """Whether this machine's own clipboard is the one to use."""
    return platform == "darwin" and not (is_over_ssh() if over_ssh is None else over_ssh)


async def copy_text(
    text: str, by_terminal: Callable[[str], None], command: tuple[str, ...] = ("pbcopy",)
) -> None:
    """Copy `text` with `command`; by the terminal when that fails. An empty `command` asks the terminal."""
    if command:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            await process.communicate(text.encode())
            if process.returncode == 0:
                return
        except OSError:
            pass  # the terminal may still do it
    by_terminal(text)
