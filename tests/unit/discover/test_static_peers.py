"""Static targets over real TCP: seen, lost, back; strangers are shown with the reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import pytest

from dnet_core.discover.announcement import Announcement
from dnet_core.discover.pace import PACE, Pace
from dnet_core.discover.peers import Discovery, PeerChange, PeerSeen, PeerVanished
from dnet_core.discover.sightings import Membership
from dnet_core.discover.static import MAX_WORD_BYTES, StaticTarget
from dnet_core.errors import ProtocolError, TrustError
from dnet_core.types.devices import PeerSource
from tests.net.discovery_process import describe, serve

MEMBER = Membership("home", "0.1.0")
QUICK = Pace(probe_s=0.1, answer_s=0.5, retry_max_s=0.2)
SLOW_S = 30.0


def shard(port: int) -> Announcement:
    return Announcement("id-1", "studio", "0.1.0", 1, port, 8081, "home")


@asynccontextmanager
async def watching(
    *targets: StaticTarget, ask: Callable[[str], Awaitable[Announcement]] = describe
) -> AsyncIterator[AsyncIterator[PeerChange]]:
    async with (
        asyncio.timeout(SLOW_S),
        Discovery(MEMBER, ask, targets, mdns_enabled=False, pace=QUICK) as discovery,
    ):
        yield discovery.watch()


async def seen(changes: AsyncIterator[PeerChange]) -> PeerSeen:
    change = await anext(changes)
    assert isinstance(change, PeerSeen), change
    return change


async def test_seen_lost_and_back(free_port: int) -> None:
    async with watching(StaticTarget("127.0.0.1", free_port)) as changes:
        for _ in range(2):
            server = await serve(shard(free_port))
            peer = (await seen(changes)).peer
            assert (peer.name, peer.target) == ("studio", f"127.0.0.1:{free_port}")
            assert (peer.source, peer.cannot_join) == (PeerSource.STATIC, None)
            server.close()
            change = await anext(changes)
            assert isinstance(change, PeerVanished)
            assert change.name == "studio"
            assert change.reason


async def test_one_peer_by_name_and_by_address(free_port: int) -> None:
    targets = [StaticTarget(host, free_port) for host in ("127.0.0.1", "127.0.0.2")]
    server = await serve(shard(free_port))
    with closing(server):
        async with watching(*targets) as changes:
            hosts: list[str] = []
            while len(hosts) < 2:
                hosts = [address.host for address in (await seen(changes)).peer.addresses]
    assert hosts == ["127.0.0.1", "127.0.0.2"]


@pytest.mark.parametrize("error", [TrustError("wrong cluster key"), ProtocolError("speaks protocol 2")])
async def test_a_stranger_is_shown_with_the_reason(error: Exception) -> None:
    async def refuse(target: str) -> Announcement:
        raise error

    async with watching(StaticTarget("10.0.0.5", 7000, "studio"), ask=refuse) as changes:
        peer = (await seen(changes)).peer
    assert (peer.name, peer.target, peer.cannot_join) == ("studio", "10.0.0.5:7000", str(error))


async def test_a_restarted_shard_is_the_same_peer_with_new_words(free_port: int) -> None:
    words: Iterator[Announcement] = iter(
        [shard(free_port), replace(shard(free_port), id="id-2", version="0.1.1")]
    )
    latest = next(words)

    async def ask(target: str) -> Announcement:
        return latest

    async with watching(StaticTarget("127.0.0.1", free_port), ask=ask) as changes:
        assert (await seen(changes)).peer.version == "0.1.0"
        latest = next(words)
        assert (await seen(changes)).peer.version == "0.1.1"


async def test_a_target_that_hangs_is_nobody(free_port: int) -> None:
    """It takes the connection and says nothing, like a Mac that just fell asleep."""
    asked = asyncio.Semaphore(0)
    answering = False

    async def hang(target: str) -> Announcement:
        asked.release()
        if not answering:
            await asyncio.Event().wait()
        return shard(free_port)

    async with watching(StaticTarget("127.0.0.1", free_port), ask=hang) as changes:
        for _ in range(3):
            await asked.acquire()
        answering = True
        assert (await seen(changes)).peer.name == "studio"


async def test_an_error_in_the_question_itself_is_not_swallowed() -> None:
    async def broken(target: str) -> Announcement:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        async with watching(StaticTarget("127.0.0.1", 1), ask=broken) as changes:
            await anext(changes)
    assert raised.group_contains(ZeroDivisionError)


async def test_a_stranger_with_a_long_name_is_shown_too() -> None:
    async def refuse(target: str) -> Announcement:
        raise TrustError("wrong cluster key")

    host = "a" * MAX_WORD_BYTES
    async with watching(StaticTarget(host, 65535), ask=refuse) as changes:
        assert (await seen(changes)).peer.name == f"{host}:65535"


def test_a_target_that_is_away_for_days_is_still_asked() -> None:
    discovery = Discovery(MEMBER, describe, mdns_enabled=False)
    pauses_s = [discovery._pause_s(misses) for misses in range(1, 5000)]
    assert pauses_s == sorted(pauses_s)
    assert pauses_s[-1] == PACE.retry_max_s


def test_the_promised_bounds() -> None:
    """Static targets are lost after two questions; that must fit what Pace promises for all."""
    two_misses_s = PACE.probe_s + 2 * PACE.answer_s + PACE.probe_s / 8
    assert two_misses_s <= PACE.vanish_s <= 10.0
    assert PACE.return_s <= 10.0
