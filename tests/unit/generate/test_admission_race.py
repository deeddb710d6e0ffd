"""Who is told that there is no room asks again when somebody has left meanwhile."""

from __future__ import annotations

from typing import cast

from dnet_core.errors import NoRoom
from dnet_core.generate.admission import Admission
from dnet_core.generate.keeping import Keeper
from dnet_core.transport.control import Purpose, SessionOrder
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.types.generation import SamplingParams


def order(session: str) -> SessionOrder:
    return SessionOrder(
        session, 1, 1, (), (), (), SamplingParams(max_tokens=1, seed=1), 1, (), Purpose.EMBED, None
    )


async def test_the_room_comes_free_while_the_shard_says_no() -> None:
    class Shard:
        """Has room for one; the first one leaves while the second one's refusal is on its way."""

        opened: list[str]

        def __init__(self) -> None:
            self.opened = []

        async def open_session(self, _driver: str, order: SessionOrder) -> None:
            if self.opened == ["first"]:
                self.opened.append("refused")
                admission.left("first")
                raise NoRoom("shard", "none is free")
            self.opened.append(order.session)

        async def close_session(self, _session: str) -> None: ...

    shard = Shard()
    shards = (cast("ShardClient", shard),)
    admission = Admission("driver", shards, Keeper(shards, 8))
    await admission.open(order("first"), (1,))
    await admission.open(order("second"), (1,))
    assert shard.opened == ["first", "refused", "second"]
