"""From options to a running app: the only place where the app meets the real coordinator."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path

from dnet_core.cluster_options import ClusterOptions
from dnet_tui.app import DnetApp
from dnet_tui.chat import ChatSettings
from dnet_tui.cluster import Cluster


def run_app(model: str, options: ClusterOptions, settings: ChatSettings, log: Path) -> tuple[str | None, int]:
    """Run the app to its end; return what ended it (None: the user) and the exit status."""

    @asynccontextmanager
    async def open_cluster() -> AsyncIterator[Cluster]:
        # Importing gRPC and the tokenizers takes most of a second: beside the screen, not before it.
        module = await asyncio.to_thread(import_module, "dnet_core.coordinator")
        async with module.Coordinator(options) as coordinator:
            yield coordinator

    app = DnetApp(open_cluster, model, settings, help_notes=f"Log: {log}")
    if asyncio.run(_run_until_signal(app)):
        # The terminal is gone and the shards are stopped. Textual's input thread now reads an end of file for
        # ever and would keep the process alive, so this does not wait for it.
        os._exit(128 + signal.SIGHUP)
    return app.fatal, app.return_code or 0


async def _run_until_signal(app: DnetApp) -> bool:
    """Run `app`; SIGTERM and SIGHUP end it as ctrl+q does. Returns whether the terminal was hung up."""
    hung_up = False

    def hang_up() -> None:
        nonlocal hung_up
        hung_up = True
        app.exit()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, app.exit)
    loop.add_signal_handler(signal.SIGHUP, hang_up)
    await app.run_async()
    return hung_up
