"""A shard that is killed: its answers end with PeerLost within seconds, and the rest of the ring goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.errors import NotReady, PeerLost
from dnet_core.events import Event, LoadFailed, ModelUnloaded, PeerLeft
from dnet_core.types.generation import GenerationEvent, PromptProgress, SamplingParams, TokenText
from dnet_core.types.ring import split_evenly
from tests.ring.processes import local_process
from tests.ring_tools import reference_tokens, ring_tokens, statuses
from tests.tiny_models import EOS, make_tokenizer, write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100, 33, 7, 11, 60, 8)
LONG_PROMPT = tuple(7 + i % 250 for i in range(1500))
ENDLESS = SamplingParams(max_tokens=2000, logit_bias=((make_tokenizer().token_to_id(EOS), -100.0),))
CHUNK = 4
NOTICED_S = 5.0


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return write_tiny_model("llama", models / "lost")


@pytest_asyncio.fixture(loop_scope="session")
async def ring() -> AsyncIterator[Coordinator]:
    """Three shards of its own: they will not survive."""
    async with Coordinator(ClusterOptions(local_shards=3)) as coordinator:
        await coordinator.wait_for_local_shards()
        yield coordinator


async def load(ring: Coordinator, model: Path) -> None:
    names = tuple(peer.name for peer in ring.peers)
    await ring.load(str(model), split_evenly(str(model), 5, names, 1, 4096), CHUNK)


async def check_exact(ring: Coordinator, model: Path) -> None:
    answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=8))
    assert [token.token for token in answer] == reference_tokens(model, PROMPT, 8, CHUNK)


async def lose(ring: Coordinator, name: str, prompts: tuple[tuple[int, ...], ...]) -> None:
    """Kill the shard `name` while all `prompts` are answered; check what readers and listeners hear."""
    told: list[Event] = []
    names = [peer.name for peer in ring.peers]
    process = local_process(ring, name)
    assert ring.loaded is not None
    model = ring.loaded.model
    all_begun = asyncio.Barrier(len(prompts) + 1)

    async def read(prompt: tuple[int, ...]) -> None:
        is_waiting = True
        async for event in ring.generate_from(prompt, ENDLESS):
            assert isinstance(event, PromptProgress if len(prompt) > 1000 else GenerationEvent)
            if is_waiting and isinstance(event, TokenText if len(prompt) < 1000 else PromptProgress):
                is_waiting = False
                await all_begun.wait()

    async with ring.subscribe() as events:
        reading = asyncio.gather(*map(read, prompts), return_exceptions=True)
        await all_begun.wait()
        process.kill()
        async with asyncio.timeout(NOTICED_S):
            results = await reading
            while not {ModelUnloaded, PeerLeft} <= {type(event) for event in told}:
                told.append(await anext(events))
    for lost in results:
        assert isinstance(lost, PeerLost)
        assert name in str(lost)
        assert lost.peer in names
    assert [event.name for event in told if isinstance(event, PeerLeft)] == [name]
    assert [event.model for event in told if isinstance(event, LoadFailed)] == [model]
    assert ring.loaded is None
    await ring.unload()  # waits for the one in hand
    names.remove(name)
    assert [peer.name for peer in ring.peers] == names
    assert [(s.name, s.model, s.sessions) for s in await statuses(ring)] == [(n, None, ()) for n in names]


async def test_a_ring_that_loses_one_shard_after_the_other(ring: Coordinator, model: Path) -> None:
    """In the middle, at the end and at the beginning; while prompts are read and while tokens are made."""
    first, middle, last = (peer.name for peer in ring.peers)
    for name, prompts in (
        (middle, (PROMPT, LONG_PROMPT, PROMPT[::-1])),
        (last, (LONG_PROMPT,)),
        (first, (PROMPT,)),
    ):
        await load(ring, model)
        await check_exact(ring, model)
        await lose(ring, name, prompts)
    with pytest.raises(NotReady, match="no device"):
        await ring.load(str(model), None, CHUNK)
