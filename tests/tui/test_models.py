"""The model picker: what it lists and says of fit; loading, fetching beside a chat, deleting, searching."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input, Static

from dnet_core.demo.cluster import DemoCluster
from dnet_core.demo.worlds import Macs
from dnet_core.errors import LoadError, NotReady
from dnet_core.events import STOPPED, DownloadEnded, Event, FetchProgressed, LoadProgressed
from dnet_core.types.models import Fits, ModelEntry, ModelFit, ModelOrigin, Room, TooBig
from dnet_tui.app import DnetApp
from dnet_tui.catalogue import Catalogue, Row, fit_text, state_text
from dnet_tui.pace import Timing
from dnet_tui.screens.models import ModelPicker
from dnet_tui.service_app import Services
from dnet_tui.state import Loading, Ready, Unusable
from dnet_tui.widgets.model_list import ModelList
from tests.fake_coordinator import FakeCoordinator
from tests.tui.conftest import MODEL, OpenDesk
from tests.tui.test_snapshots import four

QWEN_8B = "mlx-community/Qwen3-8B-4bit"
LLAMA = "mlx-community/Llama-3.3-70B-Instruct-4bit"
GPT = "mlx-community/gpt-oss-20b-MXFP4-Q4"


class Sand:
    """A clock that moves by pauses only; `hold` keeps every pause until it is let go."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.flows = asyncio.Event()
        self.flows.set()

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(0)
        await self.flows.wait()
        self.now_s += seconds

    def clock(self) -> float:
        return self.now_s


@dataclass
class Table:
    app: DnetApp
    pilot: Pilot[None]
    demo: DemoCluster
    sand: Sand

    def text(self) -> str:
        return "\n".join(strip.text.rstrip() for strip in self.app.screen._compositor.render_strips())

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not holds():
                await self.pilot.pause(0.01)

    @property
    def picker(self) -> ModelPicker:
        screen = self.app.screen
        assert isinstance(screen, ModelPicker)
        return screen

    @property
    def chosen(self) -> str | None:
        return self.picker.query_one(ModelList).chosen

    async def open(self) -> None:
        """Open the picker and wait until it knows what fits."""
        await self.pilot.press("ctrl+o")
        await self.until(lambda: len(self.picker.catalogue.fits) == 11)

    async def hold_fetch(self, model: str, *keys: str) -> None:
        """Open the picker, press `keys` on `model`, and hold the download that they begin."""
        await self.open()
        await self.choose(model)
        self.sand.flows.clear()
        await self.pilot.press(*keys)
        await self.until(lambda: model in self.app.work_in_hand.downloads)

    async def choose(self, model: str) -> None:
        self.picker.query_one(ModelList).chosen = model
        self.picker.query_one(ModelList).was_moved = True
        await self.pilot.pause()


@asynccontextmanager
async def table(
    count: int = 2, size: tuple[int, int] = (120, 40), services: Services | None = None
) -> AsyncIterator[Table]:
    """Simulated Macs with a clock of their own; Llama 70B is loaded."""
    sand = Sand()
    demo = DemoCluster(Macs(count), pause=sand.pause, clock=sand.clock)
    timing = Timing(stream_s=0, view_s=0, tick_s=None, blink=False, clock=sand.clock)
    app = DnetApp(lambda: demo, LLAMA, timing=timing, services=services or Services())
    async with app.run_test(size=size) as pilot:
        found = Table(app, pilot, demo, sand)
        await found.until(lambda: isinstance(app.view.model, Ready))
        yield found


async def test_it_lists_what_is_here_first_and_what_each_would_do() -> None:
    async with table() as desk:
        await desk.open()
        text = desk.text()
        assert text.index("on this machine") < text.index("smollm2-135m-instruct") < text.index("well known")
        row = next(line for line in text.splitlines() if "Llama-3.3" in line and "GB" in line)
        assert "●" in row, "loaded"
        assert "40 GB" in row
        assert "80 layers" in row
        assert "fits · 7.8 tok/s" in row
        streams = next(line for line in text.splitlines() if "Qwen3-235B" in line)
        assert "streams 24 layers" in streams
        assert desk.chosen == LLAMA, "what is loaded is highlighted"
        assert "80 layers on 2 devices: about 7.8 tok/s" in text


