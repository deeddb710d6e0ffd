"""Merging is a pure function: one peer per shard, best address first, whatever the order of sightings."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from dnet_core.discover.announcement import Announcement, from_txt, to_txt
from dnet_core.discover.sightings import Membership, Route, Sighting, merge, routes_to
from dnet_core.types.devices import Medium, PeerAddress, PeerSource, ThunderboltPort

HOME = Membership("home", "0.3.1", protocol_version=1)
STUDIO = Announcement("id-1", "studio", "0.3.0", 1, 58081, 8081, "home")


def seen(
    shard: Announcement, *routes: tuple[str, Medium, Medium | None], source: PeerSource = PeerSource.MDNS
) -> Sighting:
    """A sighting with routes of (host, what its owner says, what it leaves over)."""
    return Sighting(source, shard, tuple(Route(PeerAddress(h, own), out) for h, own, out in routes))


def hosts(*sightings: Sighting) -> list[str]:
    (peer,) = merge(sightings, HOME).values()
    return [address.host for address in peer.addresses]


def test_one_shard_over_three_media_is_one_peer() -> None:
    wifi = seen(STUDIO, ("10.0.0.6", Medium.WIFI, Medium.ETHERNET))
    wired = seen(STUDIO, ("10.0.0.5", Medium.ETHERNET, Medium.ETHERNET), source=PeerSource.STATIC)
    cable = seen(STUDIO, ("169.254.7.7", Medium.THUNDERBOLT, Medium.THUNDERBOLT))
    (peer,) = merge([wifi, wired, cable], HOME).values()
    assert peer.addresses == (
        PeerAddress("169.254.7.7", Medium.THUNDERBOLT),
        PeerAddress("10.0.0.5", Medium.ETHERNET),
        PeerAddress("10.0.0.6", Medium.WIFI),
    )
    assert peer.source is PeerSource.STATIC
    assert peer.target == "169.254.7.7:58081"


def test_a_thunderbolt_address_off_the_cable_comes_last() -> None:
    routes = (
        ("169.254.7.7", Medium.THUNDERBOLT, Medium.WIFI),
        ("10.0.0.6", Medium.WIFI, Medium.WIFI),
        ("fd00::6", Medium.WIFI, None),
    )
    assert hosts(seen(STUDIO, *routes)) == ["10.0.0.6", "169.254.7.7", "fd00::6"]


def test_the_slower_end_counts() -> None:
    """Its Ethernet over my Wi-Fi is Wi-Fi; what it does not say I take from my end."""
    routes = (
        ("10.0.0.1", Medium.ETHERNET, Medium.WIFI),
        ("10.0.0.2", Medium.UNKNOWN, Medium.ETHERNET),
        ("10.0.0.3", Medium.UNKNOWN, Medium.UNKNOWN),
    )
    assert hosts(seen(STUDIO, *routes)) == ["10.0.0.2", "10.0.0.1", "10.0.0.3"]
    (peer,) = merge([seen(STUDIO, routes[1])], HOME).values()
    assert peer.addresses[0].medium is Medium.ETHERNET


def test_addresses_that_lead_back_here_are_dropped() -> None:
    """The bridge of a virtual machine has the same address on every Mac."""
    mine = {"192.168.64.1": Medium.LOOPBACK}
    bridge, wired = PeerAddress("192.168.64.1", Medium.ETHERNET), PeerAddress("10.0.0.5", Medium.ETHERNET)
    away = routes_to([bridge, wired], lambda host: mine.get(host, Medium.ETHERNET))
    assert [route.address.host for route in away] == ["10.0.0.5"]
    here = routes_to([bridge], lambda host: mine.get(host, Medium.ETHERNET))
    assert [route.address.host for route in here] == ["192.168.64.1"]


def test_a_forwarded_port_does_not_lend_its_number_to_other_addresses() -> None:
    forwarded = replace(STUDIO, grpc_port=9000)
    tunnel = seen(forwarded, ("127.0.0.1", Medium.UNKNOWN, Medium.LOOPBACK), source=PeerSource.STATIC)
    heard = seen(STUDIO, ("10.0.0.5", Medium.ETHERNET, Medium.ETHERNET))
    (peer,) = merge([heard, tunnel], HOME).values()
    assert (peer.target, len(peer.addresses)) == ("127.0.0.1:9000", 1)


def test_who_cannot_join_is_shown_with_the_reason() -> None:
    route = ("10.0.0.5", Medium.ETHERNET, Medium.ETHERNET)
    reasons = {}
    for change in (
        STUDIO,
        replace(STUDIO, protocol_version=2),
        replace(STUDIO, version="0.4.0"),
        replace(STUDIO, cluster="office"),
    ):
        (peer,) = merge([seen(change, route)], HOME).values()
        reasons[change.protocol_version, change.version, change.cluster] = peer.cannot_join
    assert reasons[1, "0.3.0", "home"] is None  # a patch release apart
    assert "protocol 2" in str(reasons[2, "0.3.0", "home"])
    assert "runs version 0.4.0" in str(reasons[1, "0.4.0", "home"])
    assert "belongs to cluster 'office'" in str(reasons[1, "0.3.0", "office"])
    (peer,) = merge([replace(seen(STUDIO, route), refusal="wrong key")], HOME).values()
    assert peer.cannot_join == "wrong key"


def test_two_shards_with_one_name_stay_two() -> None:
    route = ("10.0.0.5", Medium.ETHERNET, Medium.ETHERNET)
    other = replace(STUDIO, id="id-0", grpc_port=58082)
    peers = merge([seen(STUDIO, route), seen(other, route)], HOME)
    assert peers["studio"].grpc_port == 58082
    assert peers["studio"].cannot_join is None
    assert "another --name" in str(peers["studio (id-1)"].cannot_join)


def test_none_of_many_with_one_name_is_hidden_by_another() -> None:
    """Whoever will not say who it is has an id by its address: these begin alike."""
    route = ("10.0.0.5", Medium.ETHERNET, Medium.ETHERNET)
    strangers = [replace(STUDIO, id=f"static-10.0.0.{i}:58081") for i in range(4)]
    assert len(merge([seen(stranger, route) for stranger in strangers], HOME)) == 4


media = st.sampled_from(Medium)
routes = st.builds(
    Route,
    st.builds(PeerAddress, st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "mini.local"]), media),
    st.none() | media,
)
shards = st.builds(
    Announcement,
    id=st.sampled_from(["a", "b", "c"]),
    name=st.sampled_from(["studio", "mini"]),
    version=st.sampled_from(["0.3.0", "0.4.0"]),
    protocol_version=st.sampled_from([1, 2]),
    grpc_port=st.sampled_from([58081, 58082]),
    http_port=st.just(8081),
    cluster=st.just("home"),
)
sightings = st.builds(
    Sighting,
    st.sampled_from(PeerSource),
    shards,
    st.lists(routes, min_size=1, max_size=3).map(tuple),
    st.none() | st.just("wrong key"),
)


@given(st.lists(sightings, max_size=6).flatmap(lambda s: st.tuples(st.just(s), st.permutations(s))))
def test_order_of_sightings_does_not_matter(orders: tuple[list[Sighting], list[Sighting]]) -> None:
    one, other = orders
    assert merge(one, HOME) == merge(other, HOME)
    assert list(merge(one, HOME)) == list(merge(other, HOME))


@given(st.lists(sightings, max_size=6))
def test_every_shard_is_one_peer_and_no_address_is_twice(seen_now: list[Sighting]) -> None:
    peers = merge(seen_now, HOME)
    assert len(peers) == len({sighting.shard.id for sighting in seen_now})
    for name, peer in peers.items():
        assert name == peer.name
        assert len({address.host for address in peer.addresses}) == len(peer.addresses)


uuids = st.uuids().map(str)
ports = st.builds(ThunderboltPort, uuids, st.lists(uuids, max_size=4).map(tuple))
named_media = st.sampled_from([Medium.THUNDERBOLT, Medium.ETHERNET, Medium.WIFI])
addresses = st.lists(
    st.builds(PeerAddress, st.ip_addresses().map(str), named_media),
    max_size=4,
    unique_by=lambda address: address.host,
)


@given(addresses, st.lists(ports, max_size=4))
def test_txt_record_round_trip(own: list[PeerAddress], thunderbolt: list[ThunderboltPort]) -> None:
    shard = replace(STUDIO, addresses=tuple(own), thunderbolt=tuple(thunderbolt))
    txt = to_txt(shard)
    assert all(len(f"{key}={value}".encode()) <= 255 for key, value in txt.items())
    assert from_txt(txt, [address.host for address in own]) == shard
