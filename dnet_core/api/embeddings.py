"""POST /v1/embeddings: texts as vectors of length 1, the means of the loaded model's hidden states."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from dnet_core.api import sse
from dnet_core.api.errors import ApiError, at_field
from dnet_core.api.reading import read
from dnet_core.api.service import ServedModel, Service
from dnet_core.api.text_requests import EmbeddingRequest, TokenIds
from dnet_core.errors import DnetError, RequestError
from dnet_core.tasks import TaskScope

Vector = tuple[float, ...]


async def create(service: Service, request: Request) -> Response:
    body = await read(request, EmbeddingRequest)
    model = service.model(body.model)
    texts = [_tokens(model, text) for text in body.input]
    service.turns.check_room()
    async with service.attended(request):
        vectors = await _embed(service, service.client(request, body.user), texts)
    num_tokens = sum(map(len, texts))
    return sse.reply(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _told(vector, body)}
                for index, vector in enumerate(vectors)
            ],
            "model": model.name,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
    )


def _tokens(model: ServedModel, text: str | TokenIds) -> TokenIds:
    """The tokens of `text`. Raises ApiError 400."""
    try:
        if isinstance(text, str):
            text = model.encode(text, add_special_tokens=True) if text else ()
        else:
            model.check_fits(len(text))
    except RequestError as error:
        raise at_field(error, "input") from None
    model.check_tokens(text, "input")
    if not text:
        message = "input: an empty text has no embedding"
        raise ApiError(400, message, param="input", code="invalid_value")
    return text


async def _embed(service: Service, client: str, texts: Sequence[TokenIds]) -> list[Vector]:
    """Embed all `texts`, each in its turn. Raises the first DnetError, and stops the others then."""

    async def one(text: TokenIds) -> Vector | DnetError:
        async with service.turns.turn(client, id(texts)):
            try:
                return await service.coordinator.embed(text)
            except DnetError as error:  # a value, so that it reaches the caller alone and by its type
                return error

    async with TaskScope() as tasks:
        vectors = []
        for running in [tasks.start(one(text)) for text in texts]:
            result = await running
            if isinstance(result, DnetError):
                raise result
            vectors.append(result)
    return vectors


def _told(vector: Vector, body: EmbeddingRequest) -> list[float] | str:
    """`vector` with length 1, as all of OpenAI's have, in the form that is asked for."""
    if body.dimensions not in (None, len(vector)):
        message = (
            f"dimensions: this model's vectors have {len(vector)} values, and the first ones of them mean"
            " nothing by themselves"
        )
        raise ApiError(400, message, param="dimensions", code="unsupported_parameter")
    length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
    unit = [value / length for value in vector]
    if body.encoding_format == "float":
        return unit
    return base64.b64encode(struct.pack(f"<{len(unit)}f", *unit)).decode("ascii")
