"""The file of conversations: what goes in comes out, nothing that is wrong with it ends the app."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dnet_core.types.generation import (
    FinishReason,
    GenerationDone,
    Paused,
    PromptProgress,
    Resumed,
    SamplingParams,
)
from dnet_tui import history as module
from dnet_tui.answer import LiveAnswer
from dnet_tui.chat import (
    Answering,
    ChatSettings,
    Failed,
    Finished,
    Phase,
    Queued,
    Reading,
    Recovering,
    Reply,
    Stopped,
    Thought,
    Turn,
    asked,
)
from dnet_tui.export import as_json, as_markdown, write_export
from dnet_tui.history import NUM_PROMPTS, History, HistoryError, Record, SavedChat
from dnet_tui.saved import settings_from_text, settings_text, turn_from_json, turn_json

DONE = Finished(GenerationDone(FinishReason.STOP, 40, 6, 32, 1.9, None))
SETTINGS = ChatSettings(
    SamplingParams(temperature=0.1, seed=7, min_p=0.2), "Be brief.", False, frozenset({"top_p"})
)


def said(prompt: str, answer: str) -> Turn:
    return Turn(prompt, (Reply(answer, DONE),))


def write_rubbish(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is not a database" * 100)


@asynccontextmanager
async def opened(path: Path, clock: Callable[[], float] = lambda: 1000.0) -> AsyncIterator[History]:
    history = History(path, clock)
    try:
        await history.open()
        yield history
    finally:
        await history.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "chats.db"


# --- what goes in comes out -----------------------------------------------------------------------------


def test_turns_survive_json() -> None:
    turn = Turn(
        "Ünïcode?\n\nTwo paragraphs",
        (
            Reply("first", DONE, Thought("hm", 3, 1.5)),
            Reply("half", Stopped(2), notes=("air left after 1 tok; placed anew on mini",)),
            Reply("", Failed("mini left the ring", 0)),
        ),
        shown=1,
    )
    assert turn_from_json(json.loads(json.dumps(turn_json(turn)))) == turn


@pytest.mark.parametrize(
    ("phase", "kept"),
    [
        (Queued("waits"), 0),
        (Reading(3, 9, None), 0),
        (Answering(5, 0.1, 9.0), 5),
        (Recovering("mini", 7), 7),
    ],
)
def test_an_answer_that_was_being_written_counts_as_stopped(phase: Phase, kept: int) -> None:
    turn = Turn("q", (Reply("so far", phase),))
    assert turn_from_json(turn_json(turn)).phase == Stopped(kept)


def test_settings_survive_json_and_fields_of_a_later_version_are_left_alone() -> None:
    assert settings_from_text(settings_text(SETTINGS)) == SETTINGS
    told = json.loads(settings_text(SETTINGS))
    told["sampling"]["a_later_one"] = 1
    assert settings_from_text(json.dumps(told)) == SETTINGS


async def test_a_chat_is_there_again_after_a_restart(path: Path) -> None:
    turns = (said("What is the capital of France?", "Paris."), said("And of Spain?", "Madrid."))
    async with opened(path) as history:
        record = history.begin("Capitals", "some-model", SETTINGS)
        history.save_turn(record, 0, asked(turns[0].prompt, Queued("waits")))
        for place, turn in enumerate(turns):
            history.save_turn(record, place, turn)
        history.remember("What is the capital of France?")
        assert await history.newest() == record.number
    async with opened(path) as history:
        (chat,) = await history.chats()
        assert (chat.title, chat.model, chat.num_turns, chat.found) == ("Capitals", "some-model", 2, None)
        saved = await history.read(chat.id)
        assert saved == SavedChat(chat.id, "Capitals", "some-model", 1000.0, SETTINGS, turns)
        assert await history.prompts() == ("What is the capital of France?",)


async def test_the_newest_stand_first_and_cutting_the_last_turn_drops_the_chat(path: Path) -> None:
    now = iter(range(100))
    async with opened(path, lambda: float(next(now))) as history:
        first, second = (history.begin(t, "m", SETTINGS) for t in ("first", "second"))
        history.save_turn(second, 0, said("b", ""))
        history.save_turn(first, 0, said("a", ""))
        history.save_turn(first, 1, said("c", ""))
        assert [c.title for c in await history.chats()] == ["first", "second"]
        history.cut(first, 1)
        assert (await history.chats())[0].num_turns == 1
        history.cut(first, 0)
        assert [c.title for c in await history.chats()] == ["second"]


async def test_only_the_newest_prompts_are_kept(path: Path) -> None:
    async with opened(path) as history:
        for number in range(NUM_PROMPTS + 3):
            history.remember(str(number))
        kept = await history.prompts()
    assert len(kept) == NUM_PROMPTS
    assert kept[0] == "3"


# --- finding --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_words", [True, False])
async def test_chats_are_found_by_what_was_said(
    path: Path, has_words: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_words:
        monkeypatch.setattr(module, "_WORDS", "CREATE VIRTUAL TABLE words USING no_such_module(a);")
    async with opened(path) as history:
        ids = {}
        for title, question, answer in (
            ("Capitals", "What is the capital of France?", "It is Paris, on the Seine."),
            ("Bread", "How is a baguette made?", 'With flour; 100% of it. "Crust" matters.'),
        ):
            record = history.begin(title, "m", SETTINGS)
            history.save_turn(record, 0, said(question, "a draft that is replaced"))
            history.save_turn(record, 0, said(question, answer))
            ids[title] = record

        async def found(words: str) -> list[str]:
            return [chat.title for chat in await history.chats(words)]

        assert await found("paris seine") == ["Capitals"]
        assert await found("PAR") == ["Capitals"], "the beginning of a word is enough"
        assert await found("baguette") == ["Bread"]
        assert await found("bread") == ["Bread"], "titles count"
        assert await found("draft") == [], "what was replaced is not found"
        assert await found("zebra") == []
        for strange in ('"', "'", "%", "_", "*", "AND", "NEAR(", "a OR b", ");--", "\\"):
            assert set(await found(strange)) <= {"Capitals", "Bread"}
        if has_words:
            (chat,) = await history.chats("seine")
            assert chat.found is not None
            assert "Seine" in chat.found
        history.cut(ids["Capitals"], 0)
        assert await found("seine") == []


async def test_rename_delete_and_bring_back(path: Path) -> None:
    async with opened(path) as history:
        record = history.begin("old name", "m", SETTINGS)
        history.save_turn(record, 0, said("q", "a"))
        assert await history.newest() is not None
        await history.rename(record.known, "new name")
        assert [c.title for c in await history.chats()] == ["new name"]
        await history.delete(record.known)
        assert await history.chats() == ()
        await history.restore(record.known)
        assert [c.title for c in await history.chats()] == ["new name"]
        await history.delete(record.known)
    async with opened(path) as history:
        with pytest.raises(HistoryError, match="not in the history any more"):
            await history.read(record.known)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM turns").fetchone() == (0,)
    db.close()


# --- what can be wrong with the file --------------------------------------------------------------------


async def test_a_file_that_is_no_database_is_put_aside(path: Path) -> None:
    write_rubbish(path)
    history = History(path)
    try:
        message = await history.open()
        assert message is not None
        assert "could not be read" in message
        record = history.begin("new", "m", SETTINGS)
        assert await history.newest() == record.number
    finally:
        await history.close()
    (aside,) = path.parent.glob("chats.db.unreadable-*")
    assert aside.read_bytes().startswith(b"this is not a database")
    assert str(aside) in message


async def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    async with opened(path) as history:
        history.begin("mine", "m", SETTINGS)
        assert await history.newest() is not None
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    history = History(path)
    told: list[str] = []
    history.on_problem = told.append
    try:
        with pytest.raises(HistoryError, match="newer dnet-tui"):
            await history.open()
        history.begin("lost", "m", SETTINGS)
        history.begin("lost too", "m", SETTINGS)
        with pytest.raises(HistoryError, match="is not open"):
            await history.chats()
        assert len(told) == 1, "the same problem is told once"
    finally:
        await history.close()
    assert sqlite3.connect(path).execute("SELECT title FROM chats").fetchall() == [("mine",)]


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "chats.db")
    try:
        with pytest.raises(HistoryError, match="cannot be used"):
            await history.open()
    finally:
        await history.close()


async def test_a_row_that_is_damaged_is_said_and_the_others_are_read(path: Path) -> None:
    async with opened(path) as history:
        bad, good = (history.begin(t, "m", SETTINGS) for t in ("bad", "good"))
        for record in (bad, good):
            history.save_turn(record, 0, said("q", "a"))
        assert len(await history.chats()) == 2
    db = sqlite3.connect(path)
    db.execute("UPDATE turns SET body = '{}' WHERE chat = ?", (bad.known,))
    db.commit()
    db.close()
    async with opened(path) as history:
        with pytest.raises(HistoryError, match="'bad' cannot be read"):
            await history.read(bad.known)
        assert (await history.read(good.known)).turns == (said("q", "a"),)


def test_a_chat_that_was_never_made_has_no_number() -> None:
    with pytest.raises(HistoryError, match="not saved"):
        Record().known  # noqa: B018


# --- export ---------------------------------------------------------------------------------------------


def test_export_says_everything_and_never_overwrites(tmp_path: Path) -> None:
    turns = (
        Turn("Why?\nReally.", (Reply("old", DONE), Reply("Because.", DONE, Thought("hm", 1, 0.1))), 1),
        Turn("And?", (Reply("So", Stopped(1)),)),
        Turn("Then?", (Reply("", Failed("mini left the ring", 0)),)),
    )
    chat = SavedChat(1, "Why: a / b?", "model", 1_700_000_000.0, SETTINGS, turns)
    markdown = as_markdown(chat)
    for part in (
        "# Why: a / b?",
        "## Why?",
        "Really.",
        "Because.",
        "<summary>Thought",
        "> Be brief.",
        "*(stopped)*",
    ):
        assert part in markdown
    assert "failed: mini left the ring" in markdown
    assert "old" not in markdown.replace("folded", "")
    data = json.loads(as_json(chat))
    assert tuple(turn_from_json(turn) for turn in data["turns"]) == turns
    first, second = write_export(chat, tmp_path / "out"), write_export(chat, tmp_path / "out")
    assert [p.name for p in (*first, *second)] == [
        "why-a-b.md",
        "why-a-b.json",
        "why-a-b-2.md",
        "why-a-b-2.json",
    ]
    assert first[0].read_text(encoding="utf-8") == markdown


@pytest.mark.parametrize(("is_back", "did"), [(False, "left"), (True, "takes part again")])
def test_a_pause_is_noted_with_its_reason(is_back: bool, did: str) -> None:
    answer = LiveAnswer(lambda: 0.0)
    answer.hear(Paused("studio", "why", 0, is_back))
    answer.hear(Resumed(("studio", "mini"), 1.0))
    assert answer.reply.notes[0].startswith(f"studio {did} after 0 tok; placed anew on studio, mini")


def test_the_time_left_of_a_prompt_that_is_read_again_counts_from_there() -> None:
    now_s = 0.0
    answer = LiveAnswer(lambda: now_s)
    now_s = 100.0
    answer.hear(Paused("studio", "why", 3, is_back=False))
    answer.hear(Resumed(("mini",), 1.0))
    now_s = 102.0
    answer.hear(PromptProgress(10, 40, ()))
    assert answer.reply.phase == Reading(10, 40, 6.0)
