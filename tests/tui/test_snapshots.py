"""Pictures of the screen. After a wanted change: `--snapshot-update`, then look at every one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from dnet_core.errors import PeerLost
from dnet_core.types.ring import Assignment, LayerWindow, RingPlan
from dnet_tui.widgets.prompt import Prompt
from tests.fake_coordinator import Answer, FakeCoordinator, words
from tests.tui.conftest import make_app

SnapCompare = Callable[..., bool]
Act = Callable[[FakeCoordinator, Pilot[None]], Awaitable[None]]

MARKDOWN = """\
Pipeline parallelism splits the layers, so **each token** visits every device once.

1. `studio` runs layers 0–53
2. `mbp-16` runs 54–77
3. `mini` streams 4 of its 12 layers from disk

```python
for window in schedule:
    x = window.device.forward(x)
```

| device | layers |
|--------|-------:|
| studio |     54 |
| mini   |     12 |
"""


def four_devices(model: str) -> RingPlan:
    windows = {"studio": (0, 54), "mbp-16": (54, 78), "mini": (78, 90), "air": (90, 94)}
    streamed = {"mini": (86, 87, 88, 89)}
    assignments = tuple(
        Assignment(name, (LayerWindow(*window),), streamed.get(name, ()), 2 if name in streamed else 0)
        for name, window in windows.items()
    )
    return RingPlan(model, 94, 1, 8192, 16, assignments)


def four(answer: Answer | None = None) -> FakeCoordinator:
    return FakeCoordinator(
        devices=("studio", "mbp-16", "mini", "air"),
        plan=four_devices,
        answers=[answer or Answer(words(MARKDOWN))],
        prompt_tokens=4000,
        prompt_chunks=4,
    )


async def load(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await fake.gate.arrive()
    await fake.gate.step(5)
    await pilot.pause()


async def ask(fake: FakeCoordinator, pilot: Pilot[None], text: str, steps: int | None = None) -> None:
    """Ask, and let `steps` pass (None: to the end)."""
    pilot.app.query_one(Prompt).insert(text)
    await pilot.press("enter")
    ended = len(fake.ended)
    for _ in range(steps if steps is not None else 10_000):
        if len(fake.ended) > ended:
            break
        await fake.gate.step()
    await pilot.pause()


async def answered(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await load(fake, pilot)
    await ask(fake, pilot, "How does the ring place layers?")


async def generating(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await answered(fake, pilot)
    await ask(fake, pilot, "And when RAM runs out?", 30)


async def reading(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await load(fake, pilot)
    await ask(fake, pilot, "A long one", 2)


async def loading(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await fake.gate.arrive()
    await fake.gate.step(3)
    await ask(fake, pilot, "Hello", 0)


async def devices(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await answered(fake, pilot)
    await pilot.press("ctrl+l")
    await pilot.pause()


async def lost(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await answered(fake, pilot)
    fake.lose("mini", "the connection was closed")
    await pilot.pause()


async def help_screen(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await load(fake, pilot)
    await pilot.press("f1")
    await pilot.pause()


async def light(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    pilot.app.theme = "textual-light"
    await generating(fake, pilot)


async def ansi(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    pilot.app.theme = "ansi-dark"
    await answered(fake, pilot)


BROKEN = Answer(words("The solver keeps what fits"), PeerLost("mini", "the connection was closed"))
SMALL, MIDDLE, LARGE = (80, 24), (120, 40), (200, 60)
CASES: dict[str, tuple[tuple[int, int], Act, Answer | None]] = {
    "generating_80x24": (SMALL, generating, None),
    "generating_120x40": (MIDDLE, generating, None),
    "generating_200x60": (LARGE, generating, None),
    "loading_80x24": (SMALL, loading, None),
    "loading_120x40": (MIDDLE, loading, None),
    "reading_120x40": (MIDDLE, reading, None),
    "devices_80x24": (SMALL, devices, None),
    "lost_120x40": (MIDDLE, lost, None),
    "error_80x24": (SMALL, answered, BROKEN),
    "error_120x40": (MIDDLE, answered, BROKEN),
    "help_80x24": (SMALL, help_screen, None),
    "help_120x40": (MIDDLE, help_screen, None),
    "light_120x40": (MIDDLE, light, None),
    "ansi_80x24": (SMALL, ansi, None),
    "short_58x14": ((58, 14), answered, None),
    "guard_38x9": ((38, 9), answered, None),
}


@pytest.mark.parametrize("name", CASES)
def test_the_screen_looks_as_agreed(name: str, snap_compare: SnapCompare) -> None:
    size, act, answer = CASES[name]
    fake = four(answer)

    async def before(pilot: Pilot[Any]) -> None:
        await act(fake, pilot)

    assert snap_compare(make_app(fake), terminal_size=size, run_before=before)
