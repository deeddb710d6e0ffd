"""An answer's text, piece by piece, to reasoning, content and tool calls.

    <think>Let me see.</think>It is <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>
           |--- Reasoning ---||----|                                     |----------|
                              Content                  CallBegun("f")    CallArguments

How the text is cut into pieces makes no difference to what comes out, put together. What cannot be read as a
call comes out as content, markers and all: nothing that a model says is lost.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dnet_core.api.formats import AnswerFormat
from dnet_core.api.tool_parsers import PARSE_FAILURES, JsonDict, ToolCall, json_calls

_CALL_HEAD = re.compile(
    r'\s*\[?\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_CALL_END = re.compile(r"\s*\}?\s*[\];,]?\s*")


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The answer's call number `place` is of the function `name`; its arguments follow."""

    place: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    place: int
    text: str


Part = Reasoning | Content | CallBegun | CallArguments


class CallWriter:
    """Numbers the calls of one answer. With `one_only` later calls are dropped, as was asked for."""

    def __init__(self, tools: Sequence[JsonDict], *, one_only: bool) -> None:
        self.tools = tools
        self.num_calls = 0
        self._one_only = one_only
        self._names = {_function_name(tool) for tool in tools}

    def knows(self, name: str) -> bool:
        return name in self._names

    def begin(self, name: str) -> list[Part]:
        self.num_calls += 1
        if self._is_extra:
            return []
        # Nine letters and digits: Mistral's templates take no other ids back.
        return [CallBegun(self.num_calls - 1, secrets.token_hex(8)[:9], name)]

    def arguments(self, text: str) -> list[Part]:
        return [] if self._is_extra or not text else [CallArguments(self.num_calls - 1, text)]

    def whole(self, call: ToolCall) -> list[Part]:
        return [*self.begin(call.name), *self.arguments(call.arguments)]

    @property
    def _is_extra(self) -> bool:
        return self._one_only and self.num_calls > 1


