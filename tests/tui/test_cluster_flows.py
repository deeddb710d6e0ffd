"""What a user does with the cluster half: looks at devices and layers, filters the log, changes the plan."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest
from textual.pilot import Pilot

from dnet_core.events import Event, MemoryReported, PeerOffered, RingLost, SessionEnded
from dnet_core.types.generation import GenerationEvent, GenerationRequest, SamplingParams
from dnet_core.types.ring import LayerWindow
from dnet_tui.app import DnetApp
from dnet_tui.chat import ChatSettings, Queued, Stopped, asked, request_for
from dnet_tui.figures import device_figures
from dnet_tui.screens.device import DeviceScreen
from dnet_tui.screens.plan import PlanScreen
from dnet_tui.state import ClusterView, Device, Loading, Preparing, Ready
from dnet_tui.widgets.activity_log import ActivityLog, LogView
from dnet_tui.widgets.device_card import Card, sparks
from dnet_tui.widgets.device_list import DeviceList
from dnet_tui.widgets.key_bar import KeyBar
from dnet_tui.widgets.layer_strip import LayerStrip
from dnet_tui.widgets.timeline import Timeline
from tests.fake_coordinator import peer
from tests.tui.macs import FITS, GatedMacs, ask, checked, loaded, macs_app
from tests.tui.test_prose import LOOK


@dataclass
class Table:
    """A running app over simulated Macs, and the hands of a user."""

    app: DnetApp
    macs: GatedMacs
    pilot: Pilot[None]

    async def press(self, *keys: str) -> None:
        for key in keys:
            await self.pilot.press(key)
            await checked(self.pilot)

    def text(self) -> str:
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    def line(self, start: str) -> str:
        """The first line, or the part of one between two frames, that begins with `start`."""
        parts = [part.strip() for line in self.text().splitlines() for part in re.split("[│┃]", line)]
        found = [part for part in parts if part.startswith(start)]
        assert found, f"no line begins with {start}:\n{self.text()}"
        return found[0]

    @property
    def log(self) -> set[str]:
        return {line.text for line in self.app.query_one(ActivityLog).lines}

    @property
    def plan(self) -> PlanScreen:
        assert isinstance(self.app.screen, PlanScreen)
        return self.app.screen

    @property
    def windows(self) -> dict[str, LayerWindow]:
        """What the plan on the screen gives each device."""
        return {a.peer: a.windows[0] for a in self.plan._state.solution.plan.assignments}


OpenTable = Callable[..., AbstractAsyncContextManager[Table]]


@asynccontextmanager
async def _open_table(count: int = 4, size: tuple[int, int] = (120, 40)) -> AsyncIterator[Table]:
    macs = GatedMacs(count)
    app = macs_app(macs, FITS)
    async with app.run_test(size=size) as pilot:
        await loaded(macs, pilot)
        yield Table(app, macs, pilot)


@pytest.fixture
def open_table() -> OpenTable:
    return _open_table


# ---- devices ----


async def test_cards_show_what_was_measured_and_nothing_else(open_table: OpenTable) -> None:
    async with open_table() as table:
        text = table.text()
        for told in (
            "M4 Pro 20c · 9.2 TFLOPS",
            "17/24 GB",
            "L57–68 · 12 in RAM",
            "→ D TB 0.30 ms · disk 5.2 GB/s",
        ):
            assert told in text
        assert text.count("no token measured yet") == 4
        assert "busy" not in text
        await ask(table.macs, table.pilot, 20)
        text = table.text()
        assert "no token measured yet" not in text
        assert text.count("ms/tok") == 4
        shares = [int(line.split("% busy")[0].split()[-1]) for line in text.splitlines() if "% busy" in line]
        assert len(shares) == 4
        assert 85 <= sum(shares) <= 100, "the rest of a token is network"


async def test_a_card_tells_no_reason_for_what_its_device_does_not_have(open_table: OpenTable) -> None:
    async with open_table(count=2) as table:
        await table.press("f5")
        assert isinstance(table.app.view.model, Preparing)
        assert table.text().count("not in the ring") == 2
        assert "layers in" not in table.text()


async def test_a_device_is_chosen_and_opened_with_keys(open_table: OpenTable) -> None:
    async with open_table() as table:
        table.app.query_one(DeviceList).focus()
        await table.pilot.pause()
        assert "┏━ A air" in table.text(), "the chosen card has a heavy frame"
        await table.press("j", "j", "k", "G", "g", "j", "enter")
        assert isinstance(table.app.screen, DeviceScreen)
        text = table.text()
        assert "B studio" in table.text()
        assert "Apple M2 Max 38c · macOS 26 · MLX 0.32" in text
        assert "runs 50 of 94 layers in" in text
        assert "used 71 GB · peak 71 GB · for models 72 GB · in all 96 GB" in text
        assert table.line("next").split() == [
            "next",
            "→",
            "C",
            "mini",
            "0.30",
            "ms",
            "2.6",
            "GB/s",
            "Thunderbolt",
        ]
        await table.press("n")
        assert "Apple M4 Pro 20c" in table.text()
        await table.press("p", "p")
        assert "Apple M2 10c" in table.text()
        await table.press("escape")
        assert not isinstance(table.app.screen, DeviceScreen)


async def test_a_device_is_opened_with_the_mouse_from_everywhere(open_table: OpenTable) -> None:
    async with open_table(size=(200, 60)) as table:
        for selector, offset, name in (
            ("DeviceList", (5, 10), "B studio"),
            ("#strip", (150, 0), "D mbp-16"),
            ("RingPanel", (2, 3), "C mini"),
        ):
            assert await table.pilot.click(selector, offset=offset)
            await table.pilot.pause()
            assert isinstance(table.app.screen, DeviceScreen), selector
            assert table.app.screen._box.border_title == name
            await table.pilot.click(offset=(1, 1))
            await table.pilot.pause()
            assert not isinstance(table.app.screen, DeviceScreen), "a click beside it closes it"


async def test_a_device_that_leaves_in_mid_answer_is_red_and_comes_back(open_table: OpenTable) -> None:
    async with open_table(size=(200, 60)) as table:
        await ask(table.macs, table.pilot, 10)
        table.macs.lose("air")
        await table.pilot.pause()
        assert "✗ A air" in table.text()
        assert "lost: the connection was closed" in table.text()
        assert "╳" in table.text().splitlines()[1]
        await table.macs.until(lambda: bool(table.macs.ended), table.pilot)
        assert isinstance(table.app.view.model, Ready)
        assert "A studio" in table.text(), "the others have its layers"
        assert {
            "air left: the connection was closed",
            "ring broken at air: the connection was closed; answers wait",
            "placing the layers again on studio, mbp-16, mini",
        } <= table.log
        (note,) = table.app.conversation.turns[-1].reply.notes
        assert all(name in note.split("; placed anew on ")[1] for name in ring(table.app))
        assert re.search(r"↻ air left after \d+ tok; placed anew on", table.text()), "it stays in the turn"
        table.macs.rejoin("air")
        await table.pilot.pause()
        assert "✗" not in table.text().splitlines()[0]
        assert "air is back and can take part again" in table.log


def ring(app: DnetApp) -> set[str]:
    plan = app.view.plan
    return {a.peer for a in plan.assignments} if plan is not None else set()


async def test_a_device_that_is_back_is_taken_in_from_the_palette(open_table: OpenTable) -> None:
    async with open_table(size=(200, 60)) as table:

        def offers() -> dict[str, Callable[[], object]]:
            commands = table.app.get_system_commands(table.app.screen)
            return {c.title: c.callback for c in commands if c.title.startswith("Take in")}

        assert offers() == {}
        table.macs.lose("air")
        await table.macs.until(
            lambda: isinstance(table.app.view.model, Ready) and "air" not in ring(table.app), table.pilot
        )
        table.macs.rejoin("air")
        await table.pilot.pause()
        offers()["Take in air"]()
        await table.macs.until(
            lambda: isinstance(table.app.view.model, Ready) and "air" in ring(table.app), table.pilot
        )
        assert offers() == {}


async def test_loading_an_edited_plan_is_cancelled_and_tried_again(open_table: OpenTable) -> None:
    async with open_table() as table:
        loaded_plan = table.app.view.plan
        await table.press("f12", "j", "right")
        await checked(table.pilot)
        await table.press("enter")
        await table.macs.until(lambda: isinstance(table.app.view.model, Loading), table.pilot)
        await table.press("escape", "escape")
        await table.macs.gate.arrive()
        await table.pilot.pause()
        assert "loading was cancelled" in table.text()
        assert not table.macs.is_changing
        assert len(table.macs.plans_loaded) == 1
        await table.press("ctrl+r")
        await table.macs.until(lambda: len(table.macs.plans_loaded) == 2, table.pilot)
        await table.pilot.pause()
        assert isinstance(table.app.view.model, Ready)
        assert table.app.view.plan == loaded_plan, "as the solver finds best"


async def test_answers_in_flight_say_whose_they_are(open_table: OpenTable) -> None:
    async with open_table(size=(200, 60)) as table:
        assert "none" in table.line("Answers in flight")
        await ask(table.macs, table.pilot, 3)
        assert table.line("Answers in flight").endswith("chat 1")
        stream = table.macs.generate(
            request_for((asked("Over the API", Queued("")),), ChatSettings(), SamplingParams())
        )
        async with aclosing(stream):
            await anext(stream)
            await table.pilot.pause()
            assert table.line("Answers in flight").endswith("chat 1 · API 1")


async def test_a_stopped_answer_is_the_chat_s_until_the_ring_has_left_it(open_table: OpenTable) -> None:
    async with open_table(size=(200, 60)) as table:
        generate, tell = table.macs.generate, table.macs.tell
        may_end, held = asyncio.Event(), list[Event]()

        async def slow_to_stop(request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]:
            async with aclosing(generate(request)) as events:
                try:
                    async for event in events:
                        yield event
                finally:
                    await may_end.wait()

        table.macs.generate = slow_to_stop  # type: ignore[method-assign]
        table.macs.tell = lambda e: held.append(e) if isinstance(e, SessionEnded) else tell(e)  # type: ignore[method-assign]
        await ask(table.macs, table.pilot, 3)
        await table.press("escape")
        assert isinstance(table.app.conversation.turns[0].phase, Stopped)
        table.app._side._pace.flush_now()
        await table.pilot.pause()
        assert table.line("Answers in flight").endswith("chat 1")
        may_end.set()
        tell(*held)
        await table.pilot.pause()
        table.app._side._pace.flush_now()
        await table.pilot.pause()
        assert table.line("Answers in flight").endswith("none")


async def test_an_answer_of_the_chat_stays_the_chat_s_until_its_end_is_shown(open_table: OpenTable) -> None:
    async with open_table(size=(200, 60)) as table:
        await ask(table.macs, table.pilot, 3)
        pace = table.app._side._pace
        pace._interval_s = 1000.0
        pace.flush_now()
        await table.macs.until(lambda: bool(table.macs.ended), table.pilot)
        await table.pilot.pause()
        assert not table.app.conversation.is_answering
        assert table.line("Answers in flight").endswith("chat 1"), "as old as the view"
        pace.flush_now()
        await table.pilot.pause()
        assert table.line("Answers in flight").endswith("none")


async def test_a_chip_is_told_in_full_where_there_is_room(open_table: OpenTable) -> None:
    for size, chip in (((200, 60), "Apple M2 10c · macOS"), ((40, 24), "M2 10c · macOS")):
        async with open_table(size=size) as table:
            table.app.post_message(DeviceList.Opened("air"))
            await table.pilot.pause()
            assert f"Machine   {chip}" in table.text()


async def test_the_timeline_adds_up_to_the_time_of_a_token(open_table: OpenTable) -> None:
    async with open_table(3, size=(200, 60)) as table:
        await ask(table.macs, table.pilot, 20)
        panel = table.app.query_one(Timeline)
        lines = [strip.text.rstrip() for strip in (panel.render_line(y) for y in range(panel.size.height))]
        total = float(lines[0].split()[-2])
        bars = [line for line in lines if line[:2] in ("A ", "B ", "C ")]
        parts = [float(bar.split()[-2]) for bar in bars]
        assert len(parts) == 3
        assert sum(parts) == pytest.approx(total, abs=2), "as far as they are rounded"
        assert all("█" in bar for bar in bars)
        assert "▒" in bars[0], "what it waits for its disk"
        ends = [max(x for x, letter in enumerate(bar) if letter in "█▒░") for bar in bars]
        starts = [min(x for x, letter in enumerate(bar) if letter in "█▒░") for bar in bars]
        assert all(abs(start - end - 1) <= 1 for end, start in zip(ends, starts[1:], strict=False)), (
            "one by one"
        )


@pytest.mark.parametrize(
    ("used", "sign", "color"), [(80, "", "own"), (86, "", "warning"), (96, "!", "error")]
)
def test_the_memory_bar_warns_before_it_is_full(used: int, sign: str, color: str) -> None:
    seen = Device(peer("x"), None, MemoryReported("x", used * 10**9, used * 10**9, 70 * 10**9, 100 * 10**9))
    (figures,) = device_figures(ClusterView(devices=(seen,)))
    line = Card(figures, 1.0, LOOK).memory(38)
    wanted = {"own": LOOK.device(0), "warning": LOOK.warning, "error": LOOK.vivid(LOOK.error)}[color]
    assert line[1][1].color == wanted.rich_color
    assert line[-1][0].strip() == f"{sign}{used}/100 GB"


def test_bars_of_history_stand_on_zero() -> None:
    assert sparks((0.0, 1.0, 4.0), 4.0, 3) == " ▃█"
    assert sparks((3.9, 4.0), 4.0, 2) == "██", "close times look alike"


# ---- layers ----


async def test_layers_are_walked_with_arrows_and_open_their_device(open_table: OpenTable) -> None:
    async with open_table() as table:
        table.app.query_one(LayerStrip).focus()
        await table.press("right", "right")
        assert "L2 · A air · in memory · 1.4 GB" in table.text()
        assert "▼" in table.text().splitlines()[1]
        await table.press("end")
        assert "L93 · D mbp-16 · in memory · 1.4 GB" in table.text()
        await table.press("enter")
        assert isinstance(table.app.screen, DeviceScreen)
        assert table.app.screen._box.border_title == "D mbp-16"


async def test_a_streamed_layer_says_so_and_what_its_last_turn_took(open_table: OpenTable) -> None:
    async with open_table(3) as table:
        await ask(table.macs, table.pilot, 10)
        table.app.query_one(LayerStrip).focus()
        await table.press("home")
        assert "L0 · A studio · streamed · 1.4 GB · last turn" in table.text().splitlines()[2]
        assert "ms for 27 layers" in table.text().splitlines()[2]


# ---- activity ----


async def test_the_focus_is_seen_and_says_its_keys(open_table: OpenTable) -> None:
    async with open_table(count=2, size=(80, 24)) as table:
        await table.press("ctrl+l")
        assert "tab comes here, to choose a device" in table.text()
        assert table.line("Activity").endswith("tab comes here, / filters")
        await table.press("tab")
        assert table.app.focused is table.app.query_one("#strip")
        assert table.line("L0").endswith("← → others · enter opens")
        await table.press("tab")
        assert "enter opens · x plans without · ↓ ↑ others" in table.text()
        table.app.query_one(LogView).focus()
        await table.press("down")
        assert table.line("▸ Activity").endswith(" / filters")
        await table.press("slash")
        assert "▸ Activity" in table.text()
        await table.press("escape")
        assert "chat.stop" in {b.binding.id for b in table.app.screen.active_bindings.values()}
        await table.press("escape")
        assert table.line("Activity").endswith("tab comes here, / filters")


async def test_no_line_of_the_log_is_cut_when_its_scroll_bar_comes(open_table: OpenTable) -> None:
    async with open_table(size=(200, 60)) as table:
        view = table.app.query_one(LogView)
        width = view.scrollable_content_region.width
        for _ in range(40):
            table.app._note(RingLost(FITS, "mbp-16", "a reason that is longer than a line of the log"))
        table.app._show_view()
        table.app._side._pace.flush_now()
        await table.pilot.pause()
        assert view.show_vertical_scrollbar
        assert view.scrollable_content_region.width == width


async def test_a_device_that_is_back_is_told_with_what_takes_it_in(open_table: OpenTable) -> None:
    async with open_table() as table:
        table.app._note(PeerOffered("mini", FITS))
        await table.pilot.pause()
        assert [n.message for n in table.app._notifications] == ["mini is back: ctrl+p, Take in mini."]


async def test_a_plan_without_a_device_says_nothing_of_more_devices_and_all_of_what_streams(
    open_table: OpenTable,
) -> None:
    async with open_table(count=2, size=(80, 24)) as table:
        await table.press("f12", "x")
        assert "too few or too many" not in table.text()
        await table.press("u", "minus")
        assert "MB/token from disk" in table.text() or "GB/token from disk" in table.text()


async def test_the_log_is_filtered_and_shown_again(open_table: OpenTable) -> None:
    async with open_table(size=(200, 60)) as table:
        assert "studio joined" in table.text()
        table.app.query_one(LogView).focus()
        await table.press("slash", "m", "e", "a", "s")
        assert "studio joined" not in table.text()
        assert "measuring the devices for" in table.text()
        assert "2 of 9" in table.text()
        await table.press("enter")
        assert isinstance(table.app.focused, LogView)
        await table.press("escape")
        assert "studio joined" in table.text()
        await table.press("escape")
        assert table.app.focused is table.app.conversation.prompt, "esc without a filter goes to the prompt"


async def test_the_log_stays_at_the_newest_until_it_is_scrolled_up(open_table: OpenTable) -> None:
    async with open_table(size=(80, 24)) as table:
        for _ in range(3):
            await ask(table.macs, table.pilot)
        await table.press("ctrl+l")
        view = table.app.query_one(LogView)
        assert view.max_scroll_y > 0
        assert view.scroll_y == view.max_scroll_y
        view.focus()
        await table.press("g")
        assert view.scroll_y == 0
        table.macs.lose("air")
        await table.pilot.pause()
        assert view.scroll_y == 0
        await table.press("G")
        table.macs.rejoin("air")
        await table.pilot.pause()
        await table.pilot.pause()
        assert view.scroll_y == view.max_scroll_y


# ---- the plan ----


async def test_the_plan_tells_what_it_does_and_what_others_would(open_table: OpenTable) -> None:
    async with open_table() as table:
        await table.press("f12")
        assert "57.4 ms/token · 17.4 tok/s" in table.line("predicted")
        assert "no token measured yet" in table.line("measured")
        assert table.line("▪").split()[:4] == ["▪", "4", "57.4", "17.4"]
        assert table.line("1 ").split()[1:3] == ["10570", "0.1"]
        await table.press("escape")
        await ask(table.macs, table.pilot, 20)
        await table.press("f12")
        assert "ms/token" in table.line("measured")


async def test_a_boundary_is_moved_and_the_plan_is_loaded(open_table: OpenTable) -> None:
    async with open_table() as table:
        await table.press("f12", "j", "j", "right")
        assert table.windows == {
            "air": LayerWindow(0, 7),
            "studio": LayerWindow(7, 57),
            "mini": LayerWindow(57, 70),
            "mbp-16": LayerWindow(70, 94),
        }
        assert "13 L57–69" in table.line("▸ C mini")
        assert "than the loaded plan" in table.text()
        assert table.app.view.plan == table.macs.plans_loaded[0], "nothing is loaded yet"
        await table.pilot.click(offset=(0, 0))
        assert (
            "what you changed is not loaded: enter loads it, esc leaves everything as it is" in table.text()
        )
        wanted = table.plan._state.solution.plan
        await table.press("enter")
        assert not isinstance(table.app.screen, PlanScreen)
        await table.macs.until(lambda: len(table.macs.plans_loaded) == 2, table.pilot)
        assert table.macs.plans_loaded[1] == wanted
        assert table.app.view.plan == wanted
        assert "C mini 57–69" in table.text().splitlines()[2]


@pytest.mark.parametrize("key", ["right", "x", "p"])
async def test_a_click_beside_the_plan_loses_neither_what_is_being_checked_nor_a_pin(
    open_table: OpenTable, key: str
) -> None:
    async with open_table() as table:
        await table.press("f12")
        table.macs.solves.clear()
        await table.pilot.press(key)
        await table.pilot.click(offset=(0, 0))
        assert "what you changed is not loaded" in table.text()
        table.macs.solves.set()
        await checked(table.pilot)
        await table.press("u")
        await table.pilot.click(offset=(0, 0))
        assert not isinstance(table.app.screen, PlanScreen), "nothing is changed any more"


async def test_what_does_not_fit_says_why_and_is_not_applied(open_table: OpenTable) -> None:
    async with open_table(3) as table:
        await table.press("f12", "j")
        before = table.plan._state.solution
        await table.press("plus")
        assert "the plan does not fit" in table.text()
        assert "GB more than its budget" in table.text()
        assert table.plan._state.solution is before
        await table.press("j")
        assert "does not fit" not in table.text(), "moving on leaves it behind"
        await table.press("enter")
        assert "this is the plan that is loaded" in table.text()
        await table.press("k", "k", "minus")
        assert "does not fit" not in table.text(), "what was refused is asked for no more"


async def test_undo_automatic_and_close(open_table: OpenTable) -> None:
    async with open_table() as table:
        await table.press("f12")
        found = table.windows
        await table.press("j", "left", "left")
        assert len(table.windows["studio"]) == len(found["studio"]) - 2
        await table.press("u")
        assert len(table.windows["studio"]) == len(found["studio"]) - 1
        await table.press("a")
        assert table.windows == found
        assert "loaded" in table.text()
        await table.press("escape")
        assert len(table.macs.plans_loaded) == 1


async def test_a_device_is_left_out_and_taken_in_again(open_table: OpenTable) -> None:
    async with open_table() as table:
        await table.press("f12", "x")
        assert "air" not in table.windows
        assert "left out by you" in table.line("▸ D air")
        assert "2 rounds" in table.text() or "round 2" in table.text()
        await table.press("x")
        assert set(table.windows) == {"air", "studio", "mini", "mbp-16"}
        assert "loaded" in table.text()


async def test_residency_is_set_by_hand(open_table: OpenTable) -> None:
    async with open_table() as table:
        await table.press("f12", "j", "j", "minus", "minus")
        assert table.line("▸ C mini").split()[5:7] == ["10", "2"]
        assert "from disk" in table.line("predicted")
        await table.press("plus", "plus")
        assert table.line("▸ C mini").split()[5:7] == ["12", "–"]
        await table.press("plus")
        assert "all 12 layers of mini stay in memory already" in table.text()
        await table.press("minus", "minus", "minus", "u", "k", "left")
        assert table.line("C mini").split()[4:6] == ["10", "3"], "one step is undone, those before hold"


async def test_a_pinned_device_keeps_its_layers_when_the_rest_is_planned_anew(open_table: OpenTable) -> None:
    async with open_table() as table:
        await table.press("f12", "j", "left", "p")
        own = table.windows["studio"]
        assert "⚲" in table.line("▸ B studio")
        await table.press("j", "x")
        assert "mini" not in table.windows
        assert table.windows["studio"] == own
        assert "pinned by you" in " ".join(reason.text for reason in table.plan._state.solution.reasons)


async def test_a_boundary_is_dragged_with_the_mouse(open_table: OpenTable) -> None:
    async with open_table() as table:
        await table.press("f12")
        strip = table.app.screen.query_one("#plan-strip")
        width = strip.content_size.width
        edge = 57 * width // 94
        await table.pilot.mouse_down("#plan-strip", offset=(edge, 0))
        await table.pilot.hover("#plan-strip", offset=(edge - 11, 0))
        await checked(table.pilot)
        await table.pilot.mouse_up("#plan-strip", offset=(edge - 11, 0))
        await checked(table.pilot)
        assert table.windows["studio"].stop in (47, 48)
        assert table.windows["mini"].start == table.windows["studio"].stop
        await table.pilot.click("PlanPanel", offset=(3, 4))
        assert table.plan._state.chosen.peer == "mbp-16"


async def test_from_a_device_to_a_plan_without_it(open_table: OpenTable) -> None:
    async with open_table() as table:
        table.app.query_one(DeviceList).focus()
        await table.press("j", "j", "x")
        await checked(table.pilot)
        assert "mini" not in table.windows
        await table.press("escape")
        table.app.query_one(DeviceList).focus()
        await table.press("enter", "x")
        await checked(table.pilot)
        assert "mini" not in table.windows


async def test_the_keys_of_a_plan_fit_80_columns(open_table: OpenTable) -> None:
    async with open_table(size=(80, 24)) as table:
        await table.press("f12")
        assert table.app.screen.query_one(KeyBar).region.right <= 80
        assert "a automatic · enter loads · esc closes" in table.text(), "no key is cut"


async def test_tab_goes_round_the_panels(open_table: OpenTable) -> None:
    async with open_table(size=(200, 60)) as table:
        seen = []
        for _ in range(5):
            await table.press("tab")
            seen.append(type(table.app.focused).__name__)
        assert {"LogView", "LayerStrip", "DeviceList", "Prompt"} <= set(seen)
        assert table.app.query_one(ActivityLog).lines