async def test_the_welcome_suggests_a_small_good_model_and_fetches_nothing_unasked() -> None:
    async with table(services=Services(is_first_use=True)) as desk:
        await desk.until(lambda: len(desk.picker.catalogue.fits) == 11)
        await desk.pilot.pause()
        assert desk.chosen == "mlx-community/Qwen3-4B-4bit"
        await desk.pilot.press("enter")
        assert "2.5 GB to fetch" in desk.text()
        assert not desk.demo.is_changing
        await desk.pilot.press("escape", "escape")
        assert not isinstance(desk.app.screen, ModelPicker)


async def test_enter_loads_another_model_and_the_chat_goes_on() -> None:
    async with table() as desk:
        await desk.open()
        await desk.choose(GPT)
        await desk.pilot.press("enter", "enter")
        await desk.until(lambda: desk.demo.loaded and desk.demo.loaded.model == GPT)
        await desk.until(lambda: isinstance(desk.app.view.model, Ready))
        assert desk.app.view.model_name == GPT
        assert "gpt-oss-20b" in desk.text().splitlines()[0]


async def test_what_is_loaded_answers_until_the_other_is_fetched() -> None:
    async with table() as desk:
        await desk.hold_fetch(QWEN_8B, "enter", "enter")
        assert isinstance(desk.app.view.model, Ready)
        assert desk.app.view.model_name == LLAMA
        assert not desk.demo.is_changing
        desk.sand.flows.set()
        await desk.until(lambda: desk.demo.loaded and desk.demo.loaded.model == QWEN_8B)


@pytest.mark.parametrize("problem", ["the hub cannot be reached", STOPPED])
async def test_a_fetch_that_fails_costs_nothing_that_was_loaded(problem: str) -> None:
    async with table() as desk:
        await desk.hold_fetch(QWEN_8B, "enter", "enter")
        desk.demo.tell(DownloadEnded(QWEN_8B, problem))
        await desk.until(lambda: QWEN_8B not in desk.app.work_in_hand.downloads)
        told = [n.message for n in desk.app._notifications]
        assert (f"{QWEN_8B} was not fetched: {problem}" in told) is (problem != STOPPED)
        assert desk.app.view.model_name == LLAMA
        desk.demo.tell(DownloadEnded(QWEN_8B, None))  # fetched later, by d: that asked for no load
        await desk.pilot.pause()
        assert not desk.demo.is_changing


async def test_what_was_fetched_is_not_loaded_into_the_middle_of_an_answer() -> None:
    async with table() as desk:
        desk.sand.flows.clear()
        desk.app.conversation.prompt.insert("Why?")
        await desk.pilot.press("enter")
        await desk.until(lambda: desk.app.conversation.is_answering)
        await desk.pilot.press("ctrl+o")
        await desk.until(lambda: desk.picker.catalogue.well_known)
        await desk.choose(QWEN_8B)
        await desk.pilot.press("enter", "enter")
        desk.demo.tell(DownloadEnded(QWEN_8B, None))
        said = f"{QWEN_8B} is here: ctrl+o loads it."
        await desk.until(lambda: said in [n.message for n in desk.app._notifications])
        assert desk.app.conversation.is_answering


async def test_enter_on_what_is_loaded_only_goes_back() -> None:
    async with table() as desk:
        await desk.open()
        assert desk.chosen == LLAMA
        assert "enter goes on with it" in desk.text()
        desk.sand.flows.clear()
        await desk.pilot.press("enter")
        await desk.pilot.pause()
        assert not isinstance(desk.app.screen, ModelPicker)
        assert not desk.demo.is_changing


