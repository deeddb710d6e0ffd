"""The answers of gpt-oss: messages on channels.

    <|channel|>analysis<|message|>Let me see.<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>
    <|start|>assistant<|channel|>final<|message|>It is.<|return|>

The prompt ends with `<|start|>assistant`, so an answer begins in a header.
"""

from __future__ import annotations

import re

from dnet_core.api.output import CallWriter, Content, Part, Reasoning, find_first, held_tail

_MESSAGE = "<|message|>"
_BODY_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([\w.-]+)")


class HarmonyParser:
    """Reads one answer; the same interface as OutputParser. Owned by the task that generates it."""

    def __init__(self, calls: CallWriter) -> None:
        self._calls = calls
        self._pending = ""
        self._in_body = False
        self._channel = ""
        self._is_call = False

    @property
    def in_reasoning(self) -> bool:
        return self._in_body and self._channel == "analysis"

    def feed(self, text: str) -> list[Part]:
        """Take the next piece of text; return what is certain by now."""
        self._pending += text
        parts: list[Part] = []
        while self._read_body(parts) if self._in_body else self._read_header(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """Return what was held back, when the answer has ended."""
        rest, self._pending = self._pending, ""
        # A header without a message is no answer in this format: the model said something all the same.
        return self._body(rest) if self._in_body or "<|" not in rest else []

    def _read_header(self, parts: list[Part]) -> bool:
        header, found, rest = self._pending.partition(_MESSAGE)
        if not found:
            return False
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        self._pending = rest
        self._in_body = True
        self._channel = channel[1] if channel else "final"
        self._is_call = recipient is not None and self._calls.knows(recipient[1])
        if recipient is not None and self._is_call:
            parts += self._calls.begin(recipient[1])
        return True

    def _read_body(self, parts: list[Part]) -> bool:
        at, marker = find_first(self._pending, _BODY_ENDS)
        if marker is None:
            at -= held_tail(self._pending, _BODY_ENDS)
        parts += self._body(self._pending[:at])
        if marker is None:
            self._pending = self._pending[at:]
            return False
        # What opens the next header is part of it.
        begins_header = marker in ("<|start|>", "<|channel|>")
        self._pending = self._pending[at + (0 if begins_header else len(marker)) :]
        self._in_body = False
        return True

    def _body(self, text: str) -> list[Part]:
        if not text:
            return []
        if self._is_call:
            return self._calls.arguments(text)
        return [Reasoning(text) if self._channel == "analysis" else Content(text)]
