"""The app on a scripted cluster: nothing ticks, the clock is the test's, every step is the test's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
import pytest_textual_snapshot  # type: ignore[import-untyped]
from textual.pilot import Pilot

from dnet_core.demo import worlds
from dnet_tui.app import DnetApp
from dnet_tui.chat import ChatSettings, Turn
from dnet_tui.pace import Timing
from dnet_tui.personal_app import Personal
from dnet_tui.widgets.prompt import Prompt
from tests.fake_coordinator import FakeCoordinator, Gate

# pytest-textual-snapshot 1.1.0 names it as an older syrupy did
pytest_textual_snapshot.SVGImageExtension.file_extension = "svg"

NOON = datetime(2026, 1, 5, 12)  # noqa: DTZ001  a time of day, for people
MODEL = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TEXTUAL_ANIMATIONS", "TEXTUAL_THEME", "SSH_CONNECTION", "SSH_TTY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated loads tell how far they are once in a second of theirs: drawing that is most of the work."""
    monkeypatch.setattr(worlds, "_LOAD_STEP_S", 1.0)


def still(gate: Gate) -> Timing:
    """Nothing ticks and nothing waits to be drawn; the clock is the gate's."""
    return Timing(
        stream_s=0,
        view_s=0,
        panels_s=0,
        tick_s=None,
        blink=False,
        sets_aside=False,
        clock=lambda: gate.now_s,
        now=lambda: NOON + timedelta(seconds=gate.now_s),
    )


def make_app(
    fake: FakeCoordinator, *, settings: ChatSettings | None = None, personal: Personal | None = None
) -> DnetApp:
    if settings is not None:
        personal = replace(personal or Personal(), override=lambda _: settings)
    return DnetApp(lambda: fake, MODEL, personal, still(fake.gate))


@dataclass
class Desk:
    """A running app, its fake cluster, and the hands of a user."""

    app: DnetApp
    fake: FakeCoordinator
    pilot: Pilot[None]

    @property
    def turns(self) -> tuple[Turn, ...]:
        return self.app.conversation.turns

    @property
    def prompt(self) -> Prompt:
        return self.app.query_one(Prompt)

    async def say(self, text: str) -> None:
        """Type `text` and press enter."""
        self.prompt.insert(text)
        await self.pilot.press("enter")

    async def step(self, steps: int = 1) -> None:
        """Let the cluster take `steps` steps and the app hear of them."""
        await self.fake.gate.step(steps)
        await self.pilot.pause()

    async def load(self) -> None:
        """Let the load run to its end."""
        await self.fake.gate.step(5 if not self.fake.fetch_bytes else 9)
        await self.pilot.pause()
        assert self.fake.loaded is not None

    async def finish(self) -> None:
        """Let the running answer run to its end."""
        answering = len(self.fake.ended)
        while len(self.fake.ended) == answering:
            await self.fake.gate.step()
        await self.pilot.pause()

    def screen_text(self) -> str:
        """What stands on the screen, line by line."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)


OpenDesk = Callable[..., AbstractAsyncContextManager[Desk]]


@asynccontextmanager
async def _open_desk(
    fake: FakeCoordinator | None = None,
    *,
    size: tuple[int, int] = (80, 24),
    settings: ChatSettings | None = None,
    personal: Personal | None = None,
    loaded: bool = True,
) -> AsyncIterator[Desk]:
    fake = fake or FakeCoordinator()
    app = make_app(fake, settings=settings, personal=personal)
    async with app.run_test(size=size) as pilot:
        await fake.gate.arrive()
        await pilot.pause()
        desk = Desk(app, fake, pilot)
        if loaded:
            await desk.load()
        yield desk


@pytest.fixture
def open_desk() -> OpenDesk:
    return _open_desk
