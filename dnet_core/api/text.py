"""POST /tokenize, /detokenize, /apply-template: what the loaded model makes of a text."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from dnet_core.api import sse
from dnet_core.api.errors import at_field
from dnet_core.api.formats import answer_format
from dnet_core.api.openai import ChatMessage
from dnet_core.api.prompts import render
from dnet_core.api.reading import read
from dnet_core.api.service import ServedModel, Service
from dnet_core.api.text_requests import DetokenizeRequest, TemplateRequest, TokenizeRequest
from dnet_core.api.tool_requests import Tool
from dnet_core.errors import RequestError
from dnet_core.generate.detokenize import Detokenizer


async def tokenize(service: Service, request: Request) -> Response:
    body = await read(request, TokenizeRequest)
    model = service.model(body.model)
    if body.messages is not None:
        text = _rendered(model, body.messages, body.tools, body.chat_template_kwargs)
        special, param = not model.tokenizer.has_chat_template, "messages"
    else:
        text = body.prompt if body.prompt is not None else body.content or ""
        special, param = True, "prompt"
    if body.add_special_tokens is not None:
        special = body.add_special_tokens
    try:
        tokens = model.tokenizer.encode(text, add_special_tokens=special)
    except RequestError as error:
        raise at_field(error, param) from None
    return sse.reply({"tokens": tokens, "count": len(tokens), "max_model_len": model.context_tokens})


async def detokenize(service: Service, request: Request) -> Response:
    """The text of all tokens, special ones spelled out; under both names that clients look for."""
    body = await read(request, DetokenizeRequest)
    model = service.model(body.model)
    model.check_tokens(body.tokens, "tokens")
    detokenizer = Detokenizer(model.tokenizer, model.tokenizer.hidden_token_ids)
    text = "".join(map(detokenizer.add, body.tokens)) + detokenizer.flush()
    return sse.reply({"prompt": text, "content": text})


async def apply_template(service: Service, request: Request) -> Response:
    body = await read(request, TemplateRequest)
    model = service.model(body.model)
    return sse.reply({"prompt": _rendered(model, body.messages, body.tools, body.chat_template_kwargs)})


def _rendered(
    model: ServedModel,
    messages: tuple[ChatMessage, ...],
    tools: tuple[Tool, ...],
    variables: dict[str, object],
) -> str:
    try:
        return render(
            model,
            [message.for_template() for message in messages],
            [tool.for_template() for tool in tools],
            variables,
            None,
            answer_format(model.tokenizer, with_tools=bool(tools)),
        )
    except RequestError as error:
        raise at_field(error, "messages") from None
