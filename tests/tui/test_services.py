"""First use, adding a device, measuring again, the doctor's findings and the log, on a scripted cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Static
from textual.widgets._toast import Toast

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.doctor.finding import Finding as RealFinding
from dnet_core.doctor.finding import Level
from dnet_core.errors import LoadError
from dnet_core.events import MeasurementProgressed, PlanStarted
from dnet_core.types.devices import PeerSource
from dnet_core.types.models import ModelFit
from dnet_tui.app import DnetApp
from dnet_tui.chat import Finished
from dnet_tui.cluster import Cluster
from dnet_tui.keys import EVERYWHERE
from dnet_tui.pace import Timing
from dnet_tui.screens.findings import DoctorScreen, LogScreen
from dnet_tui.screens.join import JoinScreen, checklist
from dnet_tui.screens.models import ModelPicker
from dnet_tui.service_app import Services
from dnet_tui.state import ClusterView, Device, Ready, Session, Unusable
from tests.fake_coordinator import FakeCoordinator, peer
from tests.tui.conftest import MODEL


@dataclass
class Bench:
    app: DnetApp
    fake: FakeCoordinator
    pilot: Pilot[None]

    def text(self) -> str:
        return "\n".join(strip.text.rstrip() for strip in self.app.screen._compositor.render_strips())

    def command(self, title: str) -> None:
        commands = {c.title: c.callback for c in self.app.get_system_commands(self.app.screen)}
        commands[title]()

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(30):
            while not holds():
                await self.pilot.pause(0.02)

    async def load(self) -> None:
        await self.fake.gate.step(5)
        await self.pilot.pause()


@asynccontextmanager
async def bench(services: Services, fake: FakeCoordinator | None = None) -> AsyncIterator[Bench]:
    fake = fake or FakeCoordinator()
    timing = Timing(stream_s=0, view_s=0, panels_s=0, tick_s=None, blink=False, clock=lambda: fake.gate.now_s)
    app = DnetApp(lambda: fake, MODEL, timing=timing, services=services)
    async with app.run_test(size=(120, 40)) as pilot:
        await fake.gate.arrive()
        await pilot.pause()
        yield Bench(app, fake, pilot)


async def test_the_first_start_offers_models_while_the_sample_can_be_asked() -> None:
    remembered: list[str] = []
    async with bench(Services(is_first_use=True, remember=remembered.append)) as desk:
        assert isinstance(desk.app.screen, ModelPicker)
        assert "Welcome." in desk.text()
        assert remembered == [MODEL], "the next start does not offer again"
        asked: list[str] = []
        fit = desk.fake.library.fit

        async def noted(model: str) -> ModelFit:
            asked.append(model)
            return await fit(model)

        desk.fake.library.fit = noted  # type: ignore[method-assign]
        await desk.until(lambda: "measuring the devices" in desk.text())
        await desk.pilot.pause()
        desk.app._librarian._pause_s = 0
        desk.app._librarian.look_at(MODEL)
        await desk.pilot.pause(0.05)
        assert asked == [], "devices are not measured beside the load, whatever is highlighted"
        assert "models-fit" not in {worker.group for worker in desk.app.workers}
        await desk.pilot.press("escape", "ctrl+o")
        await desk.until(lambda: "measuring the devices" in desk.text())
        await desk.pilot.pause(0.05)
        assert asked == [], "nor when the picker is opened once more"
        await desk.load()
        await desk.until(lambda: desk.app.screen.catalogue.fits)
        await desk.pilot.press("escape")
        desk.app.conversation.prompt.insert("Hello?")
        await desk.pilot.press("enter")
        while not desk.fake.ended:
            await desk.fake.gate.step()
        await desk.pilot.pause()
        assert isinstance(desk.app.conversation.turns[0].phase, Finished)


async def test_what_fits_is_said_also_when_the_first_load_fails() -> None:
    fake = FakeCoordinator(load_error=LoadError("the disk is full"))
    async with bench(Services(is_first_use=True), fake) as desk:
        await desk.until(lambda: desk.app.screen.catalogue.well_known)
        await fake.gate.step()
        await desk.until(lambda: isinstance(desk.app.view.model, Unusable))
        await desk.until(lambda: desk.app.screen.catalogue.fits)


async def test_measuring_tells_how_far_it_is_and_what_is_left() -> None:
    async with bench(Services()) as desk:
        desk.fake.tell(PlanStarted(MODEL))
        desk.fake.tell(MeasurementProgressed("devices", 0, 4))
        await desk.until(lambda: "measuring the devices 0/4\n" in desk.text())
        desk.fake.gate.now_s += 5
        desk.fake.tell(MeasurementProgressed("links", 0, 12))
        await desk.until(lambda: "measuring the links 0/12\n" in desk.text())
        desk.fake.gate.now_s += 2
        desk.fake.tell(MeasurementProgressed("links", 2, 12))
        await desk.until(lambda: "measuring the links 2/12 · 10 s left" in desk.text())


async def test_a_question_typed_at_the_welcome_is_asked_in_the_chat() -> None:
    async with bench(Services(is_first_use=True)) as desk:
        await desk.pilot.press(*"Why is it so?")
        assert "enter asks it in the chat" in desk.text()
        await desk.pilot.press("enter")
        await desk.pilot.pause()
        assert not isinstance(desk.app.screen, ModelPicker)
        assert desk.app.conversation.turns[0].prompt == "Why is it so?"


async def test_whoever_types_already_is_not_interrupted() -> None:
    fake = FakeCoordinator()
    timing = Timing(stream_s=0, view_s=0, panels_s=0, tick_s=None, blink=False, clock=lambda: fake.gate.now_s)
    opening = asyncio.Event()

    @asynccontextmanager
    async def open_cluster() -> AsyncIterator[Cluster]:
        await opening.wait()
        async with fake:
            yield fake

    app = DnetApp(open_cluster, MODEL, timing=timing, services=Services(is_first_use=True))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("H", "i")
        opening.set()
        await fake.gate.arrive()
        await pilot.pause()
        assert not isinstance(app.screen, ModelPicker)
        assert app.conversation.prompt.text == "Hi"
        assert [note.message for note in app._notifications] == [
            "ctrl+o offers better models than the sample."
        ]


async def test_a_later_start_offers_nothing() -> None:
    async with bench(Services()) as desk:
        assert not isinstance(desk.app.screen, ModelPicker)


async def test_the_command_for_another_device_keeps_the_key_until_it_is_asked_for() -> None:
    async with bench(Services()) as desk:
        await desk.load()
        await desk.pilot.press("f9")
        await desk.pilot.pause()
        assert "uv run dnet-shard --join …" in desk.text()
        assert desk.fake.cluster_key not in desk.text()
        assert "○ another device is seen on the same network" in desk.text()
        copied: list[str] = []
        desk.app.copy_to_clipboard = copied.append  # type: ignore[method-assign]
        await desk.pilot.press("c")
        assert copied == [f"uv run dnet-shard --join {desk.fake.cluster_key}"]
        await desk.pilot.press("k")
        await desk.pilot.pause()
        assert desk.fake.cluster_key in desk.text()


async def test_the_checklist_is_drawn_when_it_changes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(Services()) as desk:
        await desk.load()
        await desk.pilot.press("f9")
        await desk.pilot.pause()
        drawn: list[Static] = []
        monkeypatch.setattr(Static, "update", lambda static, *_: drawn.append(static))
        screen = desk.app.screen
        assert isinstance(screen, JoinScreen)
        screen.view = replace(screen.view, sessions={"s": Session(1, 0.0)})
        await desk.pilot.pause()
        assert drawn == []
        other = replace(peer("mini", host="10.0.0.2"), source=PeerSource.MDNS)
        screen.view = replace(screen.view, devices=(*screen.view.devices, Device(other, None)))
        await desk.pilot.pause()
        assert len(drawn) == 1


def test_the_checklist_ticks_itself() -> None:
    own = Device(peer("here"), None)
    other = replace(peer("mini", host="10.0.0.2"), source=PeerSource.MDNS)
    assert [done for done, _ in checklist(ClusterView())][:2] == [None, None]
    assert [done for done, _ in checklist(ClusterView(devices=(own,)))][:2] == [True, None]
    stranger = replace(other, cannot_join="has another cluster key")
    lines = checklist(ClusterView(devices=(own, Device(stranger, None))))
    assert (False, "mini has another cluster key") in lines
    lines = checklist(ClusterView(devices=(own, Device(other, None))))
    assert all(done for done, _ in lines)
    assert lines[-1][1] == "mini: same version, same key"


async def test_f5_measures_again_and_places_the_model_anew() -> None:
    async with bench(Services()) as desk:
        await desk.load()
        forgotten: list[bool] = []
        desk.fake.forget_measurements = lambda: forgotten.append(True)  # type: ignore[method-assign]
        await desk.pilot.press("f5")
        await desk.load()
        assert forgotten == [True]
        assert desk.fake.num_loads == 2
        assert isinstance(desk.app.view.model, Ready)


async def test_the_doctor_says_what_it_finds_and_looks_again() -> None:
    looks = 0

    async def examine() -> Sequence[RealFinding]:
        nonlocal looks
        looks += 1
        return [
            RealFinding("memory", Level.GOOD, "17 GB are free"),
            RealFinding("multicast", Level.BROKEN, "nothing comes back", "allow it in the firewall"),
        ]

    async with bench(Services(examine=examine)) as desk:
        desk.command("Doctor")
        await desk.until(lambda: "nothing comes back" in desk.text())
        assert isinstance(desk.app.screen, DoctorScreen)
        assert "✓ memory" in desk.text()
        assert "✗ multicast" in desk.text()
        assert "→ allow it in the firewall" in desk.text()
        await desk.pilot.press("r")
        await desk.until(lambda: looks == 2)
        await desk.pilot.press("escape")
        assert not isinstance(desk.app.screen, DoctorScreen)


async def test_the_log_shows_its_tail_and_follows(tmp_path: Path) -> None:
    log = tmp_path / "dnet-tui.log"
    log.write_text("E0000 grpc says something\n", encoding="utf-8")
    async with bench(Services(log=log)) as desk:
        desk.command("Open log")
        await desk.until(lambda: "E0000 grpc says something" in desk.text())
        assert isinstance(desk.app.screen, LogScreen)
        with log.open("a", encoding="utf-8") as file:
            file.write("and then another thing\n")
        await desk.until(lambda: "and then another thing" in desk.text())
        assert desk.text().count("E0000") == 1, "what was read is not read again"


async def test_no_key_does_two_things_everywhere() -> None:
    async with bench(Services()) as desk:
        keys = [
            (key, each.id)
            for each in desk.app.all_keys()
            if each.scope == EVERYWHERE
            for key in each.keys.split(",")
        ]
        assert len(keys) > 10
        assert len({key for key, _ in keys}) == len(keys), sorted(keys)


async def test_a_model_that_is_not_there_leaves_a_way_out() -> None:
    @asynccontextmanager
    async def open_cluster() -> AsyncIterator[Cluster]:
        async with Coordinator(ClusterOptions(mdns=False)) as coordinator:
            yield coordinator

    app = DnetApp(open_cluster, "nosuch", timing=Timing(blink=False), services=Services())
    async with app.run_test(size=(120, 40)) as pilot:
        async with asyncio.timeout(60):
            while not isinstance(app.view.model, Unusable):
                await pilot.pause(0.02)
        await pilot.pause()
        text = "\n".join(strip.text.rstrip() for strip in app.screen._compositor.render_strips())
        assert "model 'nosuch' was not found" in text
        assert "ctrl+r tries again · ctrl+o chooses another model" in text
        assert "No model is loaded · ctrl+o chooses one" in text


async def test_a_notice_leaves_the_prompt_free() -> None:
    fake = FakeCoordinator()
    app = DnetApp(lambda: fake, MODEL, timing=Timing(tick_s=None, blink=False), services=Services())
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        app.notify("Something happened.")
        await pilot.pause()
        toast = app.screen.query_one(Toast).region
        assert toast.area
        assert not toast.overlaps(app.conversation.prompt.region)