async def test_choosing_while_a_model_loads_cancels_that_load() -> None:
    async with table() as desk:
        desk.sand.flows.clear()
        desk.app.load_model(GPT)
        await desk.until(lambda: desk.demo.is_changing)
        await desk.pilot.press("ctrl+o")
        await desk.choose("smollm2-135m-instruct")
        await desk.pilot.press("enter")
        desk.sand.flows.set()
        await desk.until(lambda: isinstance(desk.app.view.model, Ready))
        assert desk.app.view.model_name == "smollm2-135m-instruct"
        assert desk.demo.loaded is not None
        assert desk.demo.loaded.model == "smollm2-135m-instruct"


async def test_esc_twice_cancels_a_load_and_says_what_to_do(open_desk: OpenDesk) -> None:
    async with open_desk(loaded=False) as desk:
        await desk.step(2)
        assert isinstance(desk.app.view.model, Loading)
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert [n.message for n in desk.app._notifications] == [f"esc again cancels loading {MODEL}"]
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert "loading was cancelled" in desk.screen_text()
        assert "ctrl+o chooses another model" in desk.screen_text()
        assert not desk.fake.is_changing
        await desk.pilot.press("ctrl+r")
        await desk.pilot.pause()
        await desk.load()
        assert isinstance(desk.app.view.model, Ready)


async def test_esc_that_leaves_an_edit_does_not_cancel_a_load(open_desk: OpenDesk) -> None:
    async with open_desk() as desk:
        await desk.say("A question")
        await desk.finish()
        desk.app.load_model(MODEL)
        await desk.step()
        desk.app.conversation.edit(0)
        again = f"esc again cancels loading {MODEL}"
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert desk.prompt.text == "", "the question is left"
        assert again not in [n.message for n in desk.app._notifications]
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert again in [n.message for n in desk.app._notifications]


async def test_d_fetches_beside_the_chat_and_d_stops_it() -> None:
    async with table() as desk:
        await desk.hold_fetch(QWEN_8B, "d", "enter")
        await desk.pilot.pause()
        assert "fetching to this machine 0.0/4.6 GB" in desk.text()
        assert "d stops fetching" in desk.text()
        desk.sand.flows.set()
        await desk.until(lambda: desk.app.work_in_hand.downloads[QWEN_8B].done_bytes > 1e9)
        desk.sand.flows.clear()
        await desk.pilot.pause()
        assert "· 90 MB/s ·" in desk.text()
        assert "s left" in desk.text()
        await desk.pilot.press("d")
        await desk.until(lambda: not desk.app.work_in_hand.downloads)
        await desk.until(lambda: "% fetched, goes on from there" in desk.text())
        assert "◐" in desk.text()
        assert isinstance(desk.app.view.model, Ready), "what is loaded stays loaded"
        desk.sand.flows.set()
        await desk.pilot.press("d")
        assert "GB are here); 212 GB are free in" in desk.text(), "the rest is asked for"
        await desk.pilot.press("enter")
        await desk.until(lambda: any(e.id == QWEN_8B and e.is_here for e in desk.picker.catalogue.here))


async def test_d_asks_before_it_fetches() -> None:
    async with table() as desk:
        await desk.open()
        await desk.choose(QWEN_8B)
        await desk.pilot.press("d")
        assert "4.6 GB to fetch; 212 GB are free in ~/.cache/huggingface/hub" in desk.text()
        assert "enter downloads it · esc leaves it" in desk.text()
        await desk.pilot.press("escape")
        assert isinstance(desk.app.screen, ModelPicker), "esc only leaves the question"
        await desk.pilot.press("d", "down")
        assert "downloads it" not in desk.text(), "any other key leaves it"
        assert not desk.app.work_in_hand.downloads


