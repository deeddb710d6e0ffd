"""From options to a running app: the only place where the app meets the real coordinator."""

from __future__ import annotations

import argparse
import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path

from dnet_tui.app import DnetApp
from dnet_tui.chat import ChatSettings
from dnet_tui.cluster import Cluster


def run_app(options: argparse.Namespace, settings: ChatSettings, log: Path) -> tuple[str | None, int]:
    """Run the app to its end; return what ended it (None: the user) and the exit status."""
    local_shards = 0 if options.no_local_shard else options.shards

    @asynccontextmanager
    async def open_cluster() -> AsyncIterator[Cluster]:
        # Importing gRPC and the tokenizers takes most of a second: beside the screen, not before it.
        module = await asyncio.to_thread(import_module, "dnet_core.coordinator")
        static = {"peers": tuple(options.peer)} if options.peer else {}
        async with module.Coordinator(local_shards=local_shards, **static) as coordinator:
            yield coordinator

    app = DnetApp(open_cluster, options.model, settings, help_notes=f"Log: {log}")
    asyncio.run(_run_until_signal(app))
    return app.fatal, app.return_code or 0


async def _run_until_signal(app: DnetApp) -> None:
    """Run `app`; SIGTERM and SIGHUP end it as ctrl+q does, so that the terminal is restored."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, app.exit)
    await app.run_async()
