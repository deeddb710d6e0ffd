"""The chat on the screen as the history has it: begun with its first question, then written turn by turn."""

from __future__ import annotations

from collections.abc import Callable

from dnet_tui.chat import ChatSettings, Turn
from dnet_tui.history import History, Record

SAVE_EVERY_S = 3.0
"""So often is an answer saved that is being written."""
_TITLE_CHARS = 60


class ChatRecord:
    """Writes down one chat after the other; without a history nothing is kept. Owned by the conversation."""

    def __init__(self, history: History | None, clock: Callable[[], float]) -> None:
        self._history = history
        self._clock = clock
        self._record: Record | None = None  # None: nothing of this chat is written yet
        self._saved_s = 0.0

    @property
    def number(self) -> int | None:
        """The number of this chat in the history."""
        return self._record.number if self._record is not None else None

    @property
    def is_due(self) -> bool:
        """Whether what grows should be saved again."""
        return self._clock() - self._saved_s > SAVE_EVERY_S

    def leave(self) -> None:
        """What is saved from now on is another chat, a new one."""
        self._record = None

    def go_on(self, number: int) -> None:
        """What is saved from now on belongs to chat `number`."""
        self._record = Record(number)

    def save(self, turns: tuple[Turn, ...], index: int, model: str, settings: ChatSettings) -> None:
        """Write turn `index` down as it is now; of a chat that is not written yet, those before it too."""
        if self._history is None or index >= len(turns):
            return
        if self._record is None:
            self._record = self._history.begin(_title(turns[0].prompt), model, settings)
            for place in range(index):
                self._history.save_turn(self._record, place, turns[place])
        self._history.save_turn(self._record, index, turns[index])
        self._saved_s = self._clock()

    def save_settings(self, settings: ChatSettings) -> None:
        if self._history is not None and self._record is not None:
            self._history.save_settings(self._record, settings)

    def remember(self, prompt: str) -> None:
        """Keep what was typed."""
        if self._history is not None:
            self._history.remember(prompt)

    def cut(self, turns: tuple[Turn, ...], num_turns: int) -> bool:
        """Go on with the first `num_turns` of `turns`.

        Returns whether the chat stays as it was, for what the others say; then a new one begins.
        """
        if self._record is None or self._history is None:
            return False
        stays = any(turn.answer for turn in turns[num_turns:])
        if stays:
            self.leave()
        else:
            self.forget(num_turns)
        return stays

    def forget(self, num_turns: int) -> None:
        """Drop the turns from `num_turns` on."""
        if self._history is not None and self._record is not None:
            self._history.cut(self._record, num_turns)
            if num_turns == 0:
                self._record = None


def _title(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= _TITLE_CHARS else line[: _TITLE_CHARS - 1].rstrip() + "…"