async def test_enter_says_what_it_takes_before_it_fetches_and_loads() -> None:
    async with table() as desk:
        await desk.open()
        await desk.choose(QWEN_8B)
        await desk.pilot.press("enter")
        assert "4.6 GB to fetch; 212 GB are free in ~/.cache/huggingface/hub" in desk.text()
        assert "enter downloads and loads it · esc leaves it" in desk.text()
        assert not desk.demo.is_changing
        await desk.pilot.press("escape")
        assert "enter loads" in desk.text()
        await desk.pilot.press("enter", "enter")
        await desk.until(lambda: desk.demo.loaded and desk.demo.loaded.model == QWEN_8B)


async def test_what_is_too_big_is_said_to_be_before_it_is_fetched() -> None:
    async with table() as desk:

        async def too_big(model: str) -> ModelFit:
            return TooBig(36, 4_600_000_000, 31_000_000_000, "31 GB are missing: add a device")

        async def full() -> Room:
            return Room("/models", 1_000_000_000)

        desk.demo.library.fit = too_big  # type: ignore[method-assign]
        await desk.open()
        await desk.choose(QWEN_8B)
        for key in ("enter", "d"):
            await desk.pilot.press(key)
            assert "4.6 GB to fetch" in desk.text()
            assert "31 GB are missing: add a device" in desk.text()
            await desk.pilot.press("escape")
        desk.picker.catalogue = replace(desk.picker.catalogue, room=await full())
        await desk.pilot.press("enter")
        assert "that is not enough: delete models" in desk.text()
        assert "31 GB are missing: add a device" in desk.text()


async def test_a_click_on_the_row_takes_the_question_back() -> None:
    async with table() as desk:
        await desk.open()
        await desk.choose(QWEN_8B)
        y = next(y for y, line in enumerate(desk.text().splitlines()) if "Qwen3-8B-4bit" in line)
        await desk.pilot.press("d")
        assert "downloads it" in desk.text()
        await desk.pilot.click(offset=(30, y))
        assert desk.chosen == QWEN_8B
        assert "downloads it" not in desk.text()
        assert isinstance(desk.app.screen, ModelPicker)
        assert not desk.app.work_in_hand.downloads


async def test_what_is_learnt_does_not_move_a_question_to_another_model() -> None:
    async with table() as desk:
        await desk.open()
        models = desk.picker.query_one(ModelList)
        assert not models.was_moved
        models.chosen = QWEN_8B
        await desk.pilot.pause()
        await desk.pilot.press("d")
        assert desk.picker.catalogue.preselected() not in (None, QWEN_8B)
        desk.picker._show()
        await desk.pilot.pause()
        assert desk.chosen == QWEN_8B
        assert "enter downloads it" in desk.text()


async def test_a_download_that_has_no_room_does_not_begin() -> None:
    async with table() as desk:

        async def full() -> Room:
            return Room("/models", 1_000_000_000)

        desk.demo.library.room = full  # type: ignore[method-assign]
        await desk.open()
        await desk.choose(QWEN_8B)
        await desk.pilot.press("d")
        assert "4.6 GB to fetch; 1.0 GB are free in /models" in desk.text()
        assert "that is not enough: delete models that are not used" in desk.text()
        await desk.pilot.press("enter")
        await desk.pilot.pause()
        assert not desk.app.work_in_hand.downloads


