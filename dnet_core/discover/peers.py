"""Discovery: every source at once -> one stream of `PeerSeen` and `PeerVanished`.

    mDNS browser ----+
    --peer a:58081 --+--> reports (bounded queue) --> merge (pure) --> what changed --> watch()
    hostfile entry --+

Each source is a task of the one group that `async with Discovery(...)` opens; leaving the block ends them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from dnet_core.discover import mdns
from dnet_core.discover.announcement import Announcement
from dnet_core.discover.interfaces import Network, network_changes, reached_over, read_network, resolve
from dnet_core.discover.pace import PACE, Pace
from dnet_core.discover.sightings import Membership, Route, Sighting, merge, routes_to
from dnet_core.discover.static import StaticTarget
from dnet_core.errors import DnetError, ProtocolError, TrustError
from dnet_core.types.devices import Medium, Peer, PeerAddress, PeerSource, grpc_target

_log = logging.getLogger(__name__)

Describe = Callable[[str], Awaitable[Announcement]]
"""Asks the shard at `host:port` what it is. Raises TrustError or ProtocolError when it answers but will not
or cannot talk, any other DnetError or OSError when there is no answer. It must not reuse a channel that is
waiting to reconnect: a shard that is back has to answer the next question."""


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """A peer appeared, or something about it changed (addresses, version, reason it cannot join)."""

    peer: Peer


@dataclass(frozen=True, slots=True)
class PeerVanished:
    """The peer is not reachable any more."""

    name: str
    reason: str


PeerChange = PeerSeen | PeerVanished


@dataclass(frozen=True, slots=True)
class _Report:
    """What one source says now about one thing it watches; `sighting` None: it is gone, for `reason`."""

    key: tuple[PeerSource, str]
    sighting: Sighting | None
    reason: str


class Discovery:
    """Watches all sources while the context is open. Owned by the task that opens it, which also watches.

        async with Discovery(membership, describe, static=targets) as discovery:
            async for change in discovery.watch():
                ...

    `mdns_enabled` False uses the static targets alone. Errors of a source's code (not of the network) end
    the block as an ExceptionGroup.
    """

    def __init__(
        self,
        member: Membership,
        describe: Describe,
        static: Sequence[StaticTarget] = (),
        mdns_enabled: bool = True,
        networks: mdns.Networks | None = None,
        pace: Pace = PACE,
    ) -> None:
        self._member = member
        self._describe = describe
        self._static = static
        self._mdns_enabled = mdns_enabled
        self._networks = networks or (lambda: network_changes(pace.network_poll_s))
        self._pace = pace
        # A burst is one report per peer; sources wait when the reader is slower than that.
        self._reports: asyncio.Queue[_Report] = asyncio.Queue(maxsize=64)
        self._sightings: dict[tuple[PeerSource, str], Sighting] = {}
        self._peers: dict[str, Peer] = {}
        self._network = Network(())
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The peers as of the last change that `watch` yielded."""
        return tuple(self._peers.values())

    async def __aenter__(self) -> Self:
        self._network = await read_network()
        await self._group.__aenter__()
        for target in self._static:
            self._tasks.append(self._group.create_task(self._watch_static(target)))
        if self._mdns_enabled:
            heard = mdns.browse(
                self._member.cluster, self._report_heard, self._answers, self._follow_networks, self._pace
            )
            self._tasks.append(self._group.create_task(heard))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        # Without the body's error: the group would wrap it, and callers want their own error back.
        await self._group.__aexit__(None, None, None)

    async def watch(self) -> AsyncIterator[PeerChange]:
        """Yield every change, beginning with the peers that are there already. Never ends by itself."""
        while True:
            report = await self._reports.get()
            if report.sighting is None:
                self._sightings.pop(report.key, None)
            else:
                self._sightings[report.key] = report.sighting
            for change in self._changes(report.reason):
                yield change

    def _changes(self, reason: str) -> list[PeerChange]:
        before, self._peers = self._peers, merge(self._sightings.values(), self._member)
        gone: list[PeerChange] = [PeerVanished(name, reason) for name in before.keys() - self._peers.keys()]
        return gone + [PeerSeen(peer) for name, peer in self._peers.items() if before.get(name) != peer]

    async def _follow_networks(self) -> AsyncIterator[Network]:
        async for network in self._networks():
            self._network = network
            yield network

    def _leaves_over(self, host: str) -> Medium | None:
        return reached_over(host, self._network)

    async def _report_heard(self, instance: str, shard: Announcement | None, reason: str) -> None:
        sighting = None
        if shard is not None:
            sighting = Sighting(PeerSource.MDNS, shard, routes_to(shard.addresses, self._leaves_over))
        await self._reports.put(_Report((PeerSource.MDNS, instance), sighting, reason))

    async def _answers(self, shard: Announcement) -> bool:
        """Whether a shard that multicast does not hear answers directly, on any of its addresses."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._is_at(shard, grpc_target(address.host, shard.grpc_port)))
                for address in shard.addresses
            ]
        return any(task.result() for task in tasks)

    async def _is_at(self, shard: Announcement, target: str) -> bool:
        try:
            async with asyncio.timeout(self._pace.answer_s):
                return (await self._describe(target)).id == shard.id
        except (TrustError, ProtocolError):
            return True  # it will not talk to us, but it is there
        except (DnetError, OSError, TimeoutError):
            return False

    async def _watch_static(self, target: StaticTarget) -> None:
        """Ask one target for ever. It is lost after two questions in a row without an answer."""
        key = (PeerSource.STATIC, target.target)
        known: Sighting | None = None
        misses = 0
        while True:
            sighting, problem = await self._ask(target)
            misses = 0 if sighting is not None else misses + 1
            if sighting != known and (sighting is not None or misses > 1):
                known = sighting
                await self._reports.put(_Report(key, sighting, problem))
            await asyncio.sleep(self._pause_s(misses))

    def _pause_s(self, misses: int) -> float:
        """Steady while it answers; at once after the first miss, then ever slower up to a bound."""
        if misses == 0:
            return self._pace.probe_s
        doublings = min(misses - 1, 16)  # a target may be away for days: 2.0 ** 1024 is no number any more
        return min(self._pace.retry_max_s, self._pace.probe_s / 8 * 2.0**doublings)

    async def _ask(self, target: StaticTarget) -> tuple[Sighting | None, str]:
        """Ask a target what it is; (None, why) when it does not answer."""
        try:
            async with asyncio.timeout(self._pace.answer_s):
                shard = await self._describe(target.target)
        except (TrustError, ProtocolError) as error:
            return await self._sighting(target, self._stranger(target), str(error)), str(error)
        except TimeoutError:
            return None, f"no answer within {self._pace.answer_s:g} s"
        except (DnetError, OSError) as error:
            return None, str(error)
        return await self._sighting(target, shard, None), "it has another name now"

    async def _sighting(self, target: StaticTarget, shard: Announcement, refusal: str | None) -> Sighting:
        """The target's own address always counts; the shard's other ones only if its port is the target's."""
        host = await resolve(target.host) or target.host  # a name only the transport can resolve stays one
        others = [address for address in shard.addresses if address.host != host]
        medium = next((a.medium for a in shard.addresses if a.host == host), Medium.UNKNOWN)
        routes = [Route(PeerAddress(host, medium), self._leaves_over(host))]
        if shard.grpc_port == target.grpc_port:
            routes += routes_to(others, self._leaves_over)
        shard = replace(shard, grpc_port=target.grpc_port)
        return Sighting(PeerSource.STATIC, shard, tuple(routes), refusal)

    def _stranger(self, target: StaticTarget) -> Announcement:
        """Somebody who answers but will not say who it is: shown under the name the person gave it."""
        return Announcement(
            id=f"static-{target.target}",
            name=target.name or target.target,
            version="unknown",
            protocol_version=self._member.protocol_version,
            grpc_port=target.grpc_port,
            http_port=target.grpc_port,
            cluster=self._member.cluster,
        )
