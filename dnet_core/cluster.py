"""Who is there: local shards and discovered ones as one set of peers, and how each reaches the others."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import grpc

from dnet_core import __version__
from dnet_core.cluster_options import ClusterOptions
from dnet_core.describe import announcement_of
from dnet_core.discover.announcement import Announcement
from dnet_core.discover.interfaces import host_towards
from dnet_core.discover.local import LocalOptions, LocalShard, local_shard
from dnet_core.discover.peers import Discovery, PeerSeen, PeerVanished
from dnet_core.discover.sightings import Membership
from dnet_core.discover.thunderbolt import hop_addresses
from dnet_core.errors import DnetError, NotReady, PeerAbsent, PeerLost, StartError
from dnet_core.events import Event, MeasurementProgressed, PeerJoined, PeerLeft
from dnet_core.profile.device import profile_from_json
from dnet_core.profile.links import best_links
from dnet_core.settings import TIMEOUTS, inherited_cluster_key, paths
from dnet_core.tasks import TaskScope
from dnet_core.transport import tls
from dnet_core.transport.control import Hop, ShardStatus
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.transport.grpc_link import open_channel
from dnet_core.types.devices import Medium, Peer, PeerSource, grpc_target
from dnet_core.types.profiles import DeviceProfile, LinkProfile, ProfileRequest

log = logging.getLogger(__name__)

RETURN_PROBE_S = 2.0

RESTART_PAUSE_S = 2.0
"""A local shard whose process ends by itself is started once more after this long."""

SETTLE_S = 3.0
"""How long the first plan waits for shards that were named or announce themselves."""


class Cluster:
    """The devices of one head. Owned by the coordinator, whose tasks it uses."""

    def __init__(self, options: ClusterOptions, tasks: TaskScope, emit: Callable[[Event], None]) -> None:
        self._options = options
        self._tasks = tasks
        self._emit = emit
        self._peers: dict[str, Peer] = {}
        self._discovered: dict[str, Peer] = {}  # by their own names, as they are shown
        self._local: dict[str, LocalShard] = {}  # whose processes run
        self._links: dict[tuple[str, str], tuple[LinkProfile, ...]] = {}
        self._measuring = asyncio.Lock()  # two measurements at once would measure one another
        self._outdated: set[str] = set()  # peers that are measured anew, whatever is kept of them
        self._started = asyncio.Event()
        self._settled = asyncio.Event()
        self._failure: StartError | None = None
        self._key = tls.find_key(inherited_cluster_key(), paths().cluster_key)
        self._credentials = tls.channel_credentials(tls.issue(self._key, "head"))

    def start(self) -> None:
        """Begin to start local shards and to look around; returns at once."""
        self._tasks.start(self._run_locals())
        if self._options.looks_around:
            self._tasks.start(self._look_around())
            self._tasks.start(self._settle())
        else:
            self._settled.set()

    @property
    def key(self) -> tls.ClusterKey:
        return self._key

    @property
    def credentials(self) -> grpc.ChannelCredentials:
        return self._credentials

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All that are there, in the order in which they came; some may not be able to join."""
        return tuple(self._peers.values())

    async def wait_for_local_shards(self) -> None:
        """Return when the local shards answer. Raises StartError when one does not start."""
        await self._started.wait()
        if self._failure is not None:
            raise self._failure

    async def usable_peers(self) -> tuple[Peer, ...]:
        """The peers that a plan may use, this machine's first. Raises NotReady when there are none."""
        await self.wait_for_local_shards()
        await self._settled.wait()
        usable = [peer for peer in self.peers if peer.cannot_join is None]
        if usable:
            return tuple(sorted(usable, key=lambda peer: peer.source is not PeerSource.LOCAL))
        refused = "; ".join(f"{peer.name} {peer.cannot_join}" for peer in self.peers)
        raise NotReady(
            "no device can be used: start dnet-shard on one, or leave out --no-local-shard"
            + (f" ({refused})" if refused else "")
        )

    def peer(self, name: str) -> Peer:
        """Raises PeerAbsent when it is not there."""
        if name not in self._peers:
            raise PeerAbsent(name, tuple(self._peers))
        return self._peers[name]

    def target(self, source: Peer, target: Peer) -> str:
        """Where `source` reaches `target`, as gRPC takes it.

        Raises NotReady when `target` has no port for others, PeerLost when no way leads to `source`.
        """
        if target.source is PeerSource.LOCAL:
            if source.source is PeerSource.LOCAL:
                return target.target
            if not target.grpc_port:
                raise NotReady(f"{target.name} works for this machine alone: start the head with --grpc-port")
            host = source.addresses[0].host
            try:
                return grpc_target(host_towards(host), target.grpc_port)
            except OSError as error:
                raise PeerLost(source.name, f"no way from here to {host}: {error}") from error
        return grpc_target(hop_addresses(source, target, self.peers)[0].host, target.grpc_port)

    async def status(self, name: str) -> ShardStatus:
        """What the shard `name` says of itself now."""
        async with self.client(name) as shard:
            return await shard.describe()

    @asynccontextmanager
    async def client(self, name: str) -> AsyncIterator[ShardClient]:
        """Control calls to the shard `name`."""
        async with open_channel(self.peer(name).target, self._credentials) as channel:
            yield ShardClient(name, channel)

    async def profiles(
        self, peers: tuple[Peer, ...], request: ProfileRequest, fresh: bool = False
    ) -> tuple[tuple[DeviceProfile, ...], dict[str, str]]:
        """Measure `peers`: their profiles, and for those that cannot be measured, why.

        Machines are measured at once, shards that share this one in turn; they share its memory, too: each
        may plan with its part. Whoever asks while something is measured waits for that.
        Raises the error when no device can be measured.
        """
        here, counted = asyncio.Lock(), itertools.count(1)
        num_here = sum(peer.source is PeerSource.LOCAL for peer in peers)

        async def measure(peer: Peer) -> DeviceProfile:
            if peer.source is not PeerSource.LOCAL:
                return await self._profile(peer, request, fresh)
            async with here:
                profile = await self._profile(peer, request, fresh)
            share = profile.memory_available_bytes // num_here
            budget = profile.memory_budget_bytes
            if self._options.memory is None:
                budget //= num_here
            return replace(profile, memory_available_bytes=share, memory_budget_bytes=budget)

        def tell(num_done: int) -> None:
            self._emit(MeasurementProgressed("devices", num_done, len(peers)))

        async def result_of(peer: Peer) -> DeviceProfile | DnetError:
            result: DeviceProfile | DnetError
            try:
                result = await measure(peer)
            except DnetError as error:
                result = error
            tell(next(counted))
            return result

        profiles: list[DeviceProfile] = []
        failed: dict[str, DnetError] = {}
        async with self._measuring:
            tell(0)
            results = await asyncio.gather(*map(result_of, peers), return_exceptions=True)
        for peer, result in zip(peers, results, strict=True):
            match result:
                case DeviceProfile():
                    profiles.append(result)
                case DnetError():
                    failed[peer.name] = result
                case BaseException():
                    raise result
        if not profiles:
            raise next(iter(failed.values()))
        return tuple(profiles), {name: str(error) for name, error in failed.items()}

    async def _profile(self, peer: Peer, request: ProfileRequest, fresh: bool) -> DeviceProfile:
        fresh = fresh or peer.name in self._outdated
        async with self.client(peer.name) as shard:
            profile = profile_from_json(await shard.profile(request, fresh), peer.name)
        self._outdated.discard(peer.name)
        return profile

    def forget_measurements(self) -> None:
        """Measure all devices and links again when they are needed next."""
        self._outdated.update(self._peers)
        self._links.clear()

    async def links(self, peers: tuple[Peer, ...]) -> tuple[LinkProfile, ...]:
        """The hop between each ordered pair of `peers`, over the best of its addresses.

        Measured once per pair and kept until one of the two leaves. Pairs that share no device are measured
        at once, so that no two measurements meet on a wire end. A pair that cannot reach each other has none.
        """
        async with self._measuring:
            await self._measure_links(peers)
        names = {peer.name for peer in peers}
        known = (links for (a, b), links in self._links.items() if {a, b} <= names)
        return best_links(link for links in known for link in links)

    async def _measure_links(self, peers: tuple[Peer, ...]) -> None:
        missing = [(a, b) for a in peers for b in peers if a is not b and (a.name, b.name) not in self._links]
        num_total = len(missing)
        while missing:
            self._emit(MeasurementProgressed("links", num_total - len(missing), num_total))
            busy: set[str] = set()
            batch = []
            for a, b in missing:
                if not busy & {a.name, b.name}:
                    busy |= {a.name, b.name}
                    batch.append((a, b))
            found = await asyncio.gather(
                *(self._measure_pair(a, b) for a, b in batch), return_exceptions=True
            )
            for (a, b), links in zip(batch, found, strict=True):
                if isinstance(links, PeerLost):  # no way from here, for now
                    log.info("no link %s -> %s: %s", a.name, b.name, links)
                elif isinstance(links, BaseException):  # now that all have ended
                    raise links
                elif {a, b} <= set(self.peers):  # else it says what was
                    self._links[a.name, b.name] = links
            missing = [pair for pair in missing if pair not in batch]

    async def _measure_pair(self, source: Peer, target: Peer) -> tuple[LinkProfile, ...]:
        """Raises PeerLost when no way leads from here to `source`, PeerAbsent when it is not there."""
        found = []
        async with self.client(source.name) as shard:
            for target_text, medium in self._addresses(source, target):
                try:
                    found.append(await shard.measure_link(Hop(target.name, target_text), medium))
                except DnetError as error:  # an address that does not work is no link
                    log.info("no link %s -> %s over %s: %s", source.name, target.name, target_text, error)
        return tuple(found)

    def _addresses(self, source: Peer, target: Peer) -> list[tuple[str, Medium]]:
        """Ways from `source` to `target`, best first."""
        if target.source is PeerSource.LOCAL:
            near = source.source is PeerSource.LOCAL
            medium = Medium.LOOPBACK if near else source.addresses[0].medium
            return [(self.target(source, target), medium)]
        return [
            (grpc_target(address.host, target.grpc_port), address.medium)
            for address in hop_addresses(source, target, self.peers)
        ]

    def lose(self, name: str, reason: str) -> None:
        """Leave out a peer whose ring stream broke, until it answers again."""
        peer = self._peers.get(name)
        if peer is not None:
            self._tasks.start(self._lose(peer, reason))

    async def _lose(self, peer: Peer, reason: str) -> None:
        shard = self._local.get(peer.name)
        if shard is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(TIMEOUTS.stop_child_s):  # the end of its process says more
                    await shard.exited()
                    return
        self._leave(peer.name, reason)
        while self._is_known(peer) and peer.name not in self._peers:
            await asyncio.sleep(RETURN_PROBE_S)
            try:
                await self._describe(peer.target)
            except DnetError:
                continue
            if self._is_known(peer) and peer.name not in self._peers:
                self._join(peer)

    def _is_known(self, peer: Peer) -> bool:
        """Whether `peer` may come back as it was; else discovery, or a new start, finds it again."""
        shard = self._local.get(peer.name)
        return self._discovered.get(peer.name) == peer or (shard is not None and shard.peer == peer)

    def _leave(self, name: str, reason: str) -> None:
        if self._peers.pop(name, None) is not None:
            self._links = {pair: links for pair, links in self._links.items() if name not in pair}
            self._emit(PeerLeft(name, reason))

    def _join(self, peer: Peer) -> None:
        self._peers[peer.name] = peer
        self._emit(PeerJoined(peer))

    async def _run_locals(self) -> None:
        names = _local_names(self._options.local_shards)
        host = "0.0.0.0" if self._options.looks_around else "127.0.0.1"  # noqa: S104 - mutual TLS guards it
        memory = self._options.memory.text if self._options.memory else None
        options = LocalOptions(self._options.name, self._key.text, host, self._options.grpc_port, memory)
        loop = asyncio.get_running_loop()
        starting: list[asyncio.Future[Peer]] = [loop.create_future() for _ in names]
        for i, (name, started) in enumerate(zip(names, starting, strict=True)):
            self._tasks.start(self._run_local(name, options if i == 0 else _any_port(options), started))
        try:
            for peer in await asyncio.gather(*starting):
                if peer.name in self._local:  # else it has ended already
                    self._join(peer)
        except StartError as error:
            self._failure = error
        self._started.set()

    async def _run_local(self, name: str, options: LocalOptions, started: asyncio.Future[Peer]) -> None:
        """Run a local shard. If its process ends by itself another one follows, once, and joins."""
        try:
            async with local_shard(name, options) as shard:
                self._local[name] = shard
                started.set_result(shard.peer)
                await self._watch_local(shard)
        except StartError as error:
            started.set_exception(error)
            return
        await asyncio.sleep(RESTART_PAUSE_S)
        try:
            async with local_shard(name, options) as shard:
                self._local[name] = shard
                self._join(shard.peer)
                await self._watch_local(shard, ", for the second time: start dnet again to have it back")
        except StartError as error:
            log.error("%s", error)  # noqa: TRY400 - what happened, not where in the code

    async def _watch_local(self, shard: LocalShard, then: str = "") -> None:
        code = await shard.exited()
        del self._local[shard.peer.name]
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self._leave(shard.peer.name, f"its process {how}{then}")

    async def _look_around(self) -> None:
        member = Membership(self._options.name, __version__)
        async with Discovery(
            member, self._describe, static=self._options.static, mdns_enabled=self._options.mdns
        ) as discovery:
            async for change in discovery.watch():
                match change:
                    case PeerSeen(peer):
                        self._discovered[peer.name] = shown = self._apart(peer)
                        self._join(shown)
                    case PeerVanished(name, reason):
                        shown = self._discovered.pop(name)
                        if self._peers.get(shown.name) == shown:  # not one of our own, which came later
                            self._leave(shown.name, reason)

    def _apart(self, peer: Peer) -> Peer:
        """A discovered shard that is called like one of our own is shown under another name."""
        own = self._peers.get(peer.name)
        if own is None or own.source is not PeerSource.LOCAL:
            return peer
        reason = "is called like a shard of this head: start it with another --name"
        return replace(peer, name=f"{peer.name} (other)", cannot_join=reason)

    async def _settle(self) -> None:
        await asyncio.sleep(SETTLE_S)
        self._settled.set()

    async def _describe(self, target: str) -> Announcement:
        async with open_channel(target, self._credentials) as channel:
            status = await ShardClient(target, channel).describe()
        return announcement_of(status, target)


def _any_port(options: LocalOptions) -> LocalOptions:
    return options if options.grpc_port is None else replace(options, grpc_port=0)


def _local_names(count: int) -> tuple[str, ...]:
    host = socket.gethostname().split(".")[0]
    return (host,) if count == 1 else tuple(f"{host}-{i + 1}" for i in range(count))
