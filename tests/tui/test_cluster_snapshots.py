"""Pictures of the cluster half, with the solver's plans and the simulator's times.

After a wanted change: `--snapshot-update`, then look at every one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from dnet_core.demo import worlds
from tests.tui.macs import EIGHT, FITS, GatedMacs, ask, checked, loaded, macs_app
from tests.tui.test_snapshots import SnapCompare

Act = Callable[[GatedMacs, Pilot[None]], Awaitable[None]]


async def ready(macs: GatedMacs, pilot: Pilot[None]) -> None:
    await loaded(macs, pilot)


async def generating(macs: GatedMacs, pilot: Pilot[None]) -> None:
    await loaded(macs, pilot)
    await ask(macs, pilot, 30)


async def light(macs: GatedMacs, pilot: Pilot[None]) -> None:
    pilot.app.theme = "textual-light"
    await generating(macs, pilot)


async def ansi(macs: GatedMacs, pilot: Pilot[None]) -> None:
    pilot.app.theme = "ansi-dark"
    await generating(macs, pilot)


async def cluster(macs: GatedMacs, pilot: Pilot[None]) -> None:
    await generating(macs, pilot)
    await pilot.press("ctrl+l")
    await pilot.pause()


async def lost(macs: GatedMacs, pilot: Pilot[None]) -> None:
    """A device goes in the middle of an answer; the others take over its layers."""
    await generating(macs, pilot)
    macs.lose("air")
    await macs.until(lambda: pilot.app.view.plan != macs.plans_loaded[0], pilot)  # type: ignore[attr-defined]


async def device(macs: GatedMacs, pilot: Pilot[None]) -> None:
    await generating(macs, pilot)
    await pilot.press("ctrl+l", "tab", "tab", "j", "enter")
    await pilot.pause()


async def plan(macs: GatedMacs, pilot: Pilot[None]) -> None:
    await generating(macs, pilot)
    await pilot.press("f12")
    await pilot.pause()


async def edited(macs: GatedMacs, pilot: Pilot[None]) -> None:
    await plan(macs, pilot)
    await pilot.press("j", "right")
    await checked(pilot)
    await pilot.press("right")
    await checked(pilot)


async def refused(macs: GatedMacs, pilot: Pilot[None]) -> None:
    await plan(macs, pilot)
    await pilot.press("j", "plus")
    await checked(pilot)


SMALL, MIDDLE, LARGE = (80, 24), (120, 40), (200, 60)
CASES: dict[str, tuple[tuple[int, int], int, str, Act]] = {
    "ready_80x24": (SMALL, 4, FITS, ready),
    "ready_120x40": (MIDDLE, 4, FITS, ready),
    "ready_200x60": (LARGE, 4, FITS, ready),
    "generating_80x24": (SMALL, 4, FITS, generating),
    "generating_120x40": (MIDDLE, 4, FITS, generating),
    "generating_200x60": (LARGE, 4, FITS, generating),
    "eight_80x24": (SMALL, 8, EIGHT, cluster),
    "eight_120x40": (MIDDLE, 8, EIGHT, generating),
    "eight_200x60": (LARGE, 8, EIGHT, generating),
    "rounds_80x24": (SMALL, 3, FITS, cluster),
    "rounds_120x40": (MIDDLE, 3, FITS, generating),
    "rounds_200x60": (LARGE, 3, FITS, generating),
    "fourteen_120x40": (MIDDLE, 14, EIGHT, generating),
    "cluster_80x24": (SMALL, 4, FITS, cluster),
    "cluster_120x40": (MIDDLE, 4, FITS, cluster),
    "lost_120x40": (MIDDLE, 4, FITS, lost),
    "lost_200x60": (LARGE, 4, FITS, lost),
    "device_80x24": (SMALL, 4, FITS, device),
    "device_120x40": (MIDDLE, 3, FITS, device),
    "plan_80x24": (SMALL, 4, FITS, plan),
    "plan_edited_120x40": (MIDDLE, 4, FITS, edited),
    "plan_refused_120x40": (MIDDLE, 3, FITS, refused),
    "light_200x60": (LARGE, 3, FITS, light),
    "ansi_120x40": (MIDDLE, 3, FITS, ansi),
}


@pytest.mark.parametrize("name", CASES)
def test_the_cluster_looks_as_agreed(
    name: str, snap_compare: SnapCompare, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, count, model, act = CASES[name]
    if act is lost:
        monkeypatch.setattr(worlds, "_LOAD_STEP_S", 1 / 8)  # where its last token is found depends on it
    macs = GatedMacs(count)

    async def before(pilot: Pilot[Any]) -> None:
        await act(macs, pilot)

    assert snap_compare(macs_app(macs, model), terminal_size=size, run_before=before)
