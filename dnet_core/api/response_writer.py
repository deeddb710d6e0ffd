"""The object and the events of /v1/responses, made from an answer's steps.

created, in_progress
  output_item.added       reasoning | message | function_call
    content_part.added      (not for calls)
      *.delta ...
      *.done
    content_part.done
  output_item.done
completed | incomplete | failed
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from typing import Literal

from dnet_core.api.body import Body
from dnet_core.api.errors import ApiError
from dnet_core.api.logprobs import TokenEntry
from dnet_core.api.output import CallArguments, CallBegun, Content, Reasoning
from dnet_core.api.responses_request import input_items
from dnet_core.api.steps import Step, Usage

JsonDict = dict[str, object]
Kind = Literal["reasoning", "message", "function_call"]

_ID_PREFIX = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
_TEXT_EVENT = {
    "reasoning": "response.reasoning_text",
    "message": "response.output_text",
    "function_call": "response.function_call_arguments",
}


class _Item:
    """The output item that is being written."""

    def __init__(self, kind: Kind, index: int, call: CallBegun | None = None) -> None:
        self.kind = kind
        self.index = index
        self.id = f"{_ID_PREFIX[kind]}_{secrets.token_hex(12)}"
        self.call = call
        self.text = ""
        self.logprobs: list[TokenEntry] = []

    @property
    def where(self) -> JsonDict:
        where: JsonDict = {"item_id": self.id, "output_index": self.index}
        return where if self.kind == "function_call" else {**where, "content_index": 0}

    def part(self) -> JsonDict:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}

    def told(self, status: str) -> JsonDict:
        item: JsonDict = {"id": self.id, "type": self.kind, "status": status}
        content = [self.part()] if self.text else []
        if self.kind == "reasoning":
            return {**item, "summary": [], "content": content}
        if self.kind == "message":
            return {**item, "role": "assistant", "content": content}
        assert self.call is not None, "an item of this kind is made from a call"
        return {**item, "call_id": self.call.id, "name": self.call.name, "arguments": self.text}


class ResponseWriter:
    """One response so far. Owned by the task that runs it."""

    def __init__(self, asked: JsonDict) -> None:
        """`asked` are the fields of the response that repeat the request."""
        self.id = f"resp_{secrets.token_hex(16)}"
        self._fields: JsonDict = {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "status": "queued",
            "error": None,
            "incomplete_details": None,
            **asked,
            "usage": None,
        }
        self._output: list[JsonDict] = []
        self._item: _Item | None = None
        self._logprobs: list[TokenEntry] = []  # of tokens whose text has not come yet

    def response(self) -> JsonDict:
        """The response as it is now."""
        item = [self._item.told("in_progress")] if self._item else []
        return {**self._fields, "output": [*self._output, *item]}

    def output_items(self) -> tuple[Body, ...]:
        """What has been written, as items of a following request's input."""
        return input_items(self.response()["output"])

    def begin(self) -> Iterator[JsonDict]:
        self._fields["status"] = "in_progress"
        for kind in ("created", "in_progress"):
            yield {"type": f"response.{kind}", "response": self.response()}

    def add(self, step: Step) -> Iterator[JsonDict]:
        """Take the next step of the answer; yields its events."""
        self._logprobs += step.logprobs
        for part in step.parts:
            match part:
                case Reasoning():
                    yield from self._write("reasoning", part.text)
                case Content():
                    yield from self._write("message", part.text)
                case CallBegun():
                    yield from self._close("completed")
                    yield from self._open("function_call", part)
                case CallArguments():
                    yield from self._write("function_call", part.text)

    def finish(self, reason: str, usage: Usage) -> Iterator[JsonDict]:
        """The answer has ended by itself (`reason` "stop", "tool_calls") or by its length."""
        status = "incomplete" if reason == "length" else "completed"
        yield from self._close(status)
        if status == "incomplete":
            self._fields["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self._fields["completed_at"] = int(time.time())
        yield self._end(status, usage)

    def fail(self, error: ApiError, usage: Usage) -> Iterator[JsonDict]:
        yield from self._close("incomplete")
        # The code is one of OpenAI's list; which of ours it was is in the message.
        self._fields["error"] = {"code": "server_error", "message": error.message}
        yield self._end("failed", usage)

    def cancel(self, usage: Usage) -> Iterator[JsonDict]:
        """Somebody stopped it. There is no event for that: the stream ends as an incomplete one."""
        yield from self._close("incomplete")
        event = self._end("incomplete", usage)
        self._fields["status"] = "cancelled"
        yield {**event, "response": self.response()}

    def _end(self, status: str, usage: Usage) -> JsonDict:
        self._fields["status"] = status
        self._fields["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return {"type": f"response.{status}", "response": self.response()}

    def _write(self, kind: Kind, text: str) -> Iterator[JsonDict]:
        if self._item is None or self._item.kind != kind:
            yield from self._close("completed")
            yield from self._open(kind, None)
        item = self._item
        assert item is not None, "opened above"
        item.text += text
        event: JsonDict = {"type": f"{_TEXT_EVENT[kind]}.delta", **item.where, "delta": text}
        if kind == "message":
            entries, self._logprobs = self._logprobs, []
            event["logprobs"] = entries
            item.logprobs += entries
        yield event

    def _open(self, kind: Kind, call: CallBegun | None) -> Iterator[JsonDict]:
        self._item = item = _Item(kind, len(self._output), call)
        yield {
            "type": "response.output_item.added",
            "output_index": item.index,
            "item": item.told("in_progress"),
        }
        if kind != "function_call":
            yield {"type": "response.content_part.added", **item.where, "part": item.part()}

    def _close(self, status: str) -> Iterator[JsonDict]:
        item, self._item = self._item, None
        if item is None:
            return
        done: JsonDict = {"type": f"{_TEXT_EVENT[item.kind]}.done", **item.where}
        match item.kind:
            case "function_call":
                assert item.call is not None, "an item of this kind is made from a call"
                yield {**done, "arguments": item.text, "name": item.call.name}
            case "message":
                yield {**done, "text": item.text, "logprobs": item.logprobs}
            case "reasoning":
                yield {**done, "text": item.text}
        if item.kind != "function_call":
            yield {"type": "response.content_part.done", **item.where, "part": item.part()}
        told = item.told(status)
        self._output.append(told)
        yield {"type": "response.output_item.done", "output_index": item.index, "item": told}
