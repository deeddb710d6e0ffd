"""What a user does without keys: they only write text, everything else is clicked."""

from __future__ import annotations

import pytest
from textual.geometry import Offset

from dnet_core.errors import PeerLost
from dnet_tui.chat import Failed, Finished, Queued, Stopped
from dnet_tui.widgets.chat_log import ChatLog
from tests.fake_coordinator import Answer, FakeCoordinator, words
from tests.tui.conftest import Desk, OpenDesk

CODE = "One:\n\n```\na = 1\n```\n\nTwo:\n\n```\nb = 2\nc = 3\n```\n"


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


async def test_a_click_marks_a_turn_and_the_prompt_keeps_the_focus(open_desk: OpenDesk) -> None:
    """Whoever writes on after a click writes; letters are the chat's only when somebody went there by key."""
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.finish()
        assert "edits" not in desk.screen_text()
        await click(desk, "Paris")
        assert "edits · copies · answers again" in desk.screen_text()
        await desk.pilot.press("h", "e", "c")
        assert desk.prompt.text == "hec"
        await click(desk, "⏎ send")
        assert "edits ·" not in desk.screen_text(), "it was about the turn before"


async def test_what_can_be_done_with_a_turn_is_clicked(open_desk: OpenDesk) -> None:
    async with open_desk(FakeCoordinator(answers=[Answer(words(CODE)), Answer(words("No."))])) as desk:
        await desk.say("A question")
        await desk.finish()
        await click(desk, "A question")
        for code in ("b = 2\nc = 3", "a = 1", "b = 2\nc = 3"):
            await click(desk, "copies code")
            assert desk.app.clipboard == code
        await click(desk, "copies ·")
        assert desk.app.clipboard.strip() == CODE.strip()
        await click(desk, "edits")
        assert desk.prompt.text == "A question"
        await click(desk, "esc leaves it")
        await click(desk, "answers again")
        await desk.finish()
        assert desk.turns[0].answer == "No."
        await click(desk, "older")
        assert desk.turns[0].answer.strip() == CODE.strip()


async def test_a_click_tries_again_what_failed(open_desk: OpenDesk) -> None:
    answers = [Answer((), PeerLost("shard-2", "gone")), Answer(words("Yes."))]
    async with open_desk(FakeCoordinator(answers=answers)) as desk:
        await desk.say("A question")
        await desk.finish()
        assert isinstance(desk.turns[0].phase, Failed)
        await click(desk, "tries again")
        await desk.finish()
        assert isinstance(desk.turns[0].phase, Finished)


async def test_a_drag_selects_and_leaves_the_focus_and_marks_nothing(open_desk: OpenDesk) -> None:
    async with open_desk(FakeCoordinator(answers=[Answer(words("One line.  \nAnother line."))])) as desk:
        await desk.say("A question")
        await desk.finish()
        await click(desk, "A question")
        y = next(i for i, line in enumerate(desk.screen_text().splitlines()) if "One line" in line)
        await desk.pilot.mouse_down(offset=(2, y))
        await desk.pilot.hover(offset=(8, y + 1))
        await desk.pilot.mouse_up(offset=(8, y + 1))
        await desk.pilot.press("ctrl+c")
        assert desk.app.clipboard == "One line.\nAnother", "as it was said: without the mark of the turn"
        assert desk.prompt.has_focus


async def test_a_double_click_selects_a_word(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.finish()
        y, line = next((i, x) for i, x in enumerate(desk.screen_text().splitlines()) if "capital" in x)
        chat = desk.app.query_one(ChatLog)
        at = Offset(line.index("capital") + 3, y) - chat.region.offset
        await desk.pilot.click(chat, offset=at, times=2)
        assert desk.app.screen.get_selected_text() == "capital"
