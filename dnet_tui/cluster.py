"""What the app needs of a coordinator; which two have: the real one and the simulated one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from dnet_core.events import Event
from dnet_core.types.devices import Peer
from dnet_core.types.generation import GenerationEvent, GenerationRequest
from dnet_core.types.ring import RingPlan


class Loaded(Protocol):
    @property
    def model(self) -> str: ...
    @property
    def plan(self) -> RingPlan: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def thinking_switches(self) -> tuple[str, ...]: ...


class Cluster(Protocol):
    """A running coordinator. Every method may raise `DnetError`."""

    @property
    def peers(self) -> tuple[Peer, ...]: ...
    @property
    def loaded(self) -> Loaded | None: ...
    async def load(self, model: str) -> Loaded: ...
    async def unload(self) -> None: ...
    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationEvent, None]: ...
    def subscribe(self) -> AbstractAsyncContextManager[AsyncIterator[Event]]: ...
