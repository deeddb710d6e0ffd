"""Announcing a shard by multicast DNS, and hearing others: service type `_dnet_p2p._tcp.local.`

Liveness does not rest on record lifetimes (zeroconf keeps a PTR for at least 19 minutes): a browser asks
the one PTR question every `probe_s`, and every shard that is alive answers with all of its records. Who has
not answered for `lost_after_s` is asked once more directly, because Wi-Fi loses multicast, and is then gone.

Sockets follow the network: when addresses change or the machine wakes, all groups are joined anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from itertools import count
from types import TracebackType
from typing import Self

from zeroconf import (  # type: ignore[attr-defined]  # exported, but not all of it listed in __all__
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    Error,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
    current_time_millis,
)
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf
from zeroconf.const import _CLASS_IN, _FLAGS_QR_QUERY, _TYPE_PTR, _TYPE_SRV, _TYPE_TXT

from dnet_core.discover.announcement import MAX_NAME_BYTES, Announcement, from_txt, to_txt
from dnet_core.discover.interfaces import Network, network_changes
from dnet_core.discover.pace import PACE, Pace
from dnet_core.discover.thunderbolt import read_thunderbolt
from dnet_core.errors import StartError

SERVICE_TYPE = "_dnet_p2p._tcp.local."
NAMES_ARE_HEARD_S = 1.5
"""How long answers to the question take at most: a responder that has just spoken waits a second before it
repeats itself, and up to 0.32 s more to gather answers (RFC 6762, section 6)."""

MAX_INSTANCES = 256
"""Shards that are followed at once; a flood of invented ones must not fill the memory."""

_log = logging.getLogger(__name__)

Networks = Callable[[], AsyncIterator[Network]]


def check_name(name: str) -> None:
    """Raises StartError when a shard of this name cannot be announced."""
    if len(name.encode()) > MAX_NAME_BYTES:
        raise StartError(
            f"the name '{name}' is longer than {MAX_NAME_BYTES} bytes, and mDNS cannot announce it: give a"
            " shorter one with --name, or start with --no-mdns"
        )


class Advertisement:
    """Announces one shard for as long as the context is open; says goodbye when it closes.

        async with Advertisement(announcement) as advertisement:
            ...  # advertisement.name is the name it got: "studio-2" when "studio" was taken

    Opening waits until the name is certain (about 2 s), or until it is clear that there is no multicast
    now; then it announces as soon as there is. Owned by the task that opens it. Raises StartError when the
    name is too long for DNS.
    """

    def __init__(
        self, announcement: Announcement, networks: Networks | None = None, pace: Pace = PACE
    ) -> None:
        check_name(announcement.name)
        self._announcement = announcement
        self._wanted_name = announcement.name
        self._networks = networks or (lambda: network_changes(pace.network_poll_s))
        self._named = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The shard's name, unique on this network."""
        return self._announcement.name

    @property
    def announcement(self) -> Announcement:
        """What is being announced: name, addresses and Thunderbolt ports as they are now."""
        return self._announcement

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._task = self._group.create_task(self._announce())
        try:
            await self._named.wait()
        except asyncio.CancelledError:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        assert self._task is not None, "closed before it was opened"
        self._task.cancel()
        # Without the body's error: the group would wrap it, and callers want their own error back.
        await self._group.__aexit__(None, None, None)

    async def _announce(self) -> None:
        """Announce on every network that comes along."""
        networks = self._networks()
        async for network in networks:
            self._set_addresses(network)
            opened = _open()
            if opened is None:
                self._named.set()
                continue
            async with opened as zeroconf:
                await _join(zeroconf, network)
                await self._register(zeroconf)
                self._named.set()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._update_thunderbolt(zeroconf))
                    async for changed in networks:
                        self._set_addresses(changed)
                        await _join(zeroconf, changed)
                        await self._update(zeroconf)
                        group.create_task(self._update_thunderbolt(zeroconf))

    def _set_addresses(self, network: Network) -> None:
        self._announcement = replace(self._announcement, addresses=network.announced)

    async def _register(self, zeroconf: AsyncZeroconf) -> None:
        """Find a free name, announce it, and settle who keeps it when two chose it at the same time.

        The service's instance carries the id, so it is unique without asking (zeroconf's own probes are
        answered by unicast, which a second process on the same host never sees). What has to be unique is
        the name, in one cluster.
        """
        await zeroconf.zeroconf.async_wait_for_start()
        heard = _Heard()
        zeroconf.zeroconf.async_add_listener(heard, None)
        for _ in range(2):  # Wi-Fi loses multicast now and then
            zeroconf.zeroconf.async_send(_question())
            await asyncio.sleep(NAMES_ARE_HEARD_S / 2)
        others = self._others(zeroconf, heard)
        self._rename(others)
        # Not strict: the underscore in the service type is older than the rule against it.
        announced = zeroconf.async_register_service(self._info(), cooperating_responders=True, strict=False)
        await (await announced)
        others = self._others(zeroconf, heard)
        while any(o.name == self.name and o.id < self._announcement.id for o in others):
            self._rename(others)
            await self._update(zeroconf)
            others = self._others(zeroconf, heard)
        zeroconf.zeroconf.async_remove_listener(heard)

    def _others(self, zeroconf: AsyncZeroconf, heard: _Heard) -> list[Announcement]:
        """The other shards of this cluster that were heard; those that announce nonsense have no name."""
        found = [_read(zeroconf.zeroconf, instance) for instance in heard.at_s]
        mine = self._announcement
        return [o for o in found if o is not None and o.id != mine.id and o.cluster == mine.cluster]

    def _rename(self, others: list[Announcement]) -> None:
        name = free_name(self._wanted_name, {other.name for other in others})
        if name != self.name:
            _log.info("another shard is called %s, this one becomes %s", self.name, name)
            self._announcement = replace(self._announcement, name=name)

    def _info(self) -> AsyncServiceInfo:
        announcement = self._announcement
        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{self._wanted_name}-{announcement.id[:8]}.{SERVICE_TYPE}",
            port=announcement.grpc_port,
            properties=to_txt(announcement),
            # A host name of its own: the machine's belongs to the system's responder.
            server=f"dnet-{announcement.id[:12]}.local.",
            parsed_addresses=[address.host for address in announcement.addresses] or ["127.0.0.1"],
        )

    async def _update(self, zeroconf: AsyncZeroconf) -> None:
        await (await zeroconf.async_update_service(self._info()))

    async def _update_thunderbolt(self, zeroconf: AsyncZeroconf) -> None:
        """Announce the ports once they are known: asking a Mac for them takes a second.

        A cable that is plugged in gives its bridge an address, which is a change of the network.
        """
        ports = await read_thunderbolt()
        if ports != self._announcement.thunderbolt:
            self._announcement = replace(self._announcement, thunderbolt=ports)
            await self._update(zeroconf)


