"""A request's body: read within bounds, parsed and checked."""

from __future__ import annotations

import json
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from dnet_core.api.body import Body
from dnet_core.api.errors import ApiError, from_validation
from dnet_core.api.in_flight import ClientGone

MAX_BODY_BYTES = 32 * 2**20
"""Far more than the longest context needs; a bound so that nobody fills the head's memory."""

Request_ = TypeVar("Request_", bound=Body)


async def read(request: Request, model: type[Request_]) -> Request_:
    """Read and check the body. Raises ApiError (400, 413) and ClientGone."""
    try:
        value = _parse(await _read_bytes(request))
        return model.model_validate(value)
    except ValidationError as error:
        raise from_validation(error) from None
    except ClientDisconnect:
        raise ClientGone from None


async def _read_bytes(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            message = f"the body is larger than {MAX_BODY_BYTES:,} bytes"
            raise ApiError(413, message, code="request_too_large", headers={"connection": "close"})
    return bytes(body)


def _parse(body: bytes) -> object:
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", code="invalid_json")
    return value


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")
