"""What a user does without keys: they only write text, everything else is clicked."""

from __future__ import annotations

import pytest

from dnet_tui.chat import Queued, Stopped
from tests.tui.conftest import Desk, OpenDesk


async def click(desk: Desk, text: str, *, nth: int = 0) -> None:
    """Click where `text` stands on the screen, for the `nth` time."""
    rows = desk.screen_text().splitlines()
    found = [(y, line.index(text)) for y, line in enumerate(rows) if text in line]
    y, x = found[nth]
    await desk.pilot.click(offset=(x + min(1, len(text) - 1), y))


@pytest.mark.parametrize("size", [(200, 60), (80, 24), (60, 16), (40, 10), (39, 9)])
async def test_a_click_sends_and_another_stops(open_desk: OpenDesk, size: tuple[int, int]) -> None:
    async with open_desk(size=size) as desk:
        assert "⏎ send" not in desk.screen_text()
        await desk.pilot.press("h", "i")
        await click(desk, "⏎ send")
        assert [turn.prompt for turn in desk.turns] == ["hi"]
        await desk.step(3)
        assert desk.prompt.has_focus
        await click(desk, "■ stop")
        assert isinstance(desk.turns[0].phase, Stopped)
        assert "■ stop " not in desk.screen_text()


async def test_a_click_takes_a_waiting_message_back(open_desk: OpenDesk) -> None:
    async with open_desk(loaded=False) as desk:
        await desk.pilot.press("h", "i")
        await click(desk, "⏎ send")
        assert isinstance(desk.turns[0].phase, Queued)
        await click(desk, "■ stop")
        assert desk.turns == ()
        assert desk.prompt.text == "hi"
        assert "⏎ send" in desk.screen_text()
