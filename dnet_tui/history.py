"""Conversations in a SQLite file: saved as they go, found again by what was said.

    chats    one row each: title, settings, times; a deleted one keeps its row until the next start
    turns    one row each: place in its chat, the question, the answers as JSON
    words    full text of the turns, where this SQLite has FTS5 (else LIKE)
    prompts  what was typed, for the prompt's own recall

One thread owns the connection; the loop only awaits it. A file that is no database is put aside, never
overwritten. Every method raises `HistoryError` when the file cannot be used; the chat goes on without it.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from dnet_tui.chat import ChatSettings, Turn
from dnet_tui.saved import settings_from_text, settings_text, turn_from_json, turn_json

VERSION = 1
NUM_PROMPTS = 500
"""So many of the newest prompts are kept."""
_BUSY_S = 5.0  # another dnet-tui may be writing

_SCHEMA = """
CREATE TABLE chats (
    id INTEGER PRIMARY KEY, title TEXT NOT NULL, settings TEXT NOT NULL, model TEXT NOT NULL,
    created_unix_s REAL NOT NULL, updated_unix_s REAL NOT NULL, deleted INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE turns (
    id INTEGER PRIMARY KEY, chat INTEGER NOT NULL REFERENCES chats(id) ON DELETE CASCADE,
    place INTEGER NOT NULL, prompt TEXT NOT NULL, answer TEXT NOT NULL, body TEXT NOT NULL,
    UNIQUE (chat, place)
);
CREATE TABLE prompts (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE INDEX chats_by_time ON chats(updated_unix_s);
PRAGMA user_version = 1;
"""
_WORDS = """
CREATE VIRTUAL TABLE IF NOT EXISTS words
    USING fts5(prompt, answer, content='turns', content_rowid='id');
CREATE TRIGGER IF NOT EXISTS words_added AFTER INSERT ON turns BEGIN
    INSERT INTO words(rowid, prompt, answer) VALUES (new.id, new.prompt, new.answer); END;
CREATE TRIGGER IF NOT EXISTS words_gone AFTER DELETE ON turns BEGIN
    INSERT INTO words(words, rowid, prompt, answer) VALUES ('delete', old.id, old.prompt, old.answer); END;
CREATE TRIGGER IF NOT EXISTS words_changed AFTER UPDATE ON turns BEGIN
    INSERT INTO words(words, rowid, prompt, answer) VALUES ('delete', old.id, old.prompt, old.answer);
    INSERT INTO words(rowid, prompt, answer) VALUES (new.id, new.prompt, new.answer); END;
"""

_NUM_TURNS = "(SELECT count(*) FROM turns WHERE chat = chats.id)"

Result = TypeVar("Result")


class HistoryError(Exception):
    """The history cannot be used; the message says why and what to do."""


class Record:
    """A chat in the file. `number` is None until the history's thread has made it."""

    def __init__(self, number: int | None = None) -> None:
        self.number = number

    @property
    def known(self) -> int:
        if self.number is None:
            raise HistoryError("this chat could not be made in the history, so it is not saved")
        return self.number


@dataclass(frozen=True, slots=True)
class ChatSummary:
    """One line of the history; `found` is where the search words stand (None: nothing was searched for)."""

    id: int
    title: str
    model: str
    updated_unix_s: float
    num_turns: int
    found: str | None


@dataclass(frozen=True, slots=True)
class SavedChat:
    id: int
    title: str
    model: str
    created_unix_s: float
    settings: ChatSettings
    turns: tuple[Turn, ...]


class History:
    """The conversations in the file `path`. `open` before anything else, `close` at the end."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
        self._db: sqlite3.Connection | None = None  # of the thread
        self._has_words = False
        self._told: str | None = None
        self.on_problem: Callable[[str], None] | None = None
        """Hears why something could not be saved, once until something is saved again."""

    async def open(self) -> str | None:
        """Open or make the file; return what a person should know about it, if anything."""
        return await self._run(self._open)

    async def close(self) -> None:
        """Finish what was asked for and let go of the file. Nothing may be asked for afterwards."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        finally:
            self._thread.shutdown(wait=False)

    # --- chats ------------------------------------------------------------------------------------------

    def begin(self, title: str, model: str, settings: ChatSettings) -> Record:
        """Make a chat; it has its number when the thread has come to it."""
        record = Record()

        def create() -> None:
            record.number = self._create(title, model, settings)

        self._post(create)
        return record

    def save_turn(self, record: Record, place: int, turn: Turn) -> None:
        """Save turn number `place` as it is now."""
        self._post(self._save_turn, record, place, turn)

    def cut(self, record: Record, num_turns: int) -> None:
        """Drop the turns `[num_turns, ..)`; a chat without turns goes too."""
        self._post(self._cut, record, num_turns)

    def save_settings(self, record: Record, settings: ChatSettings) -> None:
        self._post(self._save_settings, record, settings)

    async def rename(self, chat: int, title: str) -> None:
        await self._run(self._do, "UPDATE chats SET title = ? WHERE id = ?", title, chat)

    async def delete(self, chat: int) -> None:
        """Hide a chat; it is gone for good at the next start."""
        await self._run(self._do, "UPDATE chats SET deleted = 1 WHERE id = ?", chat)

    async def restore(self, chat: int) -> None:
        """Take a deletion back."""
        await self._run(self._do, "UPDATE chats SET deleted = 0 WHERE id = ?", chat)

    async def chats(self, words: str = "", limit: int = 200) -> tuple[ChatSummary, ...]:
        """The newest chats in which all of `words` stand, the last one changed first."""
        return await self._run(self._chats, words, limit)

    async def read(self, chat: int) -> SavedChat:
        return await self._run(self._read, chat)

    async def newest(self) -> int | None:
        """The chat that was changed last, if there is any."""
        found = await self.chats(limit=1)
        return found[0].id if found else None

    # --- prompts ----------------------------------------------------------------------------------------

    async def prompts(self) -> tuple[str, ...]:
        """What was typed, oldest first."""
        return await self._run(self._prompts)

    def remember(self, prompt: str) -> None:
        self._post(self._remember, prompt)

    # --- in the thread ----------------------------------------------------------------------------------

    def _post(self, work: Callable[..., None], *arguments: object) -> None:
        """Have the thread do `work` after what was posted before; what goes wrong is told once."""

        def run() -> None:
            try:
                work(*arguments)
            except (sqlite3.Error, OSError, HistoryError) as error:
                loop.call_soon_threadsafe(self._tell, str(error))
            else:
                self._told = None

        loop = asyncio.get_running_loop()
        self._thread.submit(run)

    def _tell(self, problem: str) -> None:
        if problem != self._told and self.on_problem is not None:
            self._told = problem
            self.on_problem(problem)

    async def _run(self, work: Callable[..., Result], *arguments: object) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *arguments))
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(f"the history {self._path} cannot be used: {error}") from error

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise HistoryError(f"the history {self._path} is not open")
        return self._db

    def _open(self) -> str | None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(
                error, sqlite3.OperationalError
            ):  # locked, full, no rights: the file is not at fault
                raise
            self._close()
            aside = self._put_aside()
            self._connect()
            return f"The chat history could not be read ({error}). It was kept as {aside}; a new one begins."
        return None

    def _connect(self) -> None:
        db = self._db = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            self._close()
            raise HistoryError(
                f"the history {self._path} was written by a newer dnet-tui: update this one to use it"
            )
        if version == 0:
            db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        try:
            db.executescript(_WORDS)
            self._has_words = True
        except sqlite3.OperationalError as error:
            if "no such module" not in str(error):
                raise
        db.execute("DELETE FROM chats WHERE deleted = 1")
        db.execute("SELECT count(*) FROM turns JOIN chats ON chats.id = turns.chat").fetchone()

    def _put_aside(self) -> Path:
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._clock()))
        aside = self._path.with_name(f"{self._path.name}.unreadable-{stamp}")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):
            rest = self._path.with_name(self._path.name + suffix)
            if rest.exists():
                rest.replace(aside.with_name(aside.name + suffix))
        return aside

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _do(self, sql: str, *values: object) -> None:
        self._connection.execute(sql, values)

    def _create(self, title: str, model: str, settings: ChatSettings) -> int:
        now_s = self._clock()
        made = self._connection.execute(
            "INSERT INTO chats(title, settings, model, created_unix_s, updated_unix_s)"
            " VALUES (?, ?, ?, ?, ?)",
            (title, settings_text(settings), model, now_s, now_s),
        )
        assert made.lastrowid is not None, "SQLite numbers every row"
        return made.lastrowid

    def _cut(self, record: Record, num_turns: int) -> None:
        self._do("DELETE FROM turns WHERE chat = ? AND place >= ?", record.known, num_turns)
        if num_turns == 0:
            self._do("DELETE FROM chats WHERE id = ?", record.known)

    def _save_settings(self, record: Record, settings: ChatSettings) -> None:
        self._do("UPDATE chats SET settings = ? WHERE id = ?", settings_text(settings), record.known)

    def _save_turn(self, record: Record, place: int, turn: Turn) -> None:
        db, chat = self._connection, record.known
        body = json.dumps(turn_json(turn), ensure_ascii=False)
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute(
                "INSERT INTO turns(chat, place, prompt, answer, body) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT(chat, place) DO UPDATE"
                " SET prompt = excluded.prompt, answer = excluded.answer, body = excluded.body",
                (chat, place, turn.prompt, turn.answer, body),
            )
            db.execute("UPDATE chats SET updated_unix_s = ? WHERE id = ?", (self._clock(), chat))
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise

    def _chats(self, words: str, limit: int) -> tuple[ChatSummary, ...]:
        values: list[object] = []
        where, found = "1", "NULL"
        parts = words.split()
        if parts and self._has_words:
            query = " ".join('"' + part.replace('"', '""') + '"*' for part in parts)
            found = (
                "(SELECT snippet(words, -1, '', '', '…', 12) FROM words JOIN turns ON turns.id = words.rowid"
                " WHERE turns.chat = chats.id AND words MATCH ? ORDER BY rank LIMIT 1)"
            )
            where = (
                "(id IN (SELECT chat FROM turns JOIN words ON words.rowid = turns.id WHERE words MATCH ?)"
                " OR title LIKE ? ESCAPE '\\')"
            )
            values = [query, query, _like(words.strip())]
        elif parts:
            where = " AND ".join(
                "(title LIKE ? ESCAPE '\\' OR id IN (SELECT chat FROM turns"
                " WHERE prompt LIKE ? ESCAPE '\\' OR answer LIKE ? ESCAPE '\\'))"
                for _ in parts
            )
            values = [_like(part) for part in parts for _ in range(3)]
        columns = f"id, title, model, updated_unix_s, {_NUM_TURNS}, {found}"
        order = "ORDER BY updated_unix_s DESC, id DESC LIMIT ?"
        sql = f"SELECT {columns} FROM chats WHERE deleted = 0 AND {where} {order}"  # noqa: S608  constants
        rows = self._connection.execute(sql, (*values, limit))
        return tuple(ChatSummary(*row) for row in rows)

    def _read(self, chat: int) -> SavedChat:
        row = self._connection.execute(
            "SELECT title, model, created_unix_s, settings FROM chats WHERE id = ?", (chat,)
        ).fetchone()
        if row is None:
            raise HistoryError("this chat is not in the history any more")
        bodies = self._connection.execute("SELECT body FROM turns WHERE chat = ? ORDER BY place", (chat,))
        try:
            turns = tuple(turn_from_json(json.loads(body)) for (body,) in bodies)
            settings = settings_from_text(row[3])
        except (KeyError, TypeError, ValueError) as error:
            raise HistoryError(f"the chat '{row[0]}' cannot be read: {error!r}") from error
        return SavedChat(chat, row[0], row[1], row[2], settings, turns)

    def _prompts(self) -> tuple[str, ...]:
        rows = self._connection.execute("SELECT text FROM prompts ORDER BY id")
        return tuple(text for (text,) in rows)

    def _remember(self, prompt: str) -> None:
        self._do("INSERT INTO prompts(text) VALUES (?)", prompt)
        self._do("DELETE FROM prompts WHERE id <= (SELECT max(id) FROM prompts) - ?", NUM_PROMPTS)


def _like(text: str) -> str:
    for special in "\\%_":
        text = text.replace(special, "\\" + special)
    return f"%{text}%"
