"""The fold from events to the view, and the numbers read off it."""

from __future__ import annotations

import pytest

from dnet_core.events import (
    FetchProgressed,
    LapMeasured,
    LoadFailed,
    LoadProgressed,
    LoadStarted,
    MeasurementProgressed,
    MemoryReported,
    ModelLoaded,
    ModelUnloaded,
    PeerJoined,
    PeerLeft,
    PlanStarted,
    SessionEnded,
    SessionStarted,
)
from dnet_core.types.generation import FinishReason, StageTime
from dnet_core.types.ring import Assignment, LayerWindow, RingPlan, split_evenly
from dnet_tui.figures import device_figures
from dnet_tui.state import (
    NUM_RECENT_LAPS,
    ClusterView,
    Fetching,
    Loading,
    NoModel,
    Preparing,
    Ready,
    Session,
    Unusable,
    fold,
    letters,
    loaded_layers,
    prepare,
    stage_splits,
)
from dnet_tui.units import chip_text, count_text, layers_text, ms_text, progress_bytes_text, seconds_text
from dnet_tui.work import Step, Work, work_on
from tests.fake_coordinator import peer

PLAN = split_evenly("tiny", 8, ("x", "y"), 2, 128)  # x: 0-1 and 4-5, y: 2-3 and 6-7


def after(*events: object, view: ClusterView | None = None) -> ClusterView:
    view = view or ClusterView()
    for event in events:
        view = fold(view, event)  # type: ignore[arg-type]
    return view


def test_a_load_goes_through_its_states() -> None:
    view = prepare(ClusterView(), "tiny")
    assert view.model == Preparing("tiny")
    assert after(ModelUnloaded("old"), view=view).model == Preparing("tiny"), "the old one going is no news"
    view = after(FetchProgressed("tiny", 5, 10), view=view)
    assert view.model == Fetching("tiny", 5, 10)
    view = after(LoadStarted(PLAN), LoadProgressed("x", 3, 8), LoadProgressed("y", 8, 8), view=view)
    assert isinstance(view.model, Loading)
    assert (view.model.done_bytes, view.model.total_bytes) == (11, 16)
    view = after(ModelLoaded(PLAN, 1.5), view=view)
    assert view.model == Ready(PLAN, 1.5)
    assert after(ModelUnloaded("tiny"), view=view).model == NoModel()
    failed = after(LoadFailed("tiny", "gone"), ModelUnloaded("tiny"), view=view)
    assert failed.model == Unusable("tiny", "gone"), "why it failed outlives the unloading that follows"


def test_telling_twice_changes_nothing() -> None:
    events = (PeerJoined(peer("x")), LoadStarted(PLAN), LoadProgressed("x", 3, 8), ModelLoaded(PLAN, 1.0))
    for event in events:
        once = after(event)
        assert fold(once, event) == once


def test_layers_fill_in_the_order_in_which_their_device_owns_them() -> None:
    assert loaded_layers(after(LoadStarted(PLAN)).model) == frozenset()
    half = after(LoadStarted(PLAN), LoadProgressed("x", 3, 4), LoadProgressed("y", 1, 4))
    assert loaded_layers(half.model) == {0, 1, 4, 2}
    assert loaded_layers(after(ModelLoaded(PLAN, 1.0)).model) == set(range(8))


def test_letters_follow_the_ring_and_a_lost_device_keeps_its_own() -> None:
    view = after(PeerJoined(peer("z")), PeerJoined(peer("y")), PeerJoined(peer("x")))
    assert letters(view) == {"z": "A", "y": "B", "x": "C"}
    view = after(ModelLoaded(PLAN, 1.0), PeerLeft("y", "asleep"), view=view)
    assert letters(view) == {"x": "A", "y": "B", "z": "C"}
    assert view.lost_in_ring == {"y"}
    assert [device.peer.name for device in view.here] == ["z", "x"]
    assert after(PeerJoined(peer("y")), view=view).lost_in_ring == frozenset()


