"""What a client is told when something fails: `{"error": {"message", "type", "param", "code"}}`, always.

One table maps the error tree to HTTP. `x-should-retry: false` keeps OpenAI's clients from repeating a request
that must fail again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pydantic import ValidationError
from starlette.responses import Response

from dnet_core.api.sse import json_bytes
from dnet_core.errors import (
    ContextTooLong,
    DeadlineExceeded,
    DnetError,
    InfeasiblePlan,
    LoadError,
    NoRoom,
    NotReady,
    ProtocolError,
    RequestError,
    RingError,
    TrustError,
    UnknownModel,
    UnsupportedModel,
)

log = logging.getLogger(__name__)

INVALID = "invalid_request_error"
SERVER = "server_error"
RETRY_AFTER_S = 2


class ApiError(Exception):
    """A reply that is an error. `param` names the field at fault, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str = "invalid_request",
        retry: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry = retry
        self.headers = dict(headers or {})

    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        headers = {"x-should-retry": "true" if self.retry else "false", **self.headers}
        return Response(json_bytes(self.body()), self.status, headers, "application/json")


# First match wins: narrower errors stand above their bases.
_TABLE: tuple[tuple[type[DnetError], int, str, str, bool], ...] = (
    (UnknownModel, 404, INVALID, "model_not_found", False),
    (ContextTooLong, 400, INVALID, "context_length_exceeded", False),
    (UnsupportedModel, 400, INVALID, "unsupported_model", False),
    (NoRoom, 429, "rate_limit_error", "no_room", True),
    (RequestError, 400, INVALID, "invalid_request", False),
    (NotReady, 503, SERVER, "model_not_ready", True),
    (InfeasiblePlan, 409, INVALID, "infeasible_plan", False),
    (LoadError, 500, SERVER, "load_failed", False),
    (DeadlineExceeded, 504, SERVER, "deadline_exceeded", True),
    (RingError, 502, SERVER, "ring_failed", True),
    (ProtocolError, 500, SERVER, "protocol_error", False),
    (TrustError, 401, "authentication_error", "wrong_cluster_key", False),
    (DnetError, 500, SERVER, "server_error", False),
)


def from_dnet(error: DnetError) -> ApiError:
    """The reply for an error of the tree."""
    status, kind, code, retry = next(row[1:] for row in _TABLE if isinstance(error, row[0]))
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else {}
    # Clients look for OpenAI's words to tell this error from others.
    words = "this model's maximum context length is exceeded: " if isinstance(error, ContextTooLong) else ""
    return ApiError(status, f"{words}{error}", kind=kind, code=code, retry=retry, headers=headers)


def reply_for(error: Exception, doing: str) -> ApiError:
    """What a client is told of any `error`; a fault of ours goes to the log, with what was being done."""
    match error:
        case ApiError():
            return error
        case DnetError():
            return from_dnet(error)
        case _:
            log.error("a fault in %s", doing, exc_info=error)
            return ApiError(
                500, "this server failed on the request; its log says why", kind=SERVER, code="internal_error"
            )


def from_validation(error: ValidationError) -> ApiError:
    """The reply for a body that does not fit its model: the first thing wrong, and where it is."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = _path(first["loc"])
    code = {"missing": "missing_required_parameter", "unsupported": "unsupported_parameter"}.get(
        first["type"], "invalid_value"
    )
    message = first["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, param=param or None, code=code)


def at_field(error: RequestError, param: str) -> ApiError:
    """The reply for `error`, which lies in the field `param`."""
    told = from_dnet(error)
    told.param = param
    return told


_TAGGED = ("response_format", "format")
_TAGS = ("text", "json_object", "json_schema")


def _path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` as OpenAI writes it: `messages[0].content`."""
    text = ""
    for before, part in zip((None, *location), location, strict=False):
        if before in _TAGGED and part in _TAGS:
            continue  # pydantic's name for the kind of format, which stands nowhere in the body
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text