class OutputParser:
    """Reads one answer. Owned by the task that generates it.

    `tools` empty: calls are not looked for. `in_reasoning`: the prompt has opened the reasoning already.
    """

    def __init__(self, form: AnswerFormat, calls: CallWriter, *, in_reasoning: bool) -> None:
        self._reasoning = form.reasoning
        self._tools = form.tools if calls.tools else None
        self._dropped = form.dropped
        self._calls = calls
        self._pending = ""
        self._begun = ""  # the marker in front of the calls that are being read
        self._is_blank = True  # no content yet
        self._trims = in_reasoning  # white space at the start of what follows is not part of it
        self._json = JsonObject()
        self._read: Callable[[list[Part]], bool] = (
            self._read_reasoning if in_reasoning else self._read_content
        )

    @property
    def in_reasoning(self) -> bool:
        return self._read == self._read_reasoning

    def feed(self, text: str) -> list[Part]:
        """Take the next piece of text; return what is certain by now."""
        self._pending += text
        parts: list[Part] = []
        while self._read(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """Return what was held back, when the answer has ended."""
        parts: list[Part] = []
        while self._read == self._read_call:
            self._end_call(parts)
        rest, self._pending = self._pending, ""
        if self._read == self._read_reasoning:
            self._say(parts, Reasoning(rest.rstrip()))
        elif self._read == self._read_content:
            self._say(parts, Content(rest))
        elif self._read == self._read_call_end:
            self._say(parts, Content(_CALL_END.sub("", rest, count=1)))
        return parts

    # Each reader takes what it can from `_pending`; True: another reader, or the same one, has to go on.

    def _read_content(self, parts: list[Part]) -> bool:
        text = self._trimmed()
        if self._tools and self._tools.bare and self._is_blank and text.lstrip().startswith("{"):
            self._pending, self._begun = text, ""
            self._read = self._read_call
            return True
        if self._reasoning and self._is_blank:
            start, begun = self._reasoning.start, text.lstrip()
            if begun.startswith(start):
                self._pending = begun.removeprefix(start)
                self._trims, self._read = True, self._read_reasoning
                return True
            if start.startswith(begun):
                return False
        markers = [*self._dropped]
        if self._tools and self._tools.start:
            markers.append(self._tools.start)
        at, marker = find_first(text, markers)
        if marker is None:
            keep = self._held_content(text, markers)
            self._say(parts, Content(text[: len(text) - keep]))
            self._pending = text[len(text) - keep :]
            return False
        before = text[:at]
        self._say(parts, Content(before.rstrip() if marker not in self._dropped else before))
        self._pending = text[at + len(marker) :]
        if marker not in self._dropped:
            self._begun, self._read = marker, self._read_call
        return True

    def _read_reasoning(self, parts: list[Part]) -> bool:
        assert self._reasoning is not None, "only a model with reasoning gets here"
        text = self._trimmed()
        at, marker = find_first(text, [self._reasoning.end])
        if marker is None:
            keep = held_tail(text, [self._reasoning.end])
            keep = len(text) - len(text[: len(text) - keep].rstrip())
            self._say(parts, Reasoning(text[: len(text) - keep]))
            self._pending = text[len(text) - keep :]
            return False
        self._say(parts, Reasoning(text[:at].rstrip()))
        self._pending = text[at + len(marker) :]
        self._trims, self._read = True, self._read_content
        return True

    def _read_call(self, parts: list[Part]) -> bool:
        assert self._tools is not None, "calls are looked for"
        head = _CALL_HEAD.match(self._pending) if self._tools.streams else None
        if head is not None and self._calls.knows(head[1]):
            parts += self._calls.begin(head[1])
            self._pending = self._pending[head.end() :]
            self._json = JsonObject()
            self._read = self._read_arguments
            return True
        end = self._tools.end
        at = self._call_end()
        if at < 0:
            return False
        text, self._pending = self._pending[:at], self._pending[at + len(end) :]
        self._read = self._read_content
        if not self._take_calls(parts, text):
            self._say(parts, Content(self._begun + text + end))
        return True

    def _call_end(self) -> int:
        """Where the end marker begins (-1: not yet).

        In a text of JSON it is what an argument says, unless another call follows: then a quote is missing.
        """
        assert self._tools is not None, "calls are looked for"
        start, end = self._tools.start, self._tools.end
        if not end:
            return -1
        scanned, done = JsonObject(), 0
        scanned.take("[")
        at = self._pending.find(end)
        while at >= 0 and self._tools.parse is json_calls:
            scanned.take(self._pending[done:at])
            if scanned.is_complete or not scanned.in_text:
                return at
            after = self._pending[at + len(end) :].lstrip()
            if after.startswith(start):
                return at
            if start.startswith(after):
                return -1
            done, at = at, self._pending.find(end, at + 1)
        return at

    def _end_call(self, parts: list[Part]) -> None:
        """The answer has ended in calls. If they cannot be read, what may be their end is taken for it."""
        assert self._tools is not None, "calls are looked for"
        text, self._pending = self._pending, ""
        self._read = self._read_content
        if self._take_calls(parts, text):
            return
        before, end, self._pending = text.partition(self._tools.end) if self._tools.end else (text, "", "")
        self._say(parts, Content(self._begun + before + end))
        while self._read(parts):
            pass

    def _read_arguments(self, parts: list[Part]) -> bool:
        taken = self._json.take(self._pending)
        parts += self._calls.arguments(self._pending[:taken])
        self._pending = self._pending[taken:]
        if not self._json.is_complete:
            return False
        self._read = self._read_call_end
        return True

    def _read_call_end(self, parts: list[Part]) -> bool:
        """After the arguments: the object's own brace, then the end marker or another call."""
        assert self._tools is not None, "calls are looked for"
        match = _CALL_END.match(self._pending)
        assert match is not None, "matches the empty text"
        rest, end = self._pending[match.end() :], self._tools.end
        if not rest or (end.startswith(rest) and rest != end):
            return False
        self._read = self._read_call if rest.startswith("{") else self._read_content
        self._pending = rest.removeprefix(end)
        self._trims = True
        return True

    def _take_calls(self, parts: list[Part], text: str) -> bool:
        """Read `text` as calls; False: it is none."""
        assert self._tools is not None, "calls are looked for"
        try:
            calls = self._tools.parse(text, self._calls.tools)
        except PARSE_FAILURES:
            return False
        if not calls or not all(self._calls.knows(call.name) for call in calls):
            return False
        for call in calls:
            parts += self._calls.whole(call)
        self._trims = True
        return True

    def _say(self, parts: list[Part], part: Reasoning | Content) -> None:
        if part.text:
            parts.append(part)
            self._trims = False
            self._is_blank = self._is_blank and (isinstance(part, Reasoning) or not part.text.strip())

    def _trimmed(self) -> str:
        return self._pending.lstrip() if self._trims else self._pending

    def _held_content(self, text: str, markers: Sequence[str]) -> int:
        """How many characters at the end wait: they may begin a marker, or be white space before a call."""
        keep = held_tail(text, markers)
        if self._tools is None:
            return keep
        return len(text) - len(text[: len(text) - keep].rstrip())


class JsonObject:
    """Finds the end of a JSON object in a text that arrives in pieces."""

    def __init__(self) -> None:
        self.is_complete = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def in_text(self) -> bool:
        return self._in_string

    def take(self, text: str) -> int:
        """Return how many characters of `text` belong to the object."""
        for place, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_complete = True
                    return place + 1
        return len(text)


def find_first(text: str, markers: Sequence[str]) -> tuple[int, str | None]:
    """Return where the first of `markers` begins in `text`, and which it is; of two the longer one."""
    found = [(text.index(marker), -len(marker), marker) for marker in markers if marker in text]
    if not found:
        return len(text), None
    at, _, marker = min(found)
    return at, marker


def held_tail(text: str, markers: Sequence[str]) -> int:
    """Return the length of the longest end of `text` with which one of `markers` begins."""
    longest = max((len(marker) for marker in markers), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(marker.startswith(text[-length:]) for marker in markers):
            return length
    return 0


def _function_name(tool: JsonDict) -> object:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else None
