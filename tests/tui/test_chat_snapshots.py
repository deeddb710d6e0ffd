"""Pictures of the conversation's half of the screen. After a wanted change: `--snapshot-update`, and look."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, TabbedContent

from dnet_core.types.generation import FinishReason, GenerationDone
from dnet_tui.chat import ChatSettings, Finished, Reply, Turn
from dnet_tui.history import History
from dnet_tui.personal_app import Personal
from dnet_tui.preferences import Preferences
from dnet_tui.widgets.chat_log import ChatLog
from tests.fake_coordinator import Answer, FakeCoordinator, words
from tests.tui.conftest import NOON, make_app
from tests.tui.test_snapshots import SnapCompare, answered, ask, four, load

Act = Callable[[FakeCoordinator, Pilot[None]], Awaitable[None]]
THOUGHTS = """\
The user asks where layers go. First the budgets: **studio** has most room.

1. studio takes what fits
2. mini streams the rest
"""
THOUGHTFUL = Answer(words("The largest device takes most layers."), thoughts=words(THOUGHTS))


async def thinking(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await load(fake, pilot)
    await ask(fake, pilot, "Where do the layers go?", 12)


async def unfolded(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await answered(fake, pilot)
    await pilot.press("ctrl+t")
    await pilot.pause()


async def pointed(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await answered(fake, pilot)
    await pilot.press("f10")  # its key here
    ended = len(fake.ended)
    while len(fake.ended) == ended:
        await fake.gate.step()
    pilot.app.query_one(ChatLog).focus()
    await pilot.pause()


async def editing(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await answered(fake, pilot)
    await pilot.press("f8")
    await pilot.pause()


async def settings(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await load(fake, pilot)
    await pilot.press("f2")
    await pilot.pause()


async def keys(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await settings(fake, pilot)
    pilot.app.screen.query_one(TabbedContent).active = "tab-keys"
    pilot.app.screen.query_one("#keys-list", OptionList).focus()
    await pilot.pause()


async def chat_settings(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await load(fake, pilot)
    await pilot.press("f3")
    await pilot.pause()
    pilot.app.screen.query_one("#field-temperature", Input).value = "900"
    await pilot.pause()


async def history(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await load(fake, pilot)
    await pilot.press("ctrl+f")
    shown = pilot.app.screen.query_one(OptionList)
    while shown.option_count == 0:
        await pilot.pause(0.01)
    await pilot.press("down")
    await pilot.pause()


async def palette(fake: FakeCoordinator, pilot: Pilot[None]) -> None:
    await load(fake, pilot)
    await pilot.press("ctrl+p")
    await pilot.pause(0.5)  # the palette searches in the background


SMALL, MIDDLE = (80, 24), (120, 40)
CASES: dict[str, tuple[tuple[int, int], Act, Answer | None, str]] = {
    "thinking_120x40": (MIDDLE, thinking, THOUGHTFUL, "dark"),
    "unfolded_80x24": (SMALL, unfolded, THOUGHTFUL, "dark"),
    "pointed_80x24": (SMALL, pointed, THOUGHTFUL, "dark"),
    "editing_80x24": (SMALL, editing, THOUGHTFUL, "dark"),
    "settings_80x24": (SMALL, settings, None, "dark"),
    "settings_light_120x40": (MIDDLE, settings, None, "light"),
    "keys_120x40": (MIDDLE, keys, None, "dark"),
    "keys_ansi_80x24": (SMALL, keys, None, "ansi"),
    "chat_settings_120x40": (MIDDLE, chat_settings, None, "dark"),
    "history_120x40": (MIDDLE, history, None, "dark"),
    "history_light_80x24": (SMALL, history, None, "light"),
    "palette_80x24": (SMALL, palette, None, "dark"),
    "palette_120x40": (MIDDLE, palette, None, "dark"),
}


async def fill(path: Path) -> None:
    """Make a history of three chats, the newest of which ends shortly before noon."""
    now_s = NOON.timestamp()
    times = iter((now_s - 3 * 86_400, now_s - 3 * 86_400, now_s - 7200, now_s - 7200, now_s - 40, now_s - 40))
    kept = History(path, lambda: next(times))
    await kept.open()
    done = Finished(GenerationDone(FinishReason.STOP, 9, 9, 0, 1.0, 9.0))
    for title in ("Why is the ring slow?", "A recipe for bread with oats", "How does the ring place layers?"):
        record = kept.begin(title, "m", ChatSettings())
        kept.save_turn(record, 0, Turn(title, (Reply("An answer.", done),)))
    await kept.close()


@pytest.mark.parametrize("name", CASES)
def test_the_conversation_looks_as_agreed(name: str, snap_compare: SnapCompare, tmp_path: Path) -> None:
    size, act, answer, theme = CASES[name]
    fake = four(answer)
    kept = History(tmp_path / "chats.db")
    personal = Personal(
        preferences=Preferences.model_validate({"theme": theme, "keys": {"chat.again": "f10"}}), history=kept
    )

    async def before(pilot: Pilot[Any]) -> None:
        await act(fake, pilot)

    if act is history:
        asyncio.run(fill(tmp_path / "chats.db"))
    assert snap_compare(make_app(fake, personal=personal), terminal_size=size, run_before=before)
