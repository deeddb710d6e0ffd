"""GET /metrics: the ring's counters and the endpoint's state, as Prometheus text."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from starlette.requests import Request
from starlette.responses import Response

from dnet_core.api.ring_metrics import family
from dnet_core.api.service import Service
from dnet_core.transport.control import ShardStatus


async def show(service: Service, request: Request) -> Response:
    lines = [*_gauges(service), *await _device_gauges(service), *service.ring_metrics.lines()]
    return Response("\n".join([*lines, ""]), media_type="text/plain; version=0.0.4")


async def _device_gauges(service: Service) -> list[str]:
    """What every device that answers says of itself now."""
    found = [status for _, status in await service.coordinator.survey() if isinstance(status, ShardStatus)]

    def gauge(name: str, of: Callable[[ShardStatus], int]) -> Iterator[str]:
        return family(name, "gauge", {(("device", status.name),): of(status) for status in found})

    return [
        *gauge("memory_budget_bytes", lambda status: status.budget_bytes),
        *gauge("memory_active_bytes", lambda status: status.active_bytes),
        *gauge("memory_peak_bytes", lambda status: status.peak_bytes),
        *gauge("layers_resident", lambda status: status.num_resident),
        *gauge("layers_streamed", lambda status: status.num_streamed),
    ]


def _gauges(service: Service) -> Iterator[str]:
    loaded = service.coordinator.loaded
    model = (("model", service.model(None).name if loaded else ""),)
    yield from family("model_loaded", "gauge", {model: int(loaded is not None)})
    yield from family("devices", "gauge", {(): len(service.coordinator.peers)})
    yield from family("sessions_running", "gauge", {(): service.turns.num_running})
    yield from family("sessions_waiting", "gauge", {(): service.turns.num_waiting})
    yield from family("http_requests_in_flight", "gauge", {(): len(service.in_flight.activity.requests)})
    yield from family("http_requests_total", "counter", service.requests_by_result)
