"""The activity log: which events make a line, and what it says."""

from __future__ import annotations

from datetime import datetime, timedelta

from dnet_core.events import (
    Event,
    FetchProgressed,
    LapMeasured,
    LoadFailed,
    LoadProgressed,
    LoadStarted,
    MemoryReported,
    ModelLoaded,
    ModelUnloaded,
    PeerJoined,
    PeerLeft,
    PredictionCompared,
    Recovered,
    RecoveryStarted,
    RingLost,
    SessionEnded,
    SessionStarted,
)
from dnet_core.types.generation import FinishReason
from dnet_core.types.ring import split_evenly
from dnet_tui.activity import MOST_LINES, Activity, LogLine, Tone, note
from tests.fake_coordinator import peer

NOON = datetime(2026, 1, 5, 12)  # noqa: DTZ001  a time of day, for people
PLAN = split_evenly("owner/tiny", 8, ("x", "y"), 2, 128)


def told(*events: Event, step_s: float = 1.0) -> list[str]:
    activity = Activity()
    for index, event in enumerate(events):
        activity = note(activity, event, NOON + timedelta(seconds=index * step_s))
    return [f"{line.at:%S} {line.text}" for line in activity.lines]


def test_what_happens_to_devices_and_models_is_told() -> None:
    assert told(
        PeerJoined(peer("x")),
        LoadStarted(PLAN),
        LoadProgressed("x", 1, 2),
        MemoryReported("x", 1, 2, 3, 4),
        ModelLoaded(PLAN, 1.25),
        PeerLeft("y", "asleep"),
        RingLost("owner/tiny", "y", "asleep"),
        RecoveryStarted("owner/tiny", ("x",)),
        Recovered(PLAN, 3.5, 1.0, 2.5),
        LoadFailed("owner/tiny", "no memory"),
        ModelUnloaded("owner/tiny"),
        PredictionCompared("owner/tiny", 40, 0.050, 0.055, ()),
    ) == [
        "00 x joined",
        "01 loading tiny on 2 devices, 2 rounds",
        "04 tiny ready in 1.2 s",
        "05 y left: asleep",
        "06 ring broken at y: asleep; answers wait",
        "07 placing the layers again on x",
        "08 going on with 2 devices, 2 rounds after 3.5 s",
        "09 tiny not loaded: no memory",
        "10 tiny unloaded",
        "11 55.0 ms/token over 40 tokens; the plan said 50.0 (+10%)",
    ]


def test_a_download_makes_two_lines_however_often_it_tells() -> None:
    steps = [
        FetchProgressed("owner/tiny", done, 98_000_000) for done in (0, 1_000_000, 50_000_000, 98_000_000)
    ]
    assert told(*steps, steps[-1]) == ["00 fetching tiny, 98 MB", "03 tiny fetched, 98 MB"]


def test_an_answer_tells_its_speed_from_the_first_token_on() -> None:
    laps = [LapMeasured("s", position, ()) for position in (5, 10, 11, 12)]  # one of the prompt, three tokens
    lines = told(SessionStarted("s", 10), *laps, SessionEnded("s", FinishReason.STOP, 10, 3, 0), step_s=0.5)
    assert lines == ["00 answer begins: prompt of 10 tok", "02 answer done: 3 tok, 1.3 tok/s"]
    assert told(SessionEnded("unknown", None, 10, 0, 0)) == ["00 answer failed: 0 tok"]


def test_old_lines_go_and_words_find_the_others() -> None:
    activity = Activity()
    for index in range(MOST_LINES + 20):
        activity = note(activity, PeerLeft(f"mac-{index}", "asleep"), NOON)
    assert len(activity.lines) == MOST_LINES
    assert activity.lines[-1] == LogLine(NOON, f"mac-{MOST_LINES + 19} left: asleep", Tone.BAD)
    assert activity.lines[-1].matches("LEFT mac-519")
    assert not activity.lines[-1].matches("left mac-1x")