def stage(name: str, compute_s: float, wire_s: float) -> StageTime:
    return StageTime(
        name, queue_s=0.0, compute_s=compute_s, disk_wait_s=0.0, wire_s=wire_s, read_bytes=0, read_s=0.0
    )


def test_means_are_per_token_over_both_rounds_and_skip_the_prompt() -> None:
    lap = (stage("x", 0.010, 0.001), stage("y", 0.004, 0.0), stage("x", 0.020, 0.001), stage("y", 0.004, 0.0))
    prompt = LapMeasured("s", 10, (stage("x", 9.0, 9.0),))
    view = after(SessionStarted("s", 10), prompt)
    assert stage_splits(view) == {}
    view = after(LapMeasured("s", 11, lap), LapMeasured("s", 12, lap), view=view)
    splits = stage_splits(view)
    x = splits["x"]
    assert (x.compute_s, x.disk_s, x.network_s) == pytest.approx((0.030, 0.0, 0.002))
    assert x.busy == pytest.approx(0.75)
    assert splits["y"].total_s == pytest.approx(0.008)
    ended = after(SessionEnded("s", FinishReason.STOP, 10, 2, 0), view=view)
    assert ended.sessions == {}
    assert stage_splits(ended) == splits, "the last known times stay on the screen"


def test_a_session_is_followed_from_prompt_to_last_token() -> None:
    view = fold(ClusterView(), SessionStarted("s", 10), 100.0)
    view = fold(view, LapMeasured("s", 8, ()), 101.0)
    assert view.sessions["s"] == Session(10, 100.0, read_tokens=8)
    for index, now_s in enumerate((102.0, 102.5, 103.0)):
        view = fold(view, LapMeasured("s", 10 + index, ()), now_s)
    session = view.sessions["s"]
    assert (session.read_tokens, session.answer_tokens, session.first_s) == (10, 3, 102.0)
    assert session.tokens_per_s == pytest.approx(2.0)


def test_memory_is_what_the_device_told_last() -> None:
    view = after(PeerJoined(peer("x")), MemoryReported("x", 5, 7, 12, 16), MemoryReported("x", 6, 7, 12, 16))
    assert view.devices[0].memory == MemoryReported("x", 6, 7, 12, 16)
    assert after(MemoryReported("y", 1, 1, 1, 1), view=view) == view, "of a device that nobody has seen"


def test_only_recent_laps_are_kept() -> None:
    laps = [LapMeasured("s", position, ()) for position in range(1, 3 * NUM_RECENT_LAPS)]
    view = after(*laps)
    assert len(view.laps) == NUM_RECENT_LAPS
    assert view.laps[-1] == laps[-1]


def test_a_plan_with_streamed_layers_is_complete_when_loaded() -> None:
    plan = RingPlan("m", 4, 1, 128, 16, (Assignment("x", (LayerWindow(0, 4),), (2, 3), 1),))
    assert loaded_layers(after(ModelLoaded(plan, 1.0)).model) == {0, 1, 2, 3}


def test_numbers_are_short_and_have_units() -> None:
    assert [count_text(n) for n in (0, 999, 1200, 9949, 9950, 41_000, 1_300_000)] == [
        "0", "999", "1.2k", "9.9k", "10k", "41k", "1.3M"]  # fmt: skip
    assert progress_bytes_text(0, 0) == "0/0 B"
    assert progress_bytes_text(31_000_000, 98_000_000) == "31/98 MB"
    assert progress_bytes_text(300_000_000, 4_500_000_000) == "0.3/4.5 GB"
    assert [seconds_text(s) for s in (0.42, 0.996, 1.94, 59.6, 75)] == [
        "0.42 s", "1.0 s", "1.9 s", "60 s", "75 s"]  # fmt: skip
    assert [ms_text(s) for s in (0.0077, 0.0999, 0.141)] == ["7.7", "99.9", "141"]
    assert [layers_text(0, 15), layers_text(4, 5)] == ["0–14", "4"]