async def test_the_picker_says_which_device_fetches_and_how_far(open_desk: OpenDesk) -> None:
    async with open_desk(four(), size=(120, 40), loaded=False) as desk:
        await desk.step(2)
        for second in range(4):
            desk.fake.gate.now_s += 1
            desk.fake.tell(FetchProgressed(MODEL, second * 110_000_000, 4_600_000_000, "mbp-16"))
            desk.fake.tell(FetchProgressed(MODEL, second * 40_000_000, 4_600_000_000, "mini"))
            desk.fake.tell(LoadProgressed("studio", second * 1_000_000_000, 4_000_000_000))
            await desk.pilot.pause()
        desk.fake.tell(LoadProgressed("air", 500_000_000, 500_000_000))
        await desk.pilot.press("ctrl+o")
        await desk.pilot.pause(0.05)
        text = desk.screen_text()
        told = {
            name: line
            for name in ("studio", "mbp-16", "mini", "air")
            for line in text.splitlines()
            if re.search(rf"[A-D] {name} +(fetches|loads|has)", line)
        }
        assert "fetches 0.3/4.6 GB · 110 MB/s · 39 s left" in told["mbp-16"]
        assert "fetches 0.1/4.6 GB · 40 MB/s · 2 min left" in told["mini"]
        assert "loads 3.0/4.0 GB · 1.0 GB/s · 1 s left" in told["studio"]
        assert "has loaded 500 MB" in told["air"]
        row = next(line for line in text.splitlines() if MODEL in line and "╌" in line)
        assert "3% fetched" in row, "of the device that will be last"


async def test_bytes_that_do_not_come_are_said_to_have_stalled_everywhere(open_desk: OpenDesk) -> None:
    async with open_desk(four(), size=(120, 40), loaded=False) as desk:
        await desk.step(2)
        for second in range(4):
            desk.fake.gate.now_s += 1
            desk.fake.tell(FetchProgressed(MODEL, second * 110_000_000, 4_600_000_000, "mbp-16"))
            await desk.pilot.pause()

        async def wait(seconds: float) -> str:
            desk.fake.gate.now_s += seconds
            desk.app._tick()
            await desk.pilot.pause()
            return desk.screen_text()

        text = await wait(14)
        assert "0.3/4.6 GB · stalled" not in text
        text = await wait(1)
        assert "fetching on mbp-16 0.3/4.6 GB · stalled for 15 s" in text.splitlines()[0]
        assert "↓ 0.3/4.6 GB · stalled for 15 s" in text, "on its card, too"
        await desk.pilot.press("ctrl+o")
        await desk.pilot.pause(0.05)
        text = await wait(5)
        assert "fetches 0.3/4.6 GB · stalled for 20 s" in text
        assert "╌ stalled" in text


async def test_quitting_names_the_download_that_would_stop() -> None:
    async with table() as desk:
        await desk.hold_fetch(QWEN_8B, "d", "enter")
        await desk.pilot.press("escape", "ctrl+q")
        await desk.pilot.pause()
        told = " ".join(desk.text().replace("│", " ").split())
        assert f"{QWEN_8B} is being fetched; what has come stays" in told
        await desk.pilot.press("escape")
        await desk.pilot.pause()
        assert QWEN_8B in desk.app.work_in_hand.downloads
        assert desk.app._exit is False


async def test_the_picker_names_the_devices_that_have_a_model() -> None:
    async with table() as desk:
        await desk.open()
        await desk.choose(LLAMA)
        assert "on studio, mbp-16" in desk.text()
        await desk.choose(GPT)
        assert "on no device · mbp-16: fetched there when it loads" in desk.text()


async def test_a_device_that_has_not_said_what_it_has_is_told_as_such() -> None:
    async with table() as desk:
        said = asyncio.Event()
        elsewhere = desk.demo.library.elsewhere

        async def late() -> Mapping[str, frozenset[str]]:
            await said.wait()
            return await elsewhere()

        desk.demo.library.elsewhere = late  # type: ignore[method-assign]
        await desk.open()
        await desk.choose(LLAMA)
        assert "on studio · mbp-16: has not said yet" in desk.text()
        said.set()
        await desk.until(lambda: "on studio, mbp-16" in desk.text())


async def test_simulated_macs_fetch_for_themselves() -> None:
    sand, told = Sand(), list[FetchProgressed]()
    demo = DemoCluster(Macs(2), pause=sand.pause, clock=sand.clock, here=frozenset())

    async def listen() -> None:
        async with demo.subscribe() as events:
            async for event in events:
                if isinstance(event, FetchProgressed):
                    told.append(event)

    async with demo, asyncio.TaskGroup() as group:
        task = group.create_task(listen())
        await asyncio.sleep(0)
        await demo.load(LLAMA)
        assert {event.peer for event in told} == {None, "mbp-16"}, (
            "the screen's own machine fetched it before"
        )
        assert told[-1].done_bytes == told[-1].total_bytes
        num_told = len(told)
        await demo.load(LLAMA)
        assert len(told) == num_told, "once"
        task.cancel()


