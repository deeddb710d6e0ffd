"""Turns and chat settings as JSON, for the history and for export.

What is written can be read back by every later version: unknown fields are left alone, missing ones have a
meaning. An answer that was still being written counts as stopped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, assert_never

from dnet_core.types.generation import RECOMMENDABLE, FinishReason, GenerationDone, SamplingParams
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
)

Json = dict[str, Any]


def turn_json(turn: Turn) -> Json:
    return {"prompt": turn.prompt, "shown": turn.shown, "replies": [_reply_json(r) for r in turn.replies]}


def turn_from_json(data: Mapping[str, Any]) -> Turn:
    """Raises KeyError, TypeError or ValueError for what is no turn."""
    replies = tuple(_reply(reply) for reply in data["replies"])
    shown = int(data.get("shown", 0))
    if not replies or not 0 <= shown < len(replies):
        raise ValueError("a turn without the reply that it shows")
    return Turn(str(data["prompt"]), replies, shown)


def settings_text(settings: ChatSettings) -> str:
    told = {
        "system": settings.system,
        "thinks": settings.thinks,
        "left_to_model": sorted(settings.left_to_model),
        "sampling": _sampling_json(settings.sampling),
    }
    return json.dumps(told, ensure_ascii=False)


def settings_from_text(text: str) -> ChatSettings:
    """Raises KeyError, TypeError or ValueError for what is no settings."""
    data = json.loads(text)
    known = {field.name for field in fields(SamplingParams)}
    sampling = SamplingParams(**{name: value for name, value in data["sampling"].items() if name in known})
    left = frozenset(data.get("left_to_model", ())) & frozenset(RECOMMENDABLE)
    return ChatSettings(sampling, data.get("system"), data.get("thinks"), left)


def _sampling_json(sampling: SamplingParams) -> Json:
    """What differs from the defaults of the type; tuples, which JSON has not, are never set in a chat."""
    plain = SamplingParams()
    told = {field.name: getattr(sampling, field.name) for field in fields(SamplingParams)}
    return {n: v for n, v in told.items() if v != getattr(plain, n) and not isinstance(v, tuple)}


def _reply_json(reply: Reply) -> Json:
    thought = asdict(reply.thought) if reply.thought is not None else None
    told = {"text": reply.text, "thought": thought, "end": _end_json(reply.phase)}
    return {**told, "notes": list(reply.notes)} if reply.notes else told


def _reply(data: Mapping[str, Any]) -> Reply:
    told = data.get("thought")
    thought = None
    if told is not None:
        thought = Thought(str(told["text"]), int(told["num_tokens"]), float(told["seconds"]))
    return Reply(str(data["text"]), _end(data["end"]), thought, tuple(map(str, data.get("notes", ()))))


def _end_json(phase: Phase) -> Json:
    match phase:
        case Finished(done=done):
            return {
                "kind": "finished",
                "finish_reason": str(done.finish_reason),
                "prompt_tokens": done.prompt_tokens,
                "completion_tokens": done.completion_tokens,
                "cached_tokens": done.cached_tokens,
                "ttft_s": done.ttft_s,
                "decode_tokens_per_s": done.decode_tokens_per_s,
            }
        case Failed(message=message, num_tokens=n):
            return {"kind": "failed", "message": message, "tokens": n}
        case Stopped(num_tokens=n) | Answering(num_tokens=n) | Recovering(num_tokens=n):
            return {"kind": "stopped", "tokens": n}
        case Queued() | Reading():
            return {"kind": "stopped", "tokens": 0}
        case _:
            assert_never(phase)


def _end(data: Mapping[str, Any]) -> Phase:
    match data["kind"]:
        case "finished":
            done = GenerationDone(
                finish_reason=FinishReason(data["finish_reason"]),
                prompt_tokens=int(data["prompt_tokens"]),
                completion_tokens=int(data["completion_tokens"]),
                cached_tokens=int(data["cached_tokens"]),
                ttft_s=data["ttft_s"],
                decode_tokens_per_s=data["decode_tokens_per_s"],
            )
            return Finished(done)
        case "failed":
            return Failed(str(data["message"]), int(data["tokens"]))
        case "stopped":
            return Stopped(int(data["tokens"]))
        case kind:
            raise ValueError(f"an answer that ended in an unknown way: {kind}")
