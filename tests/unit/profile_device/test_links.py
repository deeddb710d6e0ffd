"""Links: exact on made-up hops, and measured over a real gRPC stream on loopback."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from dnet_core.errors import DeadlineExceeded, ProfileError
from dnet_core.profile.links import LargeTrip, best_links, hop_s, link_profile, measure_link
from dnet_core.types.devices import Medium
from dnet_core.types.profiles import LinkProfile

METHOD = "/test.Echo/Measure"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


def hop(latency_s: float, bytes_per_s: float) -> Callable[[int], Awaitable[float]]:
    """Round trips of an ideal link, told rather than slept."""

    async def round_trip(payload_bytes: int) -> float:
        return 2 * latency_s + payload_bytes / bytes_per_s

    return round_trip


@pytest.mark.parametrize(("latency_s", "bytes_per_s"), [(40e-6, 4e9), (300e-6, 110e6), (8e-3, 3e6)])
async def test_the_measured_link_is_the_link(latency_s: float, bytes_per_s: float) -> None:
    link = await measure_link("a", "b", "10.0.0.2", Medium.ETHERNET, hop(latency_s, bytes_per_s))
    # A small message carries 64 bytes, whose time is counted as latency.
    assert link.latency_s == pytest.approx(latency_s + 32 / bytes_per_s)
    assert link.bytes_per_s == pytest.approx(bytes_per_s, rel=0.01)
    assert (link.source, link.target, link.address, link.medium) == ("a", "b", "10.0.0.2", "ethernet")


async def test_the_first_cold_trips_do_not_count() -> None:
    calls = 0
    warm = hop(1e-4, 1e9)

    async def round_trip(payload_bytes: int) -> float:
        nonlocal calls
        calls += 1
        return 0.5 if calls <= 5 else await warm(payload_bytes)

    link = await measure_link("a", "b", "x", Medium.WIFI, round_trip)
    assert link.latency_s < 1.1e-4


def test_a_lost_packet_in_four_does_not_count() -> None:
    small = [1e-3, 1e-3, 1e-3, 0.2] * 5
    large = [LargeTrip(10**6, 11e-3), LargeTrip(10**6, 11e-3), LargeTrip(10**6, 0.2)]
    link = link_profile("a", "b", "x", Medium.WIFI, small, large)
    assert link.latency_s == pytest.approx(0.5e-3)
    assert link.bytes_per_s == pytest.approx(1e8)


def test_a_machine_that_is_busy_at_first_has_a_link_all_the_same() -> None:
    small = [5e-3] * 40 + [1e-3] * 20
    large = [LargeTrip(10**6, 3e-3)] * 3
    link = link_profile("a", "b", "x", Medium.LOOPBACK, small, large)
    assert link.latency_s == pytest.approx(2.5e-3)
    assert link.bytes_per_s == pytest.approx(5e8)


@pytest.mark.parametrize(
    ("small", "large"),
    [([], [LargeTrip(1, 1.0)]), ([1.0], []), ([1.0], [LargeTrip(10**6, 1.0)]), ([0.0], [LargeTrip(1, 1.0)])],
)
def test_samples_that_say_nothing_are_an_error(small: list[float], large: list[LargeTrip]) -> None:
    with pytest.raises(ProfileError, match="link to b over x could not be measured") as caught:
        link_profile("a", "b", "x", Medium.WIFI, small, large)
    assert caught.value.device == "a"


async def test_a_target_that_falls_silent_is_an_error_by_name() -> None:
    async def round_trip(_payload_bytes: int) -> float:
        await asyncio.Event().wait()
        return math.inf

    with pytest.raises(DeadlineExceeded, match="b did not answer"):
        await measure_link("a", "b", "x", Medium.WIFI, round_trip, deadline_s=0.05)


async def test_a_slow_link_is_measured_with_fewer_messages() -> None:
    trips: list[int] = []

    async def round_trip(payload_bytes: int) -> float:
        trips.append(payload_bytes)
        return 0.1 + payload_bytes / 1e6

    await measure_link("a", "b", "x", Medium.WIFI, round_trip, budget_s=0.0)
    small = [size for size in trips if size < 1000]
    assert len(small) == 10 + 10
    assert len(trips) - len(small) == 1 + 3


def test_the_best_address_of_a_hop_depends_on_what_is_sent() -> None:
    quick = LinkProfile("a", "b", "quick", "wifi", 1e-4, 1e7)
    wide = LinkProfile("a", "b", "wide", "thunderbolt", 1e-3, 1e9)
    back = LinkProfile("b", "a", "quick", "wifi", 1e-4, 1e7)
    assert hop_s(quick, 10_000) == pytest.approx(1.1e-3)
    assert best_links([back, wide, quick], payload_bytes=1_000) == (quick, back)
    assert best_links([back, wide, quick], payload_bytes=1_000_000) == (wide, back)


@asynccontextmanager
async def grpc_stream() -> AsyncIterator[Callable[[int], Awaitable[float]]]:
    """One warm bidirectional stream to a server that answers every message with an empty one."""

    async def answer(requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield b""

    server = grpc.aio.server(options=UNLIMITED)
    handler = grpc.stream_stream_rpc_method_handler(answer)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Echo", {"Measure": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED) as channel:
        stream = channel.stream_stream(METHOD)()

        async def round_trip(payload_bytes: int) -> float:
            payload = bytes(payload_bytes)
            start = time.perf_counter()
            await stream.write(payload)
            assert await stream.read() == b""
            return time.perf_counter() - start

        yield round_trip
        await stream.done_writing()
    await server.stop(None)


async def test_a_loopback_stream_is_measured_in_its_time() -> None:
    async with grpc_stream() as round_trip:
        began = time.perf_counter()
        link = await measure_link("a", "b", "127.0.0.1", Medium.LOOPBACK, round_trip)
        assert time.perf_counter() - began < 10
        # What it predicts for a message of another size is about what that message takes.
        seconds = sorted([await round_trip(1 << 20) for _ in range(15)])[7]
    assert 1e-6 < link.latency_s < 0.05
    assert 1e7 < link.bytes_per_s < 1e11
    predicted = hop_s(link, 1 << 20) + link.latency_s
    assert predicted / 5 < seconds < 5 * predicted