async def test_x_asks_before_it_deletes() -> None:
    async with table() as desk:
        await desk.open()
        await desk.choose("mlx-community/GLM-4.6-4bit")
        await desk.pilot.press("x")
        assert "x again deletes" in desk.text()
        await desk.pilot.press("down")
        assert "x again deletes" not in desk.text(), "any other key keeps it"
        await desk.choose("mlx-community/GLM-4.6-4bit")
        await desk.pilot.press("x", "x")
        await desk.until(lambda: not any(e.id.endswith("GLM-4.6-4bit") for e in desk.picker.catalogue.here))
        await desk.choose(LLAMA)
        await desk.pilot.press("x")
        await desk.until(lambda: any("is loaded: load another" in n.message for n in desk.app._notifications))
        assert "x again deletes" not in desk.text()
        await desk.choose("mlx-community/GLM-4.6-4bit")
        await desk.pilot.press("x")
        await desk.until(lambda: any("not on this machine" in n.message for n in desk.app._notifications))


async def test_typing_filters_and_asks_the_hub() -> None:
    async with table() as desk:
        await desk.open()
        await desk.pilot.press("q", "w", "e", "n")
        assert desk.picker.query_one(Input).value == "qwen"
        await desk.until(lambda: desk.picker.catalogue.searched == "qwen")
        text = desk.text()
        assert "gpt-oss" not in text
        assert "Qwen3-8B" in text
        await desk.pilot.press("down", "escape")
        assert "gpt-oss" in desk.text(), "esc clears the filter first"
        await desk.pilot.press("escape")
        assert not isinstance(desk.app.screen, ModelPicker)


async def test_without_a_network_it_says_so_and_lists_what_is_here() -> None:
    async with table() as desk:

        async def away(words: str) -> tuple[()]:
            raise LoadError("the hub cannot be reached: check the network")

        desk.demo.library.search = away  # type: ignore[method-assign]
        await desk.open()
        await desk.pilot.press("s", "m", "o", "l")
        await desk.until(lambda: desk.picker.catalogue.problem)
        await desk.pilot.pause()
        assert "check the network; models that are here work without it" in desk.text()
        assert "smollm2-135m-instruct" in desk.text()


async def test_what_busy_devices_could_not_say_is_asked_again_when_they_are_ready() -> None:
    async with table() as desk:
        fit, refused = desk.demo.library.fit, []

        async def busy(model: str) -> ModelFit:
            refused.append(model)
            raise NotReady("it is loading a model")

        def held(event: Event) -> None:
            tell(event)
            if isinstance(event, LoadProgressed):
                desk.sand.flows.clear()

        desk.demo.library.fit = busy  # type: ignore[method-assign]
        tell, desk.demo.tell = desk.demo.tell, held  # type: ignore[method-assign]
        desk.app.load_model(QWEN_8B)
        await desk.until(lambda: isinstance(desk.app.view.model, Loading))
        await desk.pilot.press("ctrl+o")
        await desk.until(lambda: len(set(refused)) == 11)
        await desk.pilot.pause()
        assert "measuring the devices …" in desk.text()
        assert "not known" not in desk.text()
        desk.demo.library.fit = fit  # type: ignore[method-assign]
        desk.demo.tell = tell  # type: ignore[method-assign]
        desk.sand.flows.set()
        await desk.until(lambda: len(desk.picker.catalogue.fits) == 11)
        await desk.pilot.pause()
        assert "fits ·" in desk.text()


