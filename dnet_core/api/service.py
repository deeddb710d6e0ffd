"""What the routes of one endpoint share: the coordinator, and what the screen shows of the endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.requests import Request

from dnet_core.api.errors import SERVER, ApiError
from dnet_core.api.in_flight import InFlight
from dnet_core.api.ring_metrics import Labels, RingMetrics
from dnet_core.api.runs import Runs
from dnet_core.api.stream import EventStream
from dnet_core.api.turns import Turns
from dnet_core.coordinator import Coordinator
from dnet_core.errors import ContextTooLong
from dnet_core.generate.tokenizer import Tokenizer
from dnet_core.tasks import TaskScope

LONGEST_TOKEN_CHARS = 128
"""Vocabularies hold runs of spaces about as long as this, and nothing longer."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The loaded model as clients see it."""

    name: str
    created: int
    context_tokens: int
    tokenizer: Tokenizer

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """The tokens of a prompt. Raises RequestError, and ContextTooLong unless one more token fits.

        A text that cannot possibly fit is not encoded: that would hold up everything else for seconds.
        """
        if len(text) > self.context_tokens * LONGEST_TOKEN_CHARS:
            raise ContextTooLong(len(text) // LONGEST_TOKEN_CHARS, self.context_tokens)
        tokens = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        self.check_fits(len(tokens))
        return tokens

    def check_fits(self, num_tokens: int) -> None:
        """Raise ContextTooLong unless a prompt of `num_tokens` leaves room for one token of answer."""
        if num_tokens >= self.context_tokens:
            raise ContextTooLong(num_tokens, self.context_tokens)

    def check_tokens(self, token_ids: Iterable[int], param: str) -> None:
        """Raise ApiError unless the model has all `token_ids`, which stand in the field `param`."""
        size = self.tokenizer.vocab_size
        if (strange := max(token_ids, default=0)) >= size:
            message = f"{param}: token {strange} does not exist: the model has {size} tokens"
            raise ApiError(400, message, param=param, code="invalid_value")


@dataclass(slots=True)
class Service:
    """Owned by the endpoint; routes read it, the border counts."""

    coordinator: Coordinator
    turns: Turns
    ring_metrics: RingMetrics
    tasks: TaskScope
    heartbeat_s: float
    runs: Runs = field(default_factory=Runs)
    in_flight: InFlight = field(default_factory=InFlight)
    requests_by_result: Counter[Labels] = field(default_factory=Counter)

    def model(self, name: str | None) -> ServedModel:
        """The loaded model, if `name` is it or None. Raises ApiError 404, or 503 when nothing is loaded."""
        loaded = self.coordinator.loaded
        if loaded is None:
            raise self._not_ready()
        # A model from a local directory goes by the directory's name: clients need not learn the path.
        own = Path(loaded.model).name if Path(loaded.model).is_absolute() else loaded.model
        if name is not None and name not in (own, loaded.model):
            raise ApiError(
                404,
                f"model '{name}' is not loaded here; '{own}' is",
                param="model",
                code="model_not_found",
            )
        return ServedModel(own, loaded.loaded_at_unix_s, loaded.context_tokens, self.coordinator.tokenizer)

    def _not_ready(self) -> ApiError:
        if self.coordinator.is_changing:
            return ApiError(
                503,
                "the model is still loading: try again in a moment",
                kind=SERVER,
                code="model_loading",
                retry=True,
                headers={"retry-after": "2"},
            )
        return ApiError(503, "no model is loaded", kind=SERVER, code="model_not_loaded")

    def client(self, request: Request, user: str | None) -> str:
        """Who takes turns with others: the user that the request names, its key, its address."""
        key = request.headers.get("authorization") or request.headers.get("x-api-key") or ""
        address = request.client.host if request.client else ""
        return f"{address} {key} {user or ''}"

    def failure_note(self, request: Request) -> Callable[[ApiError], None]:
        """What keeps an error of `request` for the screen."""

        def note(error: ApiError) -> None:
            self.in_flight.note_failure(request.method, request.url.path, error)

        return note

    def attended(self, request: Request) -> AbstractAsyncContextManager[None]:
        """A block that is cancelled when the client of `request` goes away or the endpoint stops."""
        return self.in_flight.attended(request.receive)

    def stream(self, request: Request, events: AsyncGenerator[bytes, None]) -> EventStream:
        """`events` as the reply to `request`."""
        return EventStream(events, self.failure_note(request), self.in_flight, self.heartbeat_s)
