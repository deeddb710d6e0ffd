"""POST /v1/chat/completions: messages to a prompt, tokens to a completion, whole or in chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from starlette.requests import Request
from starlette.responses import Response

from dnet_core.api import sse
from dnet_core.api.answers import answers
from dnet_core.api.errors import SERVER, ApiError, from_dnet
from dnet_core.api.logprobs import HeldLogprobs, JsonDict
from dnet_core.api.openai import ChatRequest, Sampled, read
from dnet_core.api.service import ServedModel, Service
from dnet_core.api.stream import EventStream
from dnet_core.coordinator import Coordinator
from dnet_core.errors import RequestError
from dnet_core.types.generation import FinishReason, GenerationDone, SamplingParams, TokenText

MAX_SEED = 2**63


async def create(service: Service, request: Request) -> Response:
    body = await read(request, ChatRequest)
    model = service.model(body.model)
    model.check_bias(body.logit_bias)
    tokens = _prompt(model, body)
    chat = Chat(service.coordinator, model, body, tokens)
    if body.stream:
        return EventStream(chat.chunks(), service.failure_note(request))
    async with sse.while_connected(request.receive):
        return sse.reply(await chat.completion())


def _prompt(model: ServedModel, body: ChatRequest) -> tuple[int, ...]:
    messages = [message.for_template() for message in body.messages]
    try:
        tokens = model.tokenizer.encode_chat(messages, **body.chat_template_kwargs)
        model.check_fits(len(tokens))
    except RequestError as error:
        raise at_field(error, "messages") from None
    return tokens


def at_field(error: RequestError, param: str) -> ApiError:
    """The reply for `error`, which lies in the field `param`."""
    told = from_dnet(error)
    told.param = param
    return told


def sampling_params(body: Sampled, max_tokens: int | None, logprobs: int | None) -> list[SamplingParams]:
    """One entry per choice; each has its own seed, the first the one that was asked for."""
    seed = secrets.randbits(63) if body.seed is None else body.seed
    base = SamplingParams(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=tuple(body.logit_bias.items()),
        logprobs=logprobs,
        max_tokens=max_tokens,
        stop=body.stop,
    )
    return [replace(base, seed=(seed + index) % MAX_SEED) for index in range(body.n)]


@dataclass(slots=True)
class _Choice:
    """One answer so far, for a reply in one piece."""

    text: str = ""
    logprobs: list[JsonDict] = field(default_factory=list)
    finish: str = ""


class Chat:
    """One chat completion. Owned by the task that serves the request."""

    def __init__(
        self, coordinator: Coordinator, model: ServedModel, body: ChatRequest, tokens: tuple[int, ...]
    ) -> None:
        self._coordinator = coordinator
        self._model = model
        self._body = body
        self._tokens = tokens
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._held = [HeldLogprobs(model.tokenizer) for _ in range(body.n)]

    async def completion(self) -> JsonDict:
        """The whole answer as a `chat.completion`."""
        choices = [_Choice() for _ in range(self._body.n)]
        async with aclosing(self._deltas()) as deltas:
            async for index, text, logprobs, finish in deltas:
                choices[index].text += text
                choices[index].logprobs += logprobs
                choices[index].finish = finish or ""
        return {
            **self._envelope("chat.completion"),
            "choices": [self._choice(index, choice) for index, choice in enumerate(choices)],
            "usage": self._usage(),
        }

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent `chat.completion.chunk`s."""
        for index in range(self._body.n):
            yield sse.data(self._chunk(index, {"role": "assistant", "content": ""}, [], None))
        async with aclosing(self._deltas()) as deltas:
            async for index, text, logprobs, finish in deltas:
                if text or logprobs:
                    yield sse.data(self._chunk(index, {"content": text}, logprobs, None))
                if finish is not None:
                    yield sse.data(self._chunk(index, {}, [], finish))
        if self._wants_usage:
            yield sse.data({**self._envelope("chat.completion.chunk"), "choices": [], "usage": self._usage()})
        yield sse.DONE

    async def _deltas(self) -> AsyncGenerator[tuple[int, str, list[JsonDict], str | None], None]:
        """Yield (choice, new text, new logprobs, finish reason or None); the reason comes once per choice."""
        body = self._body
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        limit = body.max_completion_tokens or body.max_tokens
        params = sampling_params(body, limit, logprobs)
        async with aclosing(answers(self._coordinator, self._tokens, params)) as events:
            async for index, event in events:
                match event:
                    case TokenText():
                        self._completion_tokens += 1
                        held = self._held[index].add(event) if body.logprobs else []
                        yield index, event.text, held, None
                    case GenerationDone():
                        self._cached_tokens = event.cached_tokens
                        yield index, "", [], _finish(event)

    @property
    def _wants_usage(self) -> bool:
        options = self._body.stream_options
        return options is not None and options.include_usage

    def _envelope(self, kind: str) -> JsonDict:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model.name}

    def _chunk(self, index: int, delta: JsonDict, logprobs: list[JsonDict], finish: str | None) -> JsonDict:
        choice: JsonDict = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        if logprobs:
            choice["logprobs"] = {"content": logprobs, "refusal": None}
        chunk = {**self._envelope("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self._wants_usage else chunk

    def _choice(self, index: int, choice: _Choice) -> JsonDict:
        logprobs = {"content": choice.logprobs, "refusal": None} if self._body.logprobs else None
        return {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": choice.finish,
        }

    def _usage(self) -> JsonDict:
        return {
            "prompt_tokens": len(self._tokens),
            "completion_tokens": self._completion_tokens,
            "total_tokens": len(self._tokens) + self._completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


def _finish(done: GenerationDone) -> str:
    if done.finish_reason is FinishReason.CANCELLED:
        raise ApiError(503, "the answer was stopped", kind=SERVER, code="cancelled")
    return str(done.finish_reason)
