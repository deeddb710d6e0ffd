"""Who is there: shards found by mDNS, by `--peer` or by a hostfile, as one stream of changes.

    interfaces.py    this host's interfaces and what they run over
    thunderbolt.py   which devices share a Thunderbolt cable
    announcement.py  what a shard says of itself
    mdns.py          announcing and hearing it by multicast
    static.py        targets a person wrote down
    sightings.py     sightings of one shard -> one Peer (pure)
    peers.py         Discovery: all sources -> PeerSeen, PeerVanished

Import names from their module; this file exports nothing.
"""
