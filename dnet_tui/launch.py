"""From options to a running app: the only place where the app meets the real coordinator."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Protocol

from textual.app import SystemCommand

from dnet_core.cluster_options import ClusterOptions
from dnet_core.demo import models
from dnet_core.demo.endpoint import demo_endpoint
from dnet_core.files import replace_text
from dnet_core.settings import is_over_ssh, paths
from dnet_core.types.devices import Peer
from dnet_tui.app import DnetApp
from dnet_tui.chat import ChatOverrides
from dnet_tui.cluster import Cluster
from dnet_tui.history import History
from dnet_tui.main import SAMPLE_MODEL
from dnet_tui.marker import Marker
from dnet_tui.pace import OVER_SSH, Timing
from dnet_tui.personal_app import Personal
from dnet_tui.preferences import load_preferences
from dnet_tui.screens.findings import Finding
from dnet_tui.service_app import Services
from dnet_tui.serving import Served
from dnet_tui.wishes import EndpointWish

log = logging.getLogger(__name__)

DEMO_BADGE = "DEMO"
TERMINAL_CHECK_S = 1.0
HANG_UP_S = 5.0
"""An app whose terminal is gone has this long to end by itself."""


def run_app(
    model: str | None,
    options: ClusterOptions,
    overrides: ChatOverrides,
    endpoint: EndpointWish,
    log_file: Path,
) -> tuple[str | None, int]:
    """Run the app to its end; return what ended it (None: the user) and the exit status."""

    @asynccontextmanager
    async def open_cluster() -> AsyncIterator[Cluster]:
        # Importing gRPC and the tokenizers takes most of a second: beside the screen, not before it.
        module = await asyncio.to_thread(import_module, "dnet_core.coordinator")
        async with module.Coordinator(options) as coordinator:
            yield coordinator

    async def examine() -> Sequence[Finding]:
        doctor = await asyncio.to_thread(import_module, "dnet_core.doctor.main")
        findings: Sequence[Finding] = await doctor.examine("dnet-tui", options)
        return findings

    chosen = paths().data / "model"
    remembered = _read_model(chosen) if model is None else None
    services = Services(
        open_endpoint,
        endpoint,
        log=log_file,
        examine=examine,
        is_first_use=model is None and remembered is None,
        remember=partial(_write_model, chosen),
    )
    model = model or remembered or SAMPLE_MODEL
    marker = Marker(paths().data / "running")
    personal = replace(_personal(overrides, keeps_chats=True), was_killed=marker.begin())
    return _run(DnetApp(open_cluster, model, personal, timing_here(), services), marker)


@asynccontextmanager
async def open_endpoint(cluster: Cluster, wish: EndpointWish) -> AsyncIterator[Served]:
    """Serve OpenAI clients from the real coordinator `cluster`. Raises what `dnet_core.api.app` raises."""
    api = await asyncio.to_thread(import_module, "dnet_core.api.app")
    options = api.EndpointOptions(wish.sessions, wish.waiting)
    async with api.endpoint(cluster, wish.host, wish.port, wish.api_keys, options) as served:
        yield served


def timing_here() -> Timing:
    """How often things are drawn where this person sits."""
    return OVER_SSH if is_over_ssh() else Timing()


def _read_model(path: Path) -> str | None:
    """Which model was chosen last; None before anybody has chosen one."""
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError):
        return None


def _write_model(path: Path, model: str) -> None:
    try:
        replace_text(path, model)
    except OSError as error:
        log.warning("the next start will not know of %s: %s", model, error)


def run_demo(
    num_macs: int, model: str | None, overrides: ChatOverrides, log_file: Path
) -> tuple[str | None, int]:
    """Run the app over simulated Macs; otherwise like `run_app`."""
    personal = _personal(overrides, keeps_chats=False)
    return _run(demo_app(num_macs, model, personal, timing_here(), log_file))


def _personal(overrides: ChatOverrides, *, keeps_chats: bool) -> Personal:
    """What is kept of the person; simulated answers are no chats to keep."""
    places = paths()
    preferences, notices = load_preferences(places.terminal_settings)
    return Personal(
        preferences=preferences,
        preferences_path=places.terminal_settings,
        notices=notices,
        override=overrides.over,
        history=History(places.chats) if keeps_chats and preferences.save_history else None,
        exports=places.data / "exports",
    )


def demo_app(
    num_macs: int,
    model: str | None,
    personal: Personal,
    timing: Timing | None = None,
    log_file: Path | None = None,
) -> DnetApp:
    """The app over `num_macs` simulated Macs; `model` None: one that shows what they are good for."""
    opened: list[Demo] = []

    @asynccontextmanager
    async def open_cluster() -> AsyncIterator[Cluster]:
        worlds = await asyncio.to_thread(import_module, "dnet_core.demo.worlds")
        cluster = await asyncio.to_thread(import_module, "dnet_core.demo.cluster")
        async with cluster.DemoCluster(worlds.Macs(num_macs)) as demo:
            opened.append(demo)
            try:
                yield demo
            finally:
                opened.remove(demo)

    def commands() -> Iterator[SystemCommand]:
        for demo in opened:
            here = {peer.name for peer in demo.peers}
            for peer in demo.all_peers:
                if peer.name in here:
                    run = partial(demo.lose, peer.name)
                    yield SystemCommand(f"Demo: lose {peer.name}", "Take this device away", run)
                else:
                    run = partial(demo.rejoin, peer.name)
                    yield SystemCommand(f"Demo: bring {peer.name} back", "It joins the cluster again", run)

    @asynccontextmanager
    async def open_endpoint(cluster: Cluster, wish: EndpointWish) -> AsyncIterator[Served]:
        async with demo_endpoint(wish.host, wish.port, wish.api_keys) as served:
            yield served

    services = Services(open_endpoint, badge=DEMO_BADGE, more_commands=commands, log=log_file)
    return DnetApp(open_cluster, model or models.for_macs(num_macs), personal, timing, services)


class Demo(Protocol):
    """What only a simulated cluster can do."""

    @property
    def peers(self) -> tuple[Peer, ...]: ...
    @property
    def all_peers(self) -> tuple[Peer, ...]: ...
    def lose(self, name: str) -> None: ...
    def rejoin(self, name: str) -> None: ...


def _run(app: DnetApp, marker: Marker | None = None) -> tuple[str | None, int]:
    hung_up = asyncio.run(_run_until_signal(app))
    if marker is not None:
        marker.end()
    if hung_up:
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
    if sys.stdin.isatty():
        watch = partial(_watch_terminal, partial(loop.call_soon_threadsafe, hang_up))
        threading.Thread(target=watch, name="terminal", daemon=True).start()
    await app.run_async()
    return hung_up


def _watch_terminal(hang_up: Callable[[], object]) -> None:
    """Call `hang_up` when the terminal is gone, and end the process if that does not.

    Only a terminal's own session is sent SIGHUP. And Textual cannot end without its terminal: what writes to
    it has died of that, and everybody else waits to hand it more. Shards end with this process.
    """
    while _is_there(sys.stdin.fileno()):
        time.sleep(TERMINAL_CHECK_S)
    hang_up()
    time.sleep(HANG_UP_S)
    os._exit(128 + signal.SIGHUP)


def _is_there(terminal: int) -> bool:
    try:
        termios.tcgetattr(terminal)
    except termios.error:
        return False
    return True