def free_name(wanted: str, taken: set[str]) -> str:
    """The first of studio, studio-2, studio-3, ... that is not taken."""
    names = (wanted if number == 1 else f"{wanted}-{number}" for number in count(1))
    return next(name for name in names if name not in taken)


def _question(unresolved: Iterable[str] = ()) -> DNSOutgoing:
    """One multicast question for all shards, without known answers, so that each one answers.

    It is not sent for unicast answers: on one host several processes share the port, and only one of them
    would get the answer. Instances whose records came incomplete are asked for the rest.
    """
    out = DNSOutgoing(_FLAGS_QR_QUERY)
    out.add_question(DNSQuestion(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN))
    for instance in sorted(unresolved):
        out.add_question(DNSQuestion(instance, _TYPE_SRV, _CLASS_IN))
        out.add_question(DNSQuestion(instance, _TYPE_TXT, _CLASS_IN))
    return out


def _can_be_asked(instance: str) -> bool:
    """Whether `instance` is the name of a shard's service; the records of the network may name anything."""
    try:
        AsyncServiceInfo(SERVICE_TYPE, instance)
        _question([instance]).packets()
    except Error as error:
        _log.debug("%r is no instance of %s: %s", instance, SERVICE_TYPE, error)
        return False
    return True


def _read(zeroconf: Zeroconf, instance: str) -> Announcement | None:
    """What `instance` announces by the records heard so far.

    None when they are incomplete or not lawful (they may come from anybody).
    """
    info = AsyncServiceInfo(SERVICE_TYPE, instance)
    if not info.load_from_cache(zeroconf, current_time_millis()):
        return None
    try:
        return from_txt(info.decoded_properties, sorted(info.parsed_addresses()))
    except ValueError as error:
        _log.debug("%s announces nonsense: %s", instance, error)
        return None


def _open() -> AsyncZeroconf | None:
    """Open the multicast port, on no address yet; None when that cannot be done."""
    try:
        return AsyncZeroconf(interfaces=[])
    except OSError as error:
        _log.warning("multicast DNS is not available: %s (shards can still be named with --peer)", error)
        return None


async def _join(zeroconf: AsyncZeroconf, network: Network) -> None:
    """Join the multicast group on every IPv4 address, anew: after sleep the kernel may have forgotten.

    An address may be gone again by now; then this network is history, and the next one is about to be told.
    """
    await zeroconf.async_update_interfaces(interfaces=[])
    try:
        await zeroconf.async_update_interfaces(interfaces=list(network.ipv4_hosts))
    except OSError as error:
        _log.info("an interface went away while it was joined: %s", error)


Report = Callable[[str, Announcement | None, str], Awaitable[None]]
"""Takes the service's instance name, what it announces (None: it is gone) and why it is gone."""


