"""Where the user writes: one to six rows, enter sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.events import Key
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import TextArea

from dnet_tui.keys import key_text, when_keys_change

_WAITING = "Ask already · it is sent when the model is ready"


class Prompt(TextArea):
    """A text area that grows with its text and remembers what was sent."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+j,shift+enter", "newline", "New line", id="prompt.newline"),
        Binding("pageup", "app.page_chat(-1)", "Page up", id="prompt.page_up"),
        Binding("pagedown", "app.page_chat(1)", "Page down", id="prompt.page_down"),
    ]

    is_ready: reactive[bool] = reactive(False, init=False)
    """Whether what is sent is asked at once."""
    is_stuck: reactive[bool] = reactive(False, init=False)
    """Whether nothing is on its way that could answer."""

    @dataclass
    class Sent(Message):
        text: str

    def __init__(self) -> None:
        super().__init__(
            id="prompt",
            soft_wrap=True,
            tab_behavior="focus",
            highlight_cursor_line=False,
            placeholder=_WAITING,
        )
        self._sent: list[str] = []
        self._recalled: int | None = None  # index into _sent of what stands in the prompt

    def on_mount(self) -> None:
        when_keys_change(self, self._invite)

    def watch_is_ready(self, is_ready: bool) -> None:
        self._invite()

    def watch_is_stuck(self, is_stuck: bool) -> None:
        self._invite()

    def _invite(self) -> None:
        key = partial(key_text, self.app)
        if self.is_ready:
            self.placeholder = f"Ask anything · {key('prompt.send')} sends · {key('prompt.newline')} new line"
        elif self.is_stuck:
            self.placeholder = f"No model is loaded · {key('model.pick')} chooses one"
        else:
            self.placeholder = _WAITING

    def remember(self, text: str) -> None:
        """Make `text` the newest that `up` brings back."""
        if not self._sent or self._sent[-1] != text:
            self._sent.append(text)
        self._recalled = None

    def recall_from(self, older: Sequence[str]) -> None:
        """Let `up` bring back `older` (the oldest first), before what was sent since."""
        self._sent = [*older, *self._sent]

    def put(self, text: str) -> None:
        """Replace what stands in the prompt; the cursor goes to its end."""
        self.text = text
        self.move_cursor(self.document.end)

    def action_cursor_line_end(self, select: bool = False) -> None:
        """Go to the end of the line; an empty prompt has none, then of the chat."""
        if self.text:
            super().action_cursor_line_end(select)
        else:
            self.call_next(self.run_action, "app.page_chat(0)")

    def action_newline(self) -> None:
        self.insert("\n")

    def action_cursor_up(self, select: bool = False) -> None:
        """Move up; on an empty prompt, or one that still shows an older message, recall the one before."""
        if self._sent and not select and self._shows_recalled and (self._recalled is None or self._recalled):
            self._recalled = len(self._sent) - 1 if self._recalled is None else self._recalled - 1
            self.put(self._sent[self._recalled])
        else:
            super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        if self._recalled is not None and not select and self._shows_recalled:
            self._recalled = self._recalled + 1 if self._recalled + 1 < len(self._sent) else None
            self.put("" if self._recalled is None else self._sent[self._recalled])
        else:
            super().action_cursor_down(select)

    @property
    def _shows_recalled(self) -> bool:
        if not self.text:
            self._recalled = None
            return True
        return self._recalled is not None and self.text == self._sent[self._recalled]

    def send(self) -> None:
        """Send what stands here, if it says anything."""
        if self.text.strip():
            self.post_message(self.Sent(self.text.strip()))

    async def _on_key(self, event: Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.send()
            return
        await super()._on_key(event)
