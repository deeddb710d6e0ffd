"""`endpoint`: the routes, served on a coordinator for as long as a block lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dnet_core import http_server
from dnet_core.api import chat, cluster, completions, embeddings, metrics, models, responses, text
from dnet_core.api.auth import check_key, check_origin, is_loopback, require_key_beyond_loopback
from dnet_core.api.errors import ApiError, reply_for
from dnet_core.api.in_flight import Activity, ClientGone
from dnet_core.api.ring_metrics import RingMetrics
from dnet_core.api.service import Service
from dnet_core.api.stream import HEARTBEAT_S
from dnet_core.api.turns import QueuePolicy, Turns
from dnet_core.coordinator import Coordinator
from dnet_core.option_types import SESSIONS, WAITING
from dnet_core.tasks import TaskScope

TOLD_S = 10.0
"""So long may requests take to end when the endpoint stops; then they are cut."""

Handler = Callable[[Service, Request], Awaitable[Response]]

ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/health", models.health),
    ("GET", "/v1/models", models.list_models),
    ("GET", "/v1/models/{model:path}", models.show_model),
    ("POST", "/v1/chat/completions", chat.create),
    ("GET", "/v1/devices", cluster.devices),
    ("GET", "/v1/topology", cluster.topology),
    ("POST", "/v1/prepare_topology", cluster.prepare_topology),
    ("POST", "/v1/prepare_topology_manual", cluster.prepare_topology_manual),
    ("POST", "/v1/load_model", cluster.load_model),
    ("POST", "/v1/unload_model", cluster.unload_model),
    ("POST", "/v1/completions", completions.create),
    ("POST", "/v1/embeddings", embeddings.create),
    ("POST", "/v1/responses", responses.create),
    ("GET", "/v1/responses/{response}", responses.retrieve),
    ("DELETE", "/v1/responses/{response}", responses.delete),
    ("POST", "/v1/responses/{response}/cancel", responses.cancel),
    ("POST", "/tokenize", text.tokenize),
    ("POST", "/detokenize", text.detokenize),
    ("POST", "/apply-template", text.apply_template),
    ("GET", "/metrics", metrics.show),
)
ALIASED = (
    "/v1/models",
    "/v1/models/{model:path}",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
)
"""Also served without the /v1: base URLs are written both ways."""

OPEN_PATHS = ("/health",)
"""Answered without a key: what watches the process need not be trusted with it."""

CLIENT_CLOSED_REQUEST = 499  # nobody reads it; it is what logs of other servers call this case


class Endpoint:
    """A running endpoint: where it is, what it is doing, what went wrong last."""

    def __init__(self, service: Service, host: str, port: int, api_keys: tuple[str, ...]) -> None:
        self._service = service
        self.host = host
        self.port = port
        self.api_keys = api_keys

    @property
    def url(self) -> str:
        """The base URL for OpenAI clients."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/v1"

    @property
    def activity(self) -> Activity:
        """The requests that are being served, and those that were answered with an error lately."""
        return self._service.in_flight.activity

    def watch(self) -> AsyncGenerator[Activity, None]:
        """Yield `activity` now, and again after every change."""
        return self._service.in_flight.watch()


@dataclass(frozen=True, slots=True)
class EndpointOptions:
    """How many sessions run at once, how many requests may wait, and in what order they get their turn.

    `origins` are web origins whose pages may use the endpoint ("*": all). Streams give a sign of life every
    `heartbeat_s`.
    """

    sessions: int = SESSIONS
    waiting: int = WAITING
    policy: QueuePolicy = QueuePolicy.FAIR
    origins: tuple[str, ...] = ()
    heartbeat_s: float = HEARTBEAT_S


@asynccontextmanager
async def endpoint(
    coordinator: Coordinator,
    host: str,
    port: int,
    api_keys: Sequence[str] = (),
    options: EndpointOptions = EndpointOptions(),
) -> AsyncIterator[Endpoint]:
    """Serve the OpenAI API on `host`:`port` (0: a free one) until the block ends.

    Then the requests in flight are ended on every shard and told so; what else uses the coordinator goes on.
    May be entered again and again on the same coordinator.
    Raises PortTaken, and StartError when the address cannot be had for another reason, or can be reached from
    other machines without a key.
    """
    require_key_beyond_loopback(host, api_keys)
    turns = Turns(options.sessions, options.waiting, options.policy)
    tasks = TaskScope()
    service = Service(coordinator, turns, RingMetrics(), tasks, options.heartbeat_s)
    app: ASGIApp = _Border(service, host, tuple(api_keys), options.origins)
    if options.origins:
        allowed = list(options.origins)
        app = CORSMiddleware(app, allow_origins=allowed, allow_methods=["*"], allow_headers=["*"])
    async with tasks, AsyncExitStack() as closing:
        closing.push_async_callback(service.in_flight.ended)
        bound = await closing.enter_async_context(http_server.serve(app, http_server.bind(host, port)))
        closing.push_async_callback(_all_told, service)
        closing.callback(service.in_flight.stop)
        tasks.start(service.ring_metrics.listen(coordinator))
        yield Endpoint(service, host, bound, tuple(api_keys))


async def _all_told(service: Service) -> None:
    """Wait until whoever asked was told that it is over; shards that are busy take their time to stop."""
    with suppress(TimeoutError):
        async with asyncio.timeout(TOLD_S):
            await service.in_flight.ended()


class _Border:
    """The outermost layer: admits requests, counts them, and turns every failure into a reply."""

    def __init__(
        self, service: Service, host: str, api_keys: tuple[str, ...], origins: tuple[str, ...]
    ) -> None:
        self._service = service
        self._api_keys = api_keys
        self._origins = origins
        self._names_checked = not api_keys and is_loopback(host)
        self._routes = Starlette(
            routes=[
                Route(path, partial(self._handle, route, handler), methods=[method])
                for method, route, handler in ROUTES
                for path in ([route, route.removeprefix("/v1")] if route in ALIASED else [route])
            ],
            exception_handlers={HTTPException: self._on_no_route},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = scope["client"][0] if scope["client"] else ""
        with self._service.in_flight.request(scope["method"], scope["path"], address):
            await self._routes(scope, receive, send)

    async def _handle(self, route: str, handler: Handler, request: Request) -> Response:
        response = await self._answer(handler, request)
        labels = (("method", request.method), ("route", route), ("status", str(response.status_code)))
        self._service.requests_by_result[labels] += 1
        return response

    async def _answer(self, handler: Handler, request: Request) -> Response:
        try:
            self._service.in_flight.check_open()
            check_origin(request.headers, self._origins, names_checked=self._names_checked)
            if request.url.path not in OPEN_PATHS:
                check_key(request.headers, self._api_keys)
            return await handler(self._service, request)
        except ClientGone:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        except Exception as error:  # noqa: BLE001 - the border: every request has a reply
            return self._fail(request, reply_for(error, f"{request.method} {request.url.path}"))

    async def _on_no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException), "registered for this type"
        path = request.url.path
        if error.status_code == 405:
            told = ApiError(
                405,
                f"{path} does not take {request.method}",
                code="method_not_allowed",
                headers=error.headers,
            )
        else:
            told = ApiError(error.status_code, f"there is no {path} here", code="unknown_url")
        return self._fail(request, told)

    def _fail(self, request: Request, error: ApiError) -> Response:
        self._service.failure_note(request)(error)
        return error.response()
