"""What a user does, on a scripted cluster: load, ask, wait, stop, try again, start anew, resize."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from textual.command import CommandPalette

from dnet_core.errors import LoadError, PeerLost, StartError
from dnet_core.types.generation import FinishReason, Message, Role, SamplingParams
from dnet_tui.chat import Answering, ChatSettings, Failed, Finished, Queued, Stopped
from dnet_tui.keys import EVERYWHERE, own_bindings
from dnet_tui.state import Ready
from dnet_tui.widgets.chat_log import ChatLog
from tests.fake_coordinator import Answer, FakeCoordinator, words
from tests.tui.conftest import MODEL, OpenDesk, make_app


async def test_loading_is_told_step_by_step(open_desk: OpenDesk) -> None:
    fake = FakeCoordinator(fetch_bytes=98_000_000)
    async with open_desk(fake, loaded=False) as desk:
        assert "preparing" in desk.screen_text()
        await desk.step()
        assert "fetching 24/98 MB" in desk.screen_text()
        await desk.step(4)
        assert "loading 25/99 MB" in desk.screen_text()
        await desk.step(2)
        assert "loading 74/99 MB" in desk.screen_text()
        assert "A shard-1 0–14" in desk.screen_text()
        await desk.step(2)
        assert "loading" not in desk.screen_text()
        assert "● 2 devices" in desk.screen_text()


async def test_an_answer_streams_and_tells_how_it_went(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("What is the capital of France?")
        assert desk.prompt.text == ""
        assert "reading prompt" in desk.screen_text()
        await desk.step(4)  # 0.3 s for the prompt, then three tokens of 0.09 s
        assert desk.turns[0].answer == "The capital of"
        phase = desk.turns[0].phase
        assert isinstance(phase, Answering)
        assert phase.ttft_s == pytest.approx(0.39)
        assert "3 tok · 11.1 tok/s · esc stops" in desk.screen_text()
        await desk.finish()
        assert isinstance(desk.turns[0].phase, Finished)
        text = desk.screen_text()
        assert "The capital of France is Paris." in text, "bold without its stars"
        assert "✓ 6 tok · 11.8 tok/s · first token 1.9 s" in text
        assert "first token 1.9 s  11.8 tok/s" in text.splitlines()[0]


async def test_prefill_tells_how_far_it_is(open_desk: OpenDesk) -> None:
    fake = FakeCoordinator(prompt_tokens=4000, prompt_chunks=10)
    async with open_desk(fake) as desk:
        await desk.say("A long question")
        await desk.pilot.pause()
        assert "reading prompt 0/4.0k tok" in desk.screen_text()
        await desk.step(3)
        (line,) = [line for line in desk.screen_text().splitlines() if "reading prompt" in line]
        assert line.strip().endswith("reading prompt 1.2k/4.0k tok · 2.1 s left · esc stops")


async def test_the_conversation_and_the_settings_reach_the_request(open_desk: OpenDesk) -> None:
    sampling = SamplingParams(temperature=0.25, top_p=0.5, seed=7, max_tokens=99)
    async with open_desk(settings=ChatSettings(sampling, system="Be brief.")) as desk:
        await desk.say("One?")
        await desk.finish()
        await desk.say("Two?")
        await desk.finish()
        request = desk.fake.requests[1]
        assert request.sampling == sampling
        assert request.messages == (
            Message(Role.SYSTEM, "Be brief."),
            Message(Role.USER, "One?"),
            Message(Role.ASSISTANT, "The capital of France is **Paris**."),
            Message(Role.USER, "Two?"),
        )


async def test_a_message_written_while_loading_is_sent_when_ready(open_desk: OpenDesk) -> None:
    async with open_desk(loaded=False) as desk:
        await desk.say("Early question")
        assert isinstance(desk.turns[0].phase, Queued)
        assert "sends when ready" in desk.screen_text()
        await desk.say("A second one")
        assert desk.prompt.text == "A second one", "only one waits, and what was typed is not lost"
        await desk.load()
        assert [m.content for m in desk.fake.requests[0].messages] == ["Early question"]
        await desk.finish()
        assert isinstance(desk.turns[0].phase, Finished)


async def test_esc_takes_a_waiting_message_back(open_desk: OpenDesk) -> None:
    async with open_desk(loaded=False) as desk:
        await desk.say("Early question")
        await desk.pilot.press("escape")
        assert desk.turns == ()
        assert desk.prompt.text == "Early question"
        await desk.load()
        assert desk.fake.requests == []


async def test_esc_takes_the_waiting_message_back_before_it_stops_the_answer(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("First")
        await desk.step(2)
        await desk.say("Second")
        await desk.pilot.press("escape")
        assert [turn.prompt for turn in desk.turns] == ["First"]
        assert desk.prompt.text == "Second"
        assert desk.fake.ended == [], "the answer goes on"
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert isinstance(desk.turns[0].phase, Stopped)
        assert desk.prompt.text == "Second"


async def test_esc_takes_a_notice_away(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.pilot.press("ctrl+g")
        assert len(desk.app._notifications) == 1
        await desk.pilot.press("escape")
        assert len(desk.app._notifications) == 0


async def test_esc_stops_the_ring_and_keeps_the_partial_answer(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.step(3)
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert desk.fake.closed_after == [2], "the stream was closed, and that stops the shards"
        assert desk.turns[0].phase == Stopped(2)
        assert "The capital" in desk.screen_text()
        assert "■ stopped after 2 tok" in desk.screen_text()
        await desk.say("Another")
        await desk.finish()
        assert isinstance(desk.turns[1].phase, Finished), "the ring answers again"


async def test_a_message_sent_during_an_answer_waits_for_its_end(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("First")
        await desk.step(2)
        await desk.say("Second")
        assert "sends when this answer ends" in desk.screen_text()
        await desk.finish()
        assert isinstance(desk.turns[0].phase, Finished)
        await desk.finish()
        assert desk.turns[1].answer == "The capital of France is **Paris**."
        assert len(desk.fake.requests) == 2


async def test_an_error_stands_in_the_turn_where_it_happened(open_desk: OpenDesk) -> None:
    broken = Answer(words("Half an answer"), PeerLost("shard-2", "the connection was closed"))
    async with open_desk(FakeCoordinator(answers=[broken, Answer(words("All of it"))])) as desk:
        await desk.say("A question")
        await desk.finish()
        assert desk.turns[0].phase == Failed("shard-2 left the ring: the connection was closed", 3)
        text = desk.screen_text()
        assert "Half an answer" in text
        assert "shard-2 left the ring: the connection was closed" in text
        assert "✗ failed after 3 tok · ctrl+r tries again" in text
        await desk.pilot.press("ctrl+r")
        await desk.finish()
        assert desk.turns[0].answer == "All of it"
        assert "left the ring" not in desk.screen_text()


async def test_regenerate_asks_the_last_question_again(open_desk: OpenDesk) -> None:
    answers = [Answer(words("Red")), Answer(words("Green"))]
    async with open_desk(FakeCoordinator(answers=answers)) as desk:
        await desk.say("A colour?")
        await desk.finish()
        await desk.pilot.press("ctrl+r")
        await desk.finish()
        assert [turn.answer for turn in desk.turns] == ["Green"]
        assert desk.fake.requests[0].messages == desk.fake.requests[1].messages
        assert "Red" not in desk.screen_text()


async def test_new_chat_stops_the_answer_and_forgets_the_conversation(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.step(2)
        await desk.pilot.press("ctrl+n")
        await desk.pilot.pause()
        assert desk.turns == ()
        assert desk.fake.closed_after == [1]
        assert "Ask anything." in desk.screen_text()
        await desk.say("Fresh")
        await desk.finish()
        assert [m.content for m in desk.fake.requests[1].messages] == ["Fresh"]


async def test_a_load_that_fails_says_why_and_can_be_tried_again(open_desk: OpenDesk) -> None:
    fake = FakeCoordinator(load_error=LoadError("the disk is full: needs 98 MB, has 12 MB"))
    async with open_desk(fake, loaded=False) as desk:
        await desk.step()
        assert "needs 98 MB, has 12 MB" in desk.screen_text()
        assert "not loaded" in desk.screen_text().splitlines()[0]
        await desk.say("A question")  # asking is trying again
        await desk.step()
        assert isinstance(desk.turns[0].phase, Failed)
        desk.fake.load_error = None
        await desk.pilot.press("ctrl+r")
        await desk.load()
        await desk.finish()
        assert desk.turns[0].answer == "The capital of France is **Paris**."
        assert "disk is full" not in desk.screen_text()
        assert desk.fake.num_loads == 3


async def test_a_cluster_that_cannot_start_ends_the_app_with_one_line() -> None:
    app = make_app(FakeCoordinator(start_error=StartError("port 58080 is taken")))
    async with app.run_test() as pilot:
        await pilot.pause()
    assert app.fatal == "port 58080 is taken"
    assert app.return_code == 1


async def test_quitting_closes_the_stream_and_then_the_cluster(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.step(2)
        assert desk.fake.is_open
        await desk.pilot.press("ctrl+q")
    assert desk.fake.closed_after == [1]
    assert not desk.fake.is_open
    assert desk.app.return_code == 0


async def test_a_lost_device_is_named_and_comes_back(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        desk.fake.lose("shard-2", "connection closed")
        await desk.pilot.pause()
        text = desk.screen_text()
        assert "✗ 1 of 2 devices" in text
        assert "╳" in text.splitlines()[1]
        await desk.pilot.press("ctrl+l")
        await desk.pilot.pause()
        assert "lost: connection closed" in desk.screen_text()
        desk.fake.join("shard-2")
        await desk.pilot.pause()
        assert "● 2 devices" in desk.screen_text()


async def test_the_cluster_list_shows_where_a_token_spends_its_time(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.finish()
        await desk.pilot.press("ctrl+l")
        await desk.pilot.pause()
        rows = desk.screen_text().splitlines()
        row = next(line for line in rows if "B shard-2" in line and "15–29" in line and "%" in line)
        assert row.split() == ["B", "shard-2", "L15–29", "–", "32.6", "31.9", "0.0", "0.6", "49%"]
        await desk.pilot.press("ctrl+l")
        await desk.pilot.pause()
        assert "Paris" in desk.screen_text()


async def test_up_brings_back_what_was_sent(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        for text in ("first", "second"):
            await desk.say(text)
            await desk.finish()
        await desk.pilot.press("up")
        assert desk.prompt.text == "second"
        await desk.pilot.press("up")
        assert desk.prompt.text == "first"
        await desk.pilot.press("down")
        assert desk.prompt.text == "second"
        await desk.pilot.press("x", "up")
        assert desk.prompt.text == "secondx", "an edited text is not replaced"


async def test_ctrl_j_starts_a_new_line_and_the_prompt_grows_to_six(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        assert desk.prompt.size.height == 1
        await desk.pilot.press("a", "ctrl+j", "b", "shift+enter", "c")
        await desk.pilot.pause()
        assert desk.prompt.text == "a\nb\nc"
        assert desk.prompt.size.height == 3
        await desk.pilot.press(*["ctrl+j"] * 9)
        await desk.pilot.pause()
        assert desk.prompt.size.height == 6


async def test_the_view_follows_unless_the_user_scrolled_up(open_desk: OpenDesk) -> None:
    long = Answer(tuple(f"line {i}\n\n" for i in range(60)))
    async with open_desk(FakeCoordinator(answers=[long])) as desk:
        chat = desk.app.query_one(ChatLog)
        await desk.say("A question")
        await desk.step(30)
        await desk.pilot.pause()
        assert chat.max_scroll_y > 0
        assert chat.scroll_y == chat.max_scroll_y
        await desk.pilot.press("pageup")
        await desk.pilot.pause()
        seen = chat.scroll_y
        await desk.step(10)
        await desk.pilot.pause()
        assert chat.scroll_y == seen < chat.max_scroll_y
        await desk.pilot.press("pagedown", "pagedown", "pagedown")
        await desk.step(5)
        await desk.pilot.pause()
        assert chat.scroll_y == chat.max_scroll_y


async def test_the_view_stays_at_the_newest_when_its_room_changes(open_desk: OpenDesk) -> None:
    long = Answer(tuple(f"line {i}\n\n" for i in range(60)))
    async with open_desk(FakeCoordinator(answers=[long]), size=(200, 60)) as desk:
        chat = desk.app.query_one(ChatLog)
        await desk.say("A question")
        await desk.step(20)
        assert chat.max_scroll_y == 0, "all of it is seen"
        await desk.pilot.resize_terminal(80, 24)
        await desk.pilot.pause()
        assert chat.scroll_y == chat.max_scroll_y > 0
        await desk.pilot.press("ctrl+j", "ctrl+j", "ctrl+j")
        await desk.step(10)
        assert desk.prompt.size.height == 4
        assert chat.scroll_y == chat.max_scroll_y, "an answer is followed while something is written"
        await desk.pilot.press("ctrl+l", "ctrl+l")
        await desk.step(5)
        assert chat.scroll_y == chat.max_scroll_y
        await desk.pilot.press("pageup")
        await desk.pilot.resize_terminal(80, 20)
        await desk.pilot.pause()
        assert chat.scroll_y < chat.max_scroll_y, "who reads further up is left there"


async def test_resizing_keeps_everything(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.step(4)
        for size in ((120, 40), (200, 60), (59, 15), (39, 9), (20, 5), (80, 24)):
            await desk.pilot.resize_terminal(*size)
            await desk.pilot.pause()
            lines = desk.screen_text().splitlines()
            narrow, flat = size[0] < 40, size[1] < 10
            assert ("Too small" in lines[0]) == (narrow or flat), size
            assert desk.app.query_one("#keys").display == (size[0] >= 40 and size[1] >= 16), size
            assert desk.app.query_one("#devices").display == (size[0] >= 120 and size[1] >= 30), size
            assert desk.prompt.size.height >= 1, size
        await desk.finish()
        assert "The capital of France is Paris." in desk.screen_text()
        assert isinstance(desk.app.view.model, Ready)


async def test_help_lists_every_key(open_desk: OpenDesk) -> None:
    async with open_desk(size=(80, 50)) as desk:
        await desk.pilot.press("f1")
        await desk.pilot.pause()
        text = desk.screen_text()
        for words_ in ("Start a new conversation", "Answer the last question again", "ctrl+q", "New line"):
            assert words_ in text
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert "Start a new conversation" not in desk.screen_text()
        assert desk.app.focused is desk.prompt


async def test_the_palette_reaches_what_keys_reach(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.finish()
        commands = {c.title: c.callback for c in desk.app.get_system_commands(desk.app.screen)}
        keys = [key.id for key in desk.app.all_keys() if key.scope == EVERYWHERE and not key.fixed]
        titles = {b.id: b.description for kind in type(desk.app).__mro__ for b in own_bindings(kind)}
        assert {titles[key] for key in keys} <= set(commands), "all that keys do everywhere"
        assert {"Theme: light", "Reload model", "Copy answer", "Copy chat", "Endpoint panel"} <= set(commands)
        told = {c.title: c.help for c in desk.app.get_system_commands(desk.app.screen)}
        assert told["Again"] == "ctrl+r · Answer the last question again"
        commands["Copy"]()
        commands["Copy"]()
        await desk.pilot.pause()
        assert desk.app._exit is False, "only its key quits"
        await desk.pilot.press("ctrl+p")
        await desk.pilot.pause()
        assert isinstance(desk.app.screen, CommandPalette)
        await desk.pilot.press("escape")
        result = commands["New"]()
        if inspect.isawaitable(result):
            await result
        assert desk.turns == ()


async def test_nothing_waits_for_the_network_in_a_handler(open_desk: OpenDesk) -> None:
    """A cluster that never answers leaves every key working."""
    async with open_desk(loaded=False) as desk, asyncio.timeout(5):
        await desk.pilot.press("h", "i", "f1", "escape", "ctrl+l", "ctrl+l", "ctrl+n")
        assert desk.prompt.text == "hi"
        assert desk.app.title == "dnet"
        assert MODEL in desk.screen_text()
        assert desk.fake.ended == [] and FinishReason.STOP not in desk.fake.ended


async def test_what_the_mouse_selects_is_what_is_copied(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("What is the capital?")
        await desk.finish()
        y = next(i for i, line in enumerate(desk.screen_text().splitlines()) if "The capital of" in line)
        await desk.pilot.mouse_down(offset=(2, y))
        await desk.pilot.hover(offset=(12, y))
        await desk.pilot.mouse_up(offset=(12, y))
        assert desk.app.screen.get_selected_text() == "The capital"


async def test_a_new_theme_repaints_the_turns_that_are_there(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("What is the capital?")
        await desk.finish()

        def colour_of_the_answer() -> object:
            strips = desk.app.screen._compositor.render_strips()
            line = next(strip for strip in strips if "The capital of France" in strip.text)
            return next(s.style.color for s in line if s.style and "The capital" in s.text)

        dark = colour_of_the_answer()
        desk.app.theme = "textual-light"
        await desk.pilot.pause()
        await desk.pilot.pause()
        assert colour_of_the_answer() != dark
