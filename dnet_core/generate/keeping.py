"""What becomes of a session's KV on all shards when it ends: kept as one prefix everywhere, or nowhere.

Shards end at different positions: when an answer is stopped, some have run a token that others have not. A
prefix is what all of them have, and each goes back to it when it is used.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from dnet_core.generate.prefixes import Beginning, PrefixIndex
from dnet_core.transport.control import KeptPrefix, Purpose, Reuse, SessionOrder
from dnet_core.transport.grpc_client import ShardClient


class Keeper:
    """The kept prefixes of one driver's ring. Owned by the event loop."""

    def __init__(self, shards: tuple[ShardClient, ...], chunk_tokens: int) -> None:
        self._shards = shards
        self._index = PrefixIndex(chunk_tokens)

    def find(self, tokens: tuple[int, ...], order: SessionOrder) -> Beginning | None:
        """What a session of `order`, which reads `tokens`, had best begin with; see `PrefixIndex.find`."""
        if order.purpose is Purpose.EMBED:
            return None  # it needs the hidden states of all
        # What is reused may differ in the last bits: an answer with a seed is the same each time.
        return self._index.find(tokens, same_bits=order.sampling.seed is not None)

    async def lose(self, reuse: Reuse) -> None:
        """A shard does not have this prefix any more: nobody needs it now."""
        self._index.forget(reuse.prefix)
        await self._drop([reuse.prefix])

    async def close(
        self, session: str, tokens: tuple[int, ...], prompt_tokens: int, begun: Beginning | None
    ) -> None:
        """Close `session`, which has read and answered `tokens`, and keep what all shards have of it.

        Of these `prompt_tokens` were there when it was opened; it began with `begun`.
        """
        name = uuid.uuid4().hex
        replies = await asyncio.gather(
            *(shard.close_session(session, name) for shard in self._shards), return_exceptions=True
        )
        num_tokens, can_trim = common(replies, len(tokens))
        if num_tokens == 0:
            await self._drop([name])
            return
        known = self._index.describe(tokens[:num_tokens], can_trim, prompt_tokens, begun)
        await self._drop(self._index.add(name, known))

    async def _drop(self, names: Sequence[str]) -> None:
        """Let every shard forget `names`; those that are gone have."""
        if names:
            await asyncio.gather(*(s.drop_prefixes(names) for s in self._shards), return_exceptions=True)


def common(replies: Sequence[KeptPrefix | BaseException | None], most: int) -> tuple[int, bool]:
    """How many tokens all shards have kept, of at most `most`, and whether all can go back; 0: none."""
    kept = [reply for reply in replies if isinstance(reply, KeptPrefix)]
    if len(kept) < len(replies):
        return 0, False
    num_tokens = min(most, *(reply.num_tokens for reply in kept))
    if any(reply.num_tokens > num_tokens and not reply.can_trim for reply in kept):
        return 0, False
    return num_tokens, all(reply.can_trim for reply in kept)