def test_a_device_that_fetches_says_how_far_it_is() -> None:
    view = ClusterView()
    view = fold(view, PeerJoined(peer("x")), 0.0)
    view = fold(view, PeerJoined(peer("y")), 0.0)
    view = fold(view, LoadStarted(PLAN), 0.0)
    for at_s in range(3):
        view = fold(view, FetchProgressed("tiny", at_s * 10_000_000, 100_000_000, "y"), float(at_s))
    x, y = device_figures(view)
    assert x.fetch is None
    assert y.fetch is not None
    assert y.fetch.text(2.0) == "20/100 MB · 10 MB/s · 8 s left"
    assert y.fetch.text(17.0) == "20/100 MB · stalled for 15 s"
    view = fold(view, LoadProgressed("x", 5, 8), 3.0)
    assert isinstance(view.model, Loading), "one fetches while another fills"
    assert {n: (r.done_bytes, r.total_bytes) for n, r in view.model.progress.items()} == {"x": (5, 8)}
    view = fold(view, FetchProgressed("tiny", 100_000_000, 100_000_000, "y"), 4.0)
    assert device_figures(view)[1].fetch is None


def test_the_status_line_names_the_device_that_will_be_last() -> None:
    work = work_on(Work(), LoadStarted(PLAN), 0.0)
    work = work_on(work, FetchProgressed("tiny", 10, 100, "x"), 0.0)
    work = work_on(work, FetchProgressed("tiny", 40, 100, "y"), 0.0)
    assert work.step is Step.LOADING
    assert {name: t.missing for name, t in work.fetches.items()} == {"x": 90, "y": 60}
    work = work_on(work, FetchProgressed("tiny", 100, 100, "x"), 1.0)
    assert set(work.fetches) == {"y"}
    assert not work_on(work, ModelLoaded(PLAN, 2.0), 2.0).fetches


def test_measuring_tells_the_time_it_takes_then_the_time_left() -> None:
    work = work_on(Work(), PlanStarted("tiny"), 10.0)
    work = work_on(work, MeasurementProgressed("devices", 0, 4), 10.0)
    assert work.measurement is not None
    assert work.measurement.text(13.0) == "devices 0/4 · 3 s"
    work = work_on(work, MeasurementProgressed("devices", 2, 4), 14.0)
    assert work.measurement is not None
    assert work.measurement.text(15.0) == "devices 2/4 · 5 s", "they are measured at once: nothing is known"
    work = work_on(work, MeasurementProgressed("links", 0, 12), 20.0)
    assert work.measurement is not None
    assert work.measurement.text(20.0) == "links 0/12"
    work = work_on(work, MeasurementProgressed("links", 6, 12), 26.0)
    assert work.measurement is not None
    assert work.measurement.text(26.0) == "links 6/12 · 6 s left"
    assert work.measurement.text(33.0) == "links 6/12", "it takes longer than the others did"
    work = work_on(work, MeasurementProgressed("links", 0, 2), 40.0)
    assert work.measurement is not None
    assert work.measurement.text(42.0) == "links 0/2 · 2 s", "somebody else measures, from the start"
    assert work_on(Work(), MeasurementProgressed("links", 1, 12), 1.0) == Work(), "for the picker alone"


def test_chips_without_their_makers_marks() -> None:
    assert chip_text("Apple M4 Pro") == "M4 Pro"
    assert chip_text("Intel(R) Xeon(R) Processor @ 2.60GHz") == "Intel Xeon"
    assert chip_text("AMD EPYC 7B13 64-Core Processor") == "AMD EPYC 7B13"
    assert chip_text("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz") == "Intel Core i7-9750H"
    assert progress_bytes_text(312_000_000, 25_000_000_000) == "0.3/25 GB"
