"""Who may use the endpoint: API keys, and pages of other sites kept out.

A key is asked for when there are any; an endpoint that other machines can reach must have one. Browsers let
any page post to 127.0.0.1, so a request from a page of another origin is refused unless that origin was
allowed, and without keys a loopback endpoint answers only to names that nobody can register and point here
(no DNS rebinding).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.datastructures import Headers

from dnet_core.api.errors import ApiError
from dnet_core.errors import StartError

AUTHENTICATION = "authentication_error"
PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".test")
"""Names under these are given out by this machine or its network, never on the internet."""


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_key_beyond_loopback(host: str, api_keys: Sequence[str]) -> None:
    """Raise StartError when `host` is open to other machines and there is no key."""
    if not api_keys and not is_loopback(host):
        raise StartError(
            f"the endpoint at {host} could be used by anybody on the network: give it an API key,"
            " or listen on 127.0.0.1"
        )


def check_key(headers: Headers, api_keys: Sequence[str]) -> str | None:
    """Return the key that the request carries (None: none is needed). Raises ApiError 401."""
    if not api_keys:
        return None
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    # Every key is compared, each in constant time: how long it takes says nothing about any of them.
    matches = [hmac.compare_digest(given.encode(), key.encode()) for key in api_keys]
    if any(matches):
        return given
    message = (
        "the API key is wrong" if given else "an API key is needed: send 'Authorization: Bearer YOUR_KEY'"
    )
    raise ApiError(
        401,
        message,
        kind=AUTHENTICATION,
        code="invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


def check_origin(headers: Headers, origins: Sequence[str], *, names_checked: bool) -> None:
    """Refuse requests of foreign web pages; with `names_checked` also other names for this machine.

    `origins` are those that CORS allows; "*" allows all. Raises ApiError 403.
    """
    host = headers.get("host", "")
    if names_checked and not _is_private_name(_without_port(host)):
        message = f"an endpoint without an API key does not answer to the public name '{host}'"
        raise ApiError(403, message, code="wrong_host")
    origin = headers.get("origin")
    if origin is None or origin in origins or "*" in origins:
        return
    if origin.partition("://")[2] != host:
        raise ApiError(
            403, f"pages of {origin} may not use this endpoint: allow that origin first", code="wrong_origin"
        )


def _is_private_name(name: str) -> bool:
    """Whether `name` is an address, a name without a dot, or one that only a private network resolves."""
    try:
        ip_address(name)
    except ValueError:
        return "." not in name or name.lower().endswith(PRIVATE_SUFFIXES)
    return True


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