async def browse(
    cluster: str,
    report: Report,
    answers: Callable[[Announcement], Awaitable[bool]],
    networks: Networks | None = None,
    pace: Pace = PACE,
) -> None:
    """Follow the shards of one cluster for ever: `report` what appears, changes and vanishes.

    `answers` asks a silent shard directly whether it is still there. Where multicast cannot be opened this
    waits for another network.
    """
    changes = networks() if networks is not None else network_changes(pace.network_poll_s)
    async for network in changes:
        opened = _open()
        if opened is None:
            continue
        async with opened as zeroconf, asyncio.TaskGroup() as group:
            await _join(zeroconf, network)
            browser = _Browser(zeroconf.zeroconf, cluster, report, answers, pace)
            group.create_task(browser.run())
            async for changed in changes:
                await _join(zeroconf, changed)


class _Heard(RecordUpdateListener):
    """When each instance was last heard. Written by zeroconf on the event loop, read by one browser."""

    def __init__(self) -> None:
        self.at_s: dict[str, float] = {}
        self.said_goodbye: set[str] = set()
        self.news = asyncio.Event()

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        del zc
        time_s = asyncio.get_running_loop().time()
        for update in records:
            record = update.new
            if not isinstance(record, DNSPointer) or record.name != SERVICE_TYPE:
                continue
            if record.is_expired(now):
                self.said_goodbye.add(record.alias)
            elif record.alias in self.at_s or (
                len(self.at_s) < MAX_INSTANCES and _can_be_asked(record.alias)
            ):
                self.said_goodbye.discard(record.alias)
                self.at_s[record.alias] = time_s

    def async_update_records_complete(self) -> None:
        self.news.set()

    def forget(self, instance: str) -> None:
        self.at_s.pop(instance, None)
        self.said_goodbye.discard(instance)


class _Browser:
    """Asks, listens, compares. Owned by the task that runs it."""

    def __init__(
        self,
        zeroconf: Zeroconf,
        cluster: str,
        report: Report,
        answers: Callable[[Announcement], Awaitable[bool]],
        pace: Pace,
    ) -> None:
        self._zeroconf = zeroconf
        self._cluster = cluster
        self._report = report
        self._answers = answers
        self._pace = pace
        self._heard = _Heard()
        self._known: dict[str, Announcement] = {}
        self._unresolved: set[str] = set()
        self._asked: set[str] = set()  # silent, and being asked directly

    async def run(self) -> None:
        await self._zeroconf.async_wait_for_start()
        self._zeroconf.async_add_listener(self._heard, None)
        async with asyncio.TaskGroup() as group:
            await self._follow(group)

    async def _follow(self, group: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        ask_at_s = loop.time()
        while True:
            if loop.time() >= ask_at_s:
                self._zeroconf.async_send(_question(self._unresolved))
                ask_at_s = loop.time() + self._pace.probe_s
            silent_at_s = [
                heard_at_s + self._pace.lost_after_s
                for instance, heard_at_s in self._heard.at_s.items()
                if instance not in self._asked
            ]
            try:
                async with asyncio.timeout_at(min([ask_at_s, *silent_at_s])):
                    await self._heard.news.wait()
            except TimeoutError:
                pass  # time to ask again, or to see who is silent
            self._heard.news.clear()
            await self._compare(group)

    async def _compare(self, group: asyncio.TaskGroup) -> None:
        now_s = asyncio.get_running_loop().time()
        for instance, heard_at_s in list(self._heard.at_s.items()):
            if instance in self._heard.said_goodbye:
                await self._lose(instance, "it said goodbye")
            elif now_s - heard_at_s < self._pace.lost_after_s:
                await self._look_at(instance)
            elif instance not in self._asked:
                self._asked.add(instance)
                group.create_task(self._ask_directly(instance, heard_at_s))

    async def _ask_directly(self, instance: str, heard_at_s: float) -> None:
        """Keep a shard that multicast does not hear if it answers itself, else report it lost.

        Each is a task of its own: of many that fall silent at once none waits for the answers of others.
        """
        answers = instance in self._known and await self._answers(self._known[instance])
        self._asked.discard(instance)
        if self._heard.at_s.get(instance) != heard_at_s:
            return  # heard again meanwhile, or gone with a goodbye
        if answers:
            self._heard.at_s[instance] = asyncio.get_running_loop().time()
            self._heard.news.set()  # the next silence has a time now
        else:
            await self._lose(instance, f"it has not answered for {self._pace.lost_after_s:g} s")

    async def _lose(self, instance: str, reason: str) -> None:
        self._heard.forget(instance)
        self._unresolved.discard(instance)
        if self._known.pop(instance, None) is not None:
            await self._report(instance, None, reason)

    async def _look_at(self, instance: str) -> None:
        """Report `instance` if its records are here and say something new."""
        announcement = _read(self._zeroconf, instance)
        if announcement is None or not announcement.addresses:
            self._unresolved.add(instance)
            return
        self._unresolved.discard(instance)
        if announcement.cluster == self._cluster and self._known.get(instance) != announcement:
            self._known[instance] = announcement
            await self._report(instance, announcement, "it has another name now")