async def test_a_model_that_was_filtered_is_fetched_with_keys_and_hints_say_where_letters_are_keys() -> None:
    async with table() as desk:
        await desk.open()
        await desk.pilot.press(*"qwen3-8")
        assert "enter loads · tab to the list · esc clears the filter" in desk.text()
        assert "downloads only" not in desk.text(), "d is typed here"
        await desk.pilot.press("tab")
        await desk.pilot.pause()
        assert "d downloads only" in desk.text()
        desk.sand.flows.clear()
        await desk.pilot.press("d")
        assert desk.picker.query_one(Input).value == "qwen3-8"
        await desk.pilot.press("enter")
        await desk.until(lambda: QWEN_8B in desk.app.work_in_hand.downloads)
        await desk.pilot.press("backspace", "4")
        assert desk.picker.query_one(Input).value == "qwen3-4", (
            "what means nothing in the list goes on with it"
        )


async def test_a_folder_or_an_id_that_no_list_has_is_loaded_as_it_is_typed() -> None:
    async with table() as desk:
        remembered: list[str] = []
        desk.app._services = replace(desk.app._services, remember=remembered.append)
        await desk.open()
        await desk.pilot.press("slash", *"./no/such/model")
        assert "enter loads it · esc clears the filter" in desk.text()
        await desk.pilot.press("enter")
        await desk.until(lambda: isinstance(desk.app.view.model, Unusable))
        assert desk.app.view.model_name == "./no/such/model"
        assert remembered == [], "the next start does not fail for it"
        await desk.open()
        await desk.choose("smollm2-135m-instruct")
        await desk.pilot.press("enter")
        await desk.until(lambda: isinstance(desk.app.view.model, Ready))
        assert remembered == ["smollm2-135m-instruct"]


NAMES = (
    "/models",
    "/models/my own model",
    "~/models/my own.gguf",
    "~me/a model",
    "../mine",
    "./my models/llama",
    "models/mine/4bit",
    "owner/name-4bit",
    "owner/name@v1.0",
)
NO_NAMES = (
    "and/or?",
    "either/or that",
    "a//b",
    "~5 km in miles?",
    "~5 km/h in miles?",
    "/help me",
    "/help me and/or him",
    "~",
    "/",
)


async def test_what_can_be_the_name_of_a_model_is_offered_and_a_question_is_none() -> None:
    async with table() as desk:
        await desk.open()
        await desk.pilot.press("slash")
        offered = []
        for written in (*NAMES, *NO_NAMES):
            desk.picker.query_one(Input).value = written
            await desk.pilot.pause()
            if "enter loads it" in desk.text():
                offered.append(written)
        assert offered == list(NAMES)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/model", "a/" + "b" * 300])
async def test_a_name_that_is_no_path_is_refused_in_words(name: str) -> None:
    async with table() as desk:
        await desk.open()
        desk.picker.query_one(Input).value = name
        await desk.pilot.press("slash", "enter")
        await desk.until(lambda: isinstance(desk.app.view.model, Unusable))
        assert not isinstance(desk.app.screen, ModelPicker)
        assert f"model '{name}' was not found" in desk.app.conversation.problem


async def test_nothing_is_searched_for_when_the_filter_is_cleared() -> None:
    async with table() as desk:
        asked = asyncio.Event()

        async def slow(words: str) -> tuple[()]:
            asked.set()
            await asyncio.Event().wait()
            return ()

        desk.demo.library.search = slow  # type: ignore[method-assign]
        await desk.open()
        await desk.pilot.press(*"qwen")
        await asyncio.wait_for(asked.wait(), 30)
        assert "searching the hub for qwen" in desk.text()
        await desk.pilot.press("escape")
        await desk.until(lambda: not desk.picker.catalogue.is_searching)
        await desk.pilot.pause()
        assert "searching the hub" not in desk.text()


