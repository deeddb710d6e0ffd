"""POST /v1/chat/completions: an answer to messages, whole or in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from dnet_core.api import sse
from dnet_core.api.answers import Question, answers, questions
from dnet_core.api.bound import chat_grammar
from dnet_core.api.logprobs import TokenEntry
from dnet_core.api.openai import ChatRequest
from dnet_core.api.output import CallArguments, CallBegun, Content, Part, Reasoning
from dnet_core.api.prompts import chat_prompt
from dnet_core.api.reading import read
from dnet_core.api.service import Service
from dnet_core.api.steps import Step, Usage

JsonDict = dict[str, object]


async def create(service: Service, request: Request) -> Response:
    body = await read(request, ChatRequest)
    model = service.model(body.model)
    model.check_tokens(body.logit_bias, "logit_bias")
    messages = [message.for_template() for message in body.messages]
    wanted, calls = body.wanted, body.call_rule
    prompt = chat_prompt(
        model,
        messages,
        body.callable_tools,
        body.chat_template_kwargs,
        body.reasoning_effort,
        bound=calls if calls.binds or wanted is not None else None,
    )
    grammar = await chat_grammar(model.tokenizer, prompt, wanted, calls)
    service.turns.check_room()
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    limit = body.max_completion_tokens or body.max_tokens
    asked = questions(prompt, body, limit, logprobs, grammar=grammar, one_call_only=not calls.many)
    chat = Chat(service, service.client(request, body.asker), model.name, body, asked)
    if body.stream:
        return service.stream(request, chat.chunks())
    async with service.attended(request):
        return sse.reply(await chat.completion())


class Chat:
    """One chat completion. Owned by the task that serves the request."""

    def __init__(
        self, service: Service, client: str, model: str, body: ChatRequest, asked: list[Question]
    ) -> None:
        self._service = service
        self._client = client
        self._model = model
        self._body = body
        self._asked = asked
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._usage = Usage(len(asked[0].tokens))

    async def completion(self) -> JsonDict:
        """The whole answer as a `chat.completion`."""
        choices = [_Choice() for _ in self._asked]
        async with aclosing(self._steps()) as steps:
            async for step in steps:
                choices[step.index].add(step)
        return {
            **self._envelope("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": choice.message(),
                    "logprobs": _logprobs(choice.logprobs) if self._body.logprobs else None,
                    "finish_reason": choice.finish,
                }
                for index, choice in enumerate(choices)
            ],
            "usage": usage_dict(self._usage),
        }

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent `chat.completion.chunk`s."""
        for index in range(len(self._asked)):
            yield self._chunk(index, {"role": "assistant", "content": ""}, (), None)
        async with aclosing(self._steps()) as steps:
            async for step in steps:
                if step.parts or step.logprobs:
                    yield self._chunk(step.index, _delta(step.parts), step.logprobs, None)
                if step.finish is not None:
                    yield self._chunk(step.index, {}, (), step.finish)
        if self._body.wants_usage:
            usage = usage_dict(self._usage)
            yield sse.data({**self._envelope("chat.completion.chunk"), "choices": [], "usage": usage})
        yield sse.DONE

    def _steps(self) -> AsyncGenerator[Step, None]:
        return answers(self._service, self._client, self._asked, self._usage)

    def _envelope(self, kind: str) -> JsonDict:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _chunk(
        self, index: int, delta: JsonDict, logprobs: tuple[TokenEntry, ...], finish: str | None
    ) -> bytes:
        choice: JsonDict = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if logprobs:
            choice["logprobs"] = _logprobs(logprobs)
        chunk: JsonDict = {**self._envelope("chat.completion.chunk"), "choices": [choice]}
        return sse.data({**chunk, "usage": None} if self._body.wants_usage else chunk)


@dataclass(slots=True)
class _Choice:
    """One answer so far, for a reply in one piece."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[CallBegun, list[str]]] = field(default_factory=list)
    logprobs: list[TokenEntry] = field(default_factory=list)
    finish: str | None = None

    def add(self, step: Step) -> None:
        self.logprobs += step.logprobs
        self.finish = step.finish
        for part in step.parts:
            match part:
                case Content():
                    self.text += part.text
                case Reasoning():
                    self.reasoning += part.text
                case CallBegun():
                    self.calls.append((part, []))
                case CallArguments():
                    self.calls[part.place][1].append(part.text)

    def message(self) -> JsonDict:
        message: JsonDict = {"role": "assistant", "content": self.text, "refusal": None}
        if self.reasoning:
            message |= {"reasoning_content": self.reasoning, "reasoning": self.reasoning}
        if self.calls:
            message["content"] = self.text or None
            message["tool_calls"] = [
                {"id": call.id, **_function(call.name, "".join(texts))} for call, texts in self.calls
            ]
        return message


def usage_dict(usage: Usage) -> JsonDict:
    """Usage as completions tell it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _delta(parts: tuple[Part, ...]) -> JsonDict:
    """What one token adds, as a chunk tells it; a token may end one part and begin the next."""
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    text = "".join(part.text for part in parts if isinstance(part, Content))
    calls: list[JsonDict] = []
    for part in parts:
        match part:
            case CallBegun():
                calls.append({"index": part.place, "id": part.id, **_function(part.name, "")})
            case CallArguments():
                calls.append({"index": part.place, "function": {"arguments": part.text}})
            case Reasoning() | Content():
                pass
    delta: JsonDict = {"reasoning_content": reasoning, "reasoning": reasoning} if reasoning else {}
    if text or not (reasoning or calls):
        delta["content"] = text
    return {**delta, "tool_calls": calls} if calls else delta


def _function(name: str, arguments: str) -> JsonDict:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _logprobs(entries: list[TokenEntry] | tuple[TokenEntry, ...]) -> JsonDict:
    return {"content": list(entries), "refusal": None}
