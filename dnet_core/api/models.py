"""GET /v1/models, GET /v1/models/{id}, GET /health: what is loaded, and whether it can answer."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from dnet_core import __version__
from dnet_core.api import sse
from dnet_core.api.errors import ApiError
from dnet_core.api.service import ServedModel, Service

OWNER = "dnet"


async def list_models(service: Service, request: Request) -> Response:
    """The loaded model, or none."""
    loaded = service.coordinator.loaded
    models = [] if loaded is None else [_describe(service.model(None))]
    return sse.reply({"object": "list", "data": models})


async def show_model(service: Service, request: Request) -> Response:
    return sse.reply(_describe(service.model(request.path_params["model"])))


async def health(service: Service, request: Request) -> Response:
    """200 when a request would be answered; else 503, with the reason in the body."""
    status = {"version": __version__, "requests_in_flight": len(service.in_flight.activity.requests)}
    try:
        model = service.model(None)
    except ApiError as error:
        return sse.reply({"status": error.code, **status, **error.body()}, error.status)
    devices = len(service.coordinator.peers)
    return sse.reply({"status": "ok", "model": model.name, "devices": devices, **status})


def _describe(model: ServedModel) -> dict[str, object]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": OWNER,
        "context_length": model.context_tokens,
        "max_model_len": model.context_tokens,
        "meta": {"n_ctx": model.context_tokens},
    }
