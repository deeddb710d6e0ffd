"""Bytes to the client: JSON and server-sent events."""

from __future__ import annotations

import json

from starlette.responses import Response

DONE = b"data: [DONE]\n\n"


def json_bytes(value: object) -> bytes:
    """Compact JSON. Half a surrogate pair, which UTF-8 cannot carry, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def data(value: object) -> bytes:
    """One unnamed event."""
    return b"data: " + json_bytes(value) + b"\n\n"


def reply(value: object, status: int = 200) -> Response:
    return Response(json_bytes(value), status, media_type="application/json")
