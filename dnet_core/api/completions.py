"""POST /v1/completions: texts or token ids, continued as they are."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from dnet_core.api import sse
from dnet_core.api.answers import Question, answers, sampling_params
from dnet_core.api.bound import text_grammar
from dnet_core.api.chat import JsonDict, usage_dict
from dnet_core.api.errors import ApiError, at_field
from dnet_core.api.logprobs import TokenEntry
from dnet_core.api.output import Content
from dnet_core.api.reading import read
from dnet_core.api.service import ServedModel, Service
from dnet_core.api.steps import Step, Usage
from dnet_core.api.text_requests import CompletionRequest, TokenIds
from dnet_core.errors import RequestError


async def create(service: Service, request: Request) -> Response:
    body = await read(request, CompletionRequest)
    model = service.model(body.model)
    model.check_tokens(body.logit_bias, "logit_bias")
    prompts = [_tokens(model, prompt) for prompt in body.prompt]
    grammar = await text_grammar(model.tokenizer, body.wanted)
    service.turns.check_room()
    completion = Completion(service, service.client(request, body.user), model, body, prompts, grammar)
    if body.stream:
        return service.stream(request, completion.chunks())
    async with service.attended(request):
        return sse.reply(await completion.completion())


def _tokens(model: ServedModel, prompt: str | TokenIds) -> TokenIds:
    """The tokens of `prompt`. Raises ApiError 400."""
    try:
        if isinstance(prompt, str):
            prompt = model.encode(prompt, add_special_tokens=True)
        else:
            model.check_fits(len(prompt))
    except RequestError as error:
        raise at_field(error, "prompt") from None
    model.check_tokens(prompt, "prompt")
    if not prompt:
        message = "prompt: there is nothing to continue"
        raise ApiError(400, message, param="prompt", code="invalid_value")
    return prompt


class Completion:
    """One request for completions. Owned by the task that serves it."""

    def __init__(
        self,
        service: Service,
        client: str,
        model: ServedModel,
        body: CompletionRequest,
        prompts: list[TokenIds],
        grammar: str | None,
    ) -> None:
        self._service = service
        self._client = client
        self._model = model
        self._body = body
        self._prompts = prompts
        self._grammar = grammar
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._usage = Usage(sum(map(len, prompts)))

    async def completion(self) -> JsonDict:
        """The whole answer as a `text_completion`."""
        choices = [_Choice(text) for text in self._echoed()]
        async with aclosing(self._steps()) as steps:
            async for step in steps:
                choices[step.index].add(step)
        told = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return {**self._envelope(), "choices": told, "usage": usage_dict(self._usage)}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent `text_completion`s."""
        told_chars = [len(text) for text in self._echoed()]
        for index, text in enumerate(self._echoed()):
            if text:
                yield self._chunk(index, _Choice(text))
        async with aclosing(self._steps()) as steps:
            async for step in steps:
                choice = _Choice("", told_chars[step.index])
                choice.add(step)
                if choice.text or choice.entries or choice.finish:
                    yield self._chunk(step.index, choice)
                told_chars[step.index] = choice.end
        if self._body.wants_usage:
            yield sse.data({**self._envelope(), "choices": [], "usage": usage_dict(self._usage)})
        yield sse.DONE

    async def _steps(self) -> AsyncGenerator[Step, None]:
        body = self._body
        if body.max_tokens == 0:
            for index in range(len(self._prompts) * body.n):
                yield Step(index, (), (), "length")
            return
        params = sampling_params(body, body.max_tokens, body.logprobs, self._grammar)
        asked = [Question(prompt, sampling) for prompt in self._prompts for sampling in params]
        async with aclosing(answers(self._service, self._client, asked, self._usage)) as steps:
            async for step in steps:
                yield step

    def _echoed(self) -> list[str]:
        """What every choice begins with."""
        body, decode = self._body, self._model.tokenizer.decode
        texts = [given if isinstance(given, str) else decode(given) for given in body.prompt]
        return [text if body.echo else "" for text in texts for _ in range(body.n)]

    def _envelope(self) -> JsonDict:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model.name,
        }

    def _choice(self, index: int, choice: _Choice) -> JsonDict:
        return {
            "index": index,
            "text": choice.text,
            "logprobs": choice.logprobs() if self._body.logprobs is not None else None,
            "finish_reason": choice.finish,
        }

    def _chunk(self, index: int, choice: _Choice) -> bytes:
        chunk = {**self._envelope(), "choices": [self._choice(index, choice)]}
        return sse.data({**chunk, "usage": None} if self._body.wants_usage else chunk)


@dataclass(slots=True)
class _Choice:
    """One continuation, or what a chunk tells of it; its tokens begin at the character `start`."""

    text: str
    start: int = 0
    entries: list[TokenEntry] = field(default_factory=list)
    finish: str | None = None

    def add(self, step: Step) -> None:
        self.text += "".join(part.text for part in step.parts if isinstance(part, Content))
        self.entries += step.logprobs
        self.finish = step.finish

    @property
    def end(self) -> int:
        return self.start + sum(len(str(entry["token"])) for entry in self.entries)

    def logprobs(self) -> JsonDict:
        """Log-probabilities in the form of this older API: four lists."""
        offsets = [self.start]
        for entry in self.entries:
            offsets.append(offsets[-1] + len(str(entry["token"])))
        return {
            "tokens": [entry["token"] for entry in self.entries],
            "token_logprobs": [entry["logprob"] for entry in self.entries],
            "top_logprobs": [_by_text(entry["top_logprobs"]) for entry in self.entries],
            "text_offset": offsets[:-1],
        }


def _by_text(top: object) -> JsonDict:
    assert isinstance(top, list), "an entry's likeliest tokens"
    # Broken characters look the same: the likeliest of them, which comes first, keeps the name.
    return {entry["token"]: entry["logprob"] for entry in reversed(top)}
