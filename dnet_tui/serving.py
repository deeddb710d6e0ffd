"""The OpenAI endpoint beside the chat, as the screen sees it: off, on and busy, or why it is not on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from dnet_tui.cluster import Cluster
from dnet_tui.wishes import EndpointWish

QUESTION = "What is the capital of France?"


class OpenRequest(Protocol):
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def client(self) -> str: ...
    @property
    def begun_unix_s(self) -> float: ...


class FailedRequest(Protocol):
    @property
    def at_unix_s(self) -> float: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def status(self) -> int: ...
    @property
    def message(self) -> str: ...


class Activity(Protocol):
    """What an endpoint is doing, and what went wrong lately, newest last."""

    @property
    def requests(self) -> Sequence[OpenRequest]: ...
    @property
    def requests_total(self) -> int: ...
    @property
    def last_errors(self) -> Sequence[FailedRequest]: ...


class Served(Protocol):
    """A running endpoint."""

    @property
    def url(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def api_keys(self) -> tuple[str, ...]: ...
    def watch(self) -> AsyncGenerator[Activity, None]: ...


OpenEndpoint = Callable[[Cluster, EndpointWish], AbstractAsyncContextManager[Served]]


@dataclass(frozen=True, slots=True)
class Off:
    """`problem` says why it could not be switched on, `free_port` which port is free instead."""

    problem: str | None = None
    free_port: int | None = None


@dataclass(frozen=True, slots=True)
class Starting:
    """It was switched on and does not listen yet."""


@dataclass(frozen=True, slots=True)
class On:
    url: str
    port: int
    api_key: str | None
    activity: Activity


EndpointState = Off | Starting | On


def curl_text(on: On) -> str:
    """A request that can be pasted into a shell; a key is taken from the environment."""
    lines = [f"curl {on.url}/chat/completions", "-H 'content-type: application/json'"]
    if on.api_key is not None:
        lines.append('-H "authorization: Bearer $OPENAI_API_KEY"')
    lines.append(f"""-d '{{"messages": [{{"role": "user",
    "content": "{QUESTION}"}}],
    "temperature": 0, "max_tokens": 100}}'""")
    return " \\\n  ".join(lines)


def environment_text(on: On, *, shows_key: bool) -> str:
    """What OpenAI clients read."""
    key = "none" if on.api_key is None else on.api_key if shows_key else "…"
    return f"export OPENAI_BASE_URL={on.url}\nexport OPENAI_API_KEY={key}"
