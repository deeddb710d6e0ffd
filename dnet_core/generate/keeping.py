"""What becomes of a session's KV on all shards when it ends: kept as one prefix everywhere, or nowhere.

Shards end at different positions: when an answer is stopped, some have run a token that others have not. A
prefix is what all of them have, and each goes back to it when it is used.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

from dnet_core.generate.prefixes import PrefixIndex
from dnet_core.transport.control import KeptPrefix, Reuse
from dnet_core.transport.grpc_client import ShardClient


class Keeper:
    """The kept prefixes of one driver's ring. Owned by the event loop."""

    def __init__(self, shards: tuple[ShardClient, ...], chunk_tokens: int) -> None:
        self._shards = shards
        self._index = PrefixIndex(chunk_tokens)

    def find(self, tokens: tuple[int, ...], *, same_bits: bool) -> Reuse | None:
        """The prefix with which a session of the prompt `tokens` may begin; see `PrefixIndex.find`."""
        return self._index.find(tokens, same_bits=same_bits)

    async def lose(self, reuse: Reuse) -> None:
        """A shard does not have this prefix any more: nobody needs it now."""
        self._index.forget(reuse.prefix)
        await self._drop([reuse.prefix])

    async def close(
        self, session: str, tokens: tuple[int, ...], prompt_tokens: int, reuse: Reuse | None
    ) -> None:
        """Close `session`, of prompt and answer so far `tokens`, and keep what all shards have of it."""
        name = uuid.uuid4().hex
        replies = await asyncio.gather(
            *(shard.close_session(session, name) for shard in self._shards), return_exceptions=True
        )
        num_tokens, can_trim = common(replies, len(tokens))
        if num_tokens == 0:
            await self._drop([name])
            return
        known = self._index.describe(tokens[:num_tokens], can_trim, prompt_tokens, reuse)
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
