"""How fast one hop is, from round trips whose far end answers with (almost) nothing.

    small message      time = there + back              latency = median / 2
    large message      time = bytes / rate + there + back
                       rate = median of bytes / (time - least small time)

The trips run on one stream that is kept open, as those of the ring do; the first ones only warm it up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from dnet_core.errors import DeadlineExceeded, ProfileError
from dnet_core.types.devices import Medium
from dnet_core.types.profiles import LinkProfile

RoundTrip = Callable[[int], Awaitable[float]]
"""Send a message of so many bytes to the target, wait for its empty answer; seconds between."""

BUDGET_S = 1.0
TRIP_DEADLINE_S = 5.0

SMALL_BYTES = 64  # a token with its frame
_WARM_TRIPS = 10
_SMALL_TRIPS = 60
_MIN_SMALL_TRIPS = 10
_LARGE_TRIPS = 8
_MIN_LARGE_TRIPS = 3
_FIRST_LARGE_BYTES = 256 << 10
_MAX_LARGE_BYTES = 32 << 20
_LARGE_TRIP_S = 0.02
"""A trip this long is ruled by the bytes: scheduling and acknowledgements are a small part of it."""

DECODE_PAYLOAD_BYTES = 16 << 10
"""One token's activation of a wide model (8,192 in 16 bits): what most messages of a ring weigh."""


@dataclass(frozen=True, slots=True)
class LargeTrip:
    """One message of `payload_bytes` and its empty answer."""

    payload_bytes: int
    seconds: float


def link_profile(
    source: str,
    target: str,
    address: str,
    medium: Medium,
    small_s: Sequence[float],
    large: Sequence[LargeTrip],
) -> LinkProfile:
    """Turn round trips into a link: medians of both, so that a few lost packets do not count.

    Of a large trip the least small one is taken off, not their median: a machine that is busy only while the
    small ones go would seem to send large ones in less than no time. Raises ProfileError naming `source` when
    there are no samples, or when large messages took no longer than small ones.
    """
    what = f"link to {target} over {address}"
    if not small_s or not large:
        raise ProfileError(source, what, f"{len(small_s)} small and {len(large)} large messages went through")
    round_trip_s = median(small_s)
    if round_trip_s <= 0:
        raise ProfileError(source, what, "messages took no time by the clock")
    least_s = min(small_s)
    seconds_per_byte = median((trip.seconds - least_s) / trip.payload_bytes for trip in large)
    if seconds_per_byte <= 0:
        raise ProfileError(source, what, "large messages took no longer than small ones")
    return LinkProfile(source, target, address, medium.value, round_trip_s / 2, 1 / seconds_per_byte)


async def measure_link(
    source: str,
    target: str,
    address: str,
    medium: Medium,
    round_trip: RoundTrip,
    *,
    budget_s: float = BUDGET_S,
    deadline_s: float = TRIP_DEADLINE_S,
) -> LinkProfile:
    """Measure the hop `source -> target` over one address in about `budget_s` seconds.

    A slow link is measured with fewer messages, never with none. Raises ProfileError, DeadlineExceeded when a
    message takes longer than `deadline_s`, and whatever `round_trip` raises.
    """

    async def trip(payload_bytes: int) -> float:
        try:
            async with asyncio.timeout(deadline_s):
                return await round_trip(payload_bytes)
        except TimeoutError:
            raise DeadlineExceeded(target, "answer a message of the link's measurement", deadline_s) from None

    began = time.perf_counter()
    for _ in range(_WARM_TRIPS):
        await trip(SMALL_BYTES)
    small: list[float] = []
    while len(small) < _SMALL_TRIPS:
        small.append(await trip(SMALL_BYTES))
        if len(small) >= _MIN_SMALL_TRIPS and time.perf_counter() - began >= budget_s / 2:
            break
    size = await _large_size(trip)
    large: list[LargeTrip] = []
    while len(large) < _LARGE_TRIPS:
        large.append(LargeTrip(size, await trip(size)))
        if len(large) >= _MIN_LARGE_TRIPS and time.perf_counter() - began >= budget_s:
            break
    return link_profile(source, target, address, medium, small, large)


async def _large_size(trip: RoundTrip) -> int:
    """The smallest size, by doubling, whose trip takes `_LARGE_TRIP_S`; it warms up buffers on the way."""
    size = _FIRST_LARGE_BYTES
    while size < _MAX_LARGE_BYTES and await trip(size) < _LARGE_TRIP_S:
        size *= 2
    return size


def best_links(
    links: Iterable[LinkProfile], payload_bytes: int = DECODE_PAYLOAD_BYTES
) -> tuple[LinkProfile, ...]:
    """For each ordered pair the link that hands on `payload_bytes` soonest, sorted by the pair's names."""
    best: dict[tuple[str, str], LinkProfile] = {}
    for link in sorted(links, key=lambda link: (hop_s(link, payload_bytes), link.address)):
        best.setdefault((link.source, link.target), link)
    return tuple(best[pair] for pair in sorted(best))


def hop_s(link: LinkProfile, payload_bytes: int) -> float:
    """Seconds until `payload_bytes` have arrived."""
    return link.latency_s + payload_bytes / link.bytes_per_s
