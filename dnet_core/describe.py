"""What discovery asks a shard that it has an address of."""

from __future__ import annotations

from dnet_core.discover.announcement import Announcement
from dnet_core.errors import ProtocolError
from dnet_core.transport.control import ShardStatus


def announcement_of(status: ShardStatus, target: str) -> Announcement:
    """The words of the shard at `target`. Raises ProtocolError when they are none that a shard can have."""
    try:
        return Announcement(
            id=status.id,
            name=status.name,
            version=status.version,
            protocol_version=status.protocol_version,
            grpc_port=status.grpc_port,
            http_port=status.http_port,
            cluster=status.cluster,
            addresses=status.addresses,
            thunderbolt=status.thunderbolt,
        )
    except ValueError as error:
        raise ProtocolError(f"{target} says of itself what no shard can be: {error}") from error
