"""Pictures of what comes before and beside the chat: one Mac alone, bytes on their way, picker, endpoint.

After a wanted change: `--snapshot-update`, then look at every one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from textual.pilot import Pilot

from dnet_core.api.in_flight import Activity, FailedRequest, OpenRequest
from dnet_core.demo.cluster import DemoCluster
from dnet_core.demo.worlds import Macs
from dnet_core.errors import InfeasiblePlan
from dnet_core.events import DownloadProgressed, FetchProgressed, LoadProgressed, LoadStarted
from dnet_tui.app import DnetApp
from dnet_tui.pace import Timing
from dnet_tui.screens.endpoint import EndpointScreen
from dnet_tui.screens.models import ModelPicker
from dnet_tui.serving import On
from dnet_tui.state import Ready
from tests.fake_coordinator import FakeCoordinator
from tests.tui.conftest import make_app
from tests.tui.test_models import LLAMA, Sand
from tests.tui.test_snapshots import SnapCompare, ask, four, four_devices, load

Act = Callable[[FakeCoordinator, Pilot[Any]], Awaitable[None]]


async def downloading(fake: FakeCoordinator, pilot: Pilot[Any]) -> None:
    await fake.gate.arrive()
    await fake.gate.step(3)
    await pilot.pause()


async def fetching(fake: FakeCoordinator, pilot: Pilot[Any]) -> None:
    """Two of four devices bring the files to themselves."""
    await fake.gate.arrive()
    await fake.gate.step(3)
    fake.tell(LoadStarted(four_devices("smollm2-135m-instruct")))
    for second in range(4):
        fake.gate.now_s += 1
        fake.tell(FetchProgressed("smollm2", second * 110_000_000, 4_600_000_000, "mbp-16"))
        fake.tell(FetchProgressed("smollm2", second * 40_000_000, 4_600_000_000, "mini"))
        await pilot.pause()


async def endpoint(fake: FakeCoordinator, pilot: Pilot[Any]) -> None:
    await load(fake, pilot)
    on = On("http://127.0.0.1:8080/v1", 8080, None, Activity((), 7, ()))
    await pilot.app.push_screen(EndpointScreen(lambda *_: None, on))
    await pilot.pause()


class Busy:
    """An endpoint at work: two requests, and two that were answered with an error."""

    requests = (
        OpenRequest(8, "POST", "/v1/chat/completions", "127.0.0.1", 1000.0),
        OpenRequest(9, "POST", "/v1/embeddings", "192.168.1.40", 1012.0),
    )
    requests_total = 9
    last_errors = (
        FailedRequest(900.0, "POST", "/v1/chat/completions", 400, "messages: must not be empty"),
        FailedRequest(960.0, "POST", "/v1/completions", 404, "the model 'gpt-4' is not loaded here"),
    )


async def busy_endpoint(fake: FakeCoordinator, pilot: Pilot[Any]) -> None:
    await load(fake, pilot)
    on = On("http://127.0.0.1:8080/v1", 8080, None, Busy())
    await pilot.app.push_screen(EndpointScreen(pilot.app, on, now=lambda: 1020.0))  # type: ignore[arg-type]
    await pilot.pause()


async def no_devices(fake: FakeCoordinator, pilot: Pilot[Any]) -> None:
    """Before the first shard has answered."""
    await fake.gate.arrive()
    await pilot.press("ctrl+l")
    await pilot.pause()


async def refused(fake: FakeCoordinator, pilot: Pilot[Any]) -> None:
    """Somebody has asked already when the load is refused."""
    await fake.gate.arrive()
    await ask(fake, pilot, "Hello", 0)
    await fake.gate.step(1)
    await pilot.pause()


async def no_model(fake: FakeCoordinator, pilot: Pilot[Any]) -> None:
    """A model that was loaded and is no more, and nothing is asked for."""
    await load(fake, pilot)
    await fake.unload()
    await pilot.pause()


async def picking_while_fetching(fake: FakeCoordinator, pilot: Pilot[Any]) -> None:
    """Two of four devices bring the files to themselves, one has loaded, one loads; a download beside."""
    await fetching(fake, pilot)
    fake.tell(LoadProgressed("studio", 1_000_000_000, 4_000_000_000))
    fake.tell(LoadProgressed("air", 500_000_000, 500_000_000))
    for second in range(4):
        fake.gate.now_s += 1
        fake.tell(DownloadProgressed("mlx-community/Qwen3-8B-4bit", second * 90_000_000, 4_600_000_000))
        await pilot.pause()
    await pilot.press("ctrl+o")
    await pilot.pause(0.2)


INFEASIBLE = InfeasiblePlan(
    "smollm2-135m-instruct does not fit these devices: 98 GB are needed, 61 GB are there",
    {"shard-1": "20 GB are missing", "shard-2": "17 GB are missing"},
    advice=("a model of fewer bits", "another device (F9)"),
)


@pytest.fixture(autouse=True)
def greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times of the day as they are there."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


CASES: dict[str, tuple[tuple[int, int], Callable[[], FakeCoordinator], Act]] = {
    "downloading_80x24": ((80, 24), lambda: FakeCoordinator(fetch_bytes=4_600_000_000), downloading),
    "downloading_120x40": ((120, 40), lambda: FakeCoordinator(fetch_bytes=4_600_000_000), downloading),
    "fetching_120x40": ((120, 40), four, fetching),
    "fetching_80x24": ((80, 24), four, fetching),
    "no_devices_120x40": ((120, 40), lambda: FakeCoordinator(devices=()), no_devices),
    "no_model_120x40": ((120, 40), four, no_model),
    "no_model_80x24": ((80, 24), four, no_model),
    "refused_120x40": ((120, 40), lambda: FakeCoordinator(load_error=INFEASIBLE), refused),
    "refused_80x24": ((80, 24), lambda: FakeCoordinator(load_error=INFEASIBLE), refused),
    "picking_120x40": ((120, 40), four, picking_while_fetching),
    "picking_80x24": ((80, 24), four, picking_while_fetching),
    "busy_endpoint_120x40": ((120, 40), four, busy_endpoint),
    "busy_endpoint_80x24": ((80, 24), four, busy_endpoint),
    "endpoint_120x40": ((120, 40), four, endpoint),
    "endpoint_80x24": ((80, 24), four, endpoint),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_beside_the_chat_looks_as_agreed(name: str, snap_compare: SnapCompare) -> None:
    size, make, act = CASES[name]
    fake = make()

    async def before(pilot: Pilot[Any]) -> None:
        await act(fake, pilot)

    assert snap_compare(make_app(fake), terminal_size=size, run_before=before)


KEYS = {"picker": "ctrl+o", "alone": "f9"}


@pytest.mark.parametrize(
    ("what", "count", "size"), [("picker", 2, (120, 40)), ("picker", 2, (80, 24)), ("alone", 1, (120, 40))]
)
def test_macs_look_as_agreed(what: str, count: int, size: tuple[int, int], snap_compare: SnapCompare) -> None:
    """The model picker over two Macs, and one Mac alone with what another one needs."""
    sand = Sand()
    demo = DemoCluster(Macs(count), pause=sand.pause, clock=sand.clock)
    timing = Timing(0, 0, 0, None, blink=False, sets_aside=False, clock=sand.clock)
    app = DnetApp(lambda: demo, LLAMA, timing=timing)

    async def before(pilot: Pilot[Any]) -> None:
        async with asyncio.timeout(60):
            while not isinstance(app.view.model, Ready):
                await pilot.pause(0.01)
            await pilot.press(KEYS[what])
            await pilot.pause()
            while isinstance(app.screen, ModelPicker) and len(app.screen.catalogue.fits) < 11:
                await pilot.pause(0.01)
            await pilot.pause(0.1)

    assert snap_compare(app, terminal_size=size, run_before=before)