async def test_all_fits_in_the_list_are_of_one_measurement() -> None:
    async with table() as desk:
        await desk.open()
        await desk.pilot.press("escape")
        desk.app.load_model("smollm2-135m-instruct")
        await desk.until(lambda: desk.app.view.model_name == "smollm2-135m-instruct")
        await desk.until(lambda: isinstance(desk.app.view.model, Ready))
        await desk.pilot.pause()
        assert not desk.app._librarian.catalogue.fits, "what was measured for the model before"
        await desk.open()


async def test_words_typed_fast_reach_the_filter_whole() -> None:
    """Keys that come before the focus has moved; a space and the letters of the list's own keys, too."""
    async with table() as desk:
        await desk.open()
        for key in ("q", "w", "e", "n", "space", "d", "x", "question_mark"):
            desk.app.post_message(Key(key, {"space": " ", "question_mark": "?"}.get(key, key)))
        await desk.until(lambda: desk.picker.query_one(Input).value == "qwen dx?")
        assert not desk.app.work_in_hand.downloads


async def test_the_mouse_picks_and_loads() -> None:
    async with table() as desk:
        await desk.open()
        y = next(y for y, line in enumerate(desk.text().splitlines()) if "gpt-oss-20b" in line)
        await desk.pilot.click(offset=(30, y))
        assert desk.chosen == GPT
        await desk.pilot.click(offset=(30, y))
        lines = desk.text().splitlines()
        y = next(y for y, line in enumerate(lines) if "downloads and loads it" in line)
        await desk.pilot.click(offset=(lines[y].index("downloads and loads it"), y))
        await desk.until(lambda: desk.demo.loaded and desk.demo.loaded.model == GPT)


async def test_a_device_that_leaves_makes_the_fits_be_computed_again() -> None:
    async with table() as desk:
        await desk.open()
        before = desk.picker.catalogue.fits[LLAMA]
        desk.demo.lose("mbp-16")
        await desk.until(lambda: desk.picker.catalogue.fits.get(LLAMA) not in (None, before))


async def test_the_picker_draws_nothing_when_only_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with table() as desk:
        await desk.open()
        updated: list[Static] = []
        update = Static.update

        def noting(static: Static, *arguments: Any, **options: Any) -> None:
            updated.append(static)
            update(static, *arguments, **options)

        monkeypatch.setattr(Static, "update", noting)
        for _ in range(5):
            desk.sand.now_s += 0.1
            desk.picker.now_s = desk.sand.now_s
            await desk.pilot.pause()
        assert updated == []
        await desk.pilot.press("down")
        assert updated != [], "the measuring works"


def test_a_gated_model_says_what_to_do() -> None:
    entry = ModelEntry("meta/locked", ModelOrigin.FOUND, 5 * 10**9, 0, "4bit", 32, is_gated=True)
    row = Row(entry, None, None, is_loaded=False)
    assert state_text(row) == "gated: accept its licence on the hub and set HF_TOKEN"


def test_the_words_for_fit() -> None:
    fits = Fits(80, 40_000_000_000, 2, 0, 7.84, 1.0, is_measured=True)
    assert fit_text(fits) == "fits · 7.8 tok/s"
    assert fit_text(Fits(80, 1, 2, 12, 0.616, 1.0, is_measured=True)) == "streams 12 layers · 0.62 tok/s"
    assert fit_text(TooBig(80, 1, 31_000_000_000, "why")) == "too big: 31 GB short"
    assert fit_text(None) == "…"
    assert Catalogue().preselected() is None


async def test_the_picker_fits_a_small_terminal(open_desk: OpenDesk) -> None:
    async with open_desk(FakeCoordinator()) as desk:
        for size in ((80, 24), (60, 16)):
            await desk.pilot.resize_terminal(*size)
            await desk.pilot.press("ctrl+o")
            await desk.pilot.pause(0.05)
            text = desk.screen_text()
            assert "smollm2-135m" in text, size
            assert "esc closes" in text or "…" in text, size
            await desk.pilot.press("escape")
        assert MODEL in desk.screen_text()
