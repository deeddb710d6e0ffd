"""Kept prefixes on a ring: who drops them, what happens when they are gone, answers that share a prompt."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dnet_core.coordinator import Coordinator
from dnet_core.events import SessionStarted
from dnet_core.generate.keeping import Keeper
from dnet_core.tasks import TaskScope
from dnet_core.transport.control import SessionOrder, ShardStatus
from dnet_core.transport.grpc_client import ShardClient
from dnet_core.types.generation import SamplingParams, TokenText
from tests.conftest import Rings
from tests.golden.test_prefixes import CHUNK, NEVER_END, MlxLm, answer
from tests.ring_tools import reference_tokens, ring_plan, statuses, until_idle
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

GREEDY = SamplingParams(max_tokens=8, logit_bias=NEVER_END)
CONTEXT = 512


def prompt(first: int, length: int = 60) -> tuple[int, ...]:
    return tuple((first * 31 + 7 * i) % 250 + 5 for i in range(length))


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return write_tiny_model("llama", models / "prefixes")


async def loaded(rings: Rings, model: Path, shards: int = 2) -> Coordinator:
    ring = await rings(shards)
    await ring.load(str(model), ring_plan(model, ring.peers, [5] if shards == 1 else [2, 5]), CHUNK)
    return ring


def prefixes(found: tuple[ShardStatus, ...]) -> list[set[str]]:
    return [set(status.prefixes) for status in found]


async def test_all_shards_keep_the_same_and_unload_drops_it(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    for first in range(3):
        await answer(ring, prompt(first), GREEDY)
    found = await statuses(ring)
    one, other = prefixes(found)
    assert one == other
    assert len(one) == 3
    assert all(status.prefix_bytes > 0 for status in found)
    await ring.unload()
    found = await statuses(ring)
    assert prefixes(found) == [set(), set()]
    assert all(status.prefix_bytes == 0 for status in found)


async def test_a_prefix_that_a_shard_has_lost_is_read_anew(
    rings: Rings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One shard only: the others must not go on with what they have."""
    ring = await loaded(rings, model)
    tokens = prompt(1)
    expected, _ = await answer(ring, tokens, GREEDY)
    client: ShardClient = ring._driver()._shards[1]
    (kept,) = (await statuses(ring))[1].prefixes
    await client.drop_prefixes([kept])
    got, done = await answer(ring, tokens, GREEDY)
    assert done.cached_tokens == 0
    assert [t.token for t in got] == [t.token for t in expected]
    one, other = prefixes(await until_idle(ring))
    assert one == other
    assert kept not in one
    _, done = await answer(ring, tokens, GREEDY)
    assert done.cached_tokens == len(tokens) - 1


async def test_a_stopped_answer_is_kept_as_far_as_all_shards_have_it(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    tokens = prompt(5)
    heard: list[int] = []
    async with aclosing(ring.generate_from(tokens, replace(GREEDY, max_tokens=400))) as events:
        async for event in events:
            if isinstance(event, TokenText):
                heard.append(event.token)
                if len(heard) == 20:
                    break
    await until_idle(ring)
    following = (*tokens, *heard, 9, 8, 7)
    got, done = await answer(ring, following, GREEDY)
    assert len(tokens) + 19 <= done.cached_tokens <= len(tokens) + 20
    mlx_lm = MlxLm(model)
    mlx_lm.turn(tokens, done.cached_tokens - len(tokens) + 1, NEVER_END)
    assert [t.token for t in got] == mlx_lm.turn(following, 8, NEVER_END)


@pytest.mark.parametrize("shards", [1, 2])
async def test_answers_share_a_prompt_that_is_read_once(shards: int, rings: Rings, model: Path) -> None:
    """With seeds they are, bit for bit, the answers that each would have been alone."""
    ring = await loaded(rings, model, shards)
    tokens = prompt(8, 100)
    requests = [replace(GREEDY, temperature=1.0, seed=seed, logprobs=2) for seed in range(4)]

    def bits(got: list[TokenText]) -> list[tuple[Any, ...]]:
        return [(t.token, t.logprob, t.top_logprobs) for t in got]

    alone = []
    for request in requests:
        ring = await loaded(rings, model, shards)  # knows nothing
        alone.append(bits((await answer(ring, tokens, request))[0]))
    ring = await loaded(rings, model, shards)
    steps = sum(status.steps for status in await statuses(ring))
    assert await ring.read(tokens, 0) == 0
    read = sum(status.steps for status in await until_idle(ring)) - steps
    assert read == 7 * shards, "99 tokens in chunks of 16, on each shard"
    together = await asyncio.gather(*(answer(ring, tokens, request) for request in requests))
    assert [bits(got) for got, _ in together] == alone
    assert {done.cached_tokens for _, done in together} == {len(tokens) - 1}
    assert len({tuple(got) for got in map(tuple, alone)}) == 4
    assert await ring.read(tokens, 0) == len(tokens) - 1


@pytest.mark.parametrize("seed", [None, 3])
async def test_a_prompt_is_read_once_although_the_first_answer_takes_its_place(
    seed: int | None, rings: Rings, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All answers have come before the first one ends; the second one is just being opened then."""
    ring = await loaded(rings, model)
    tokens = prompt(9, 100)
    await ring.read(tokens, seed)
    steps = sum(status.steps for status in await until_idle(ring))
    come: list[str] = []
    all_are_here, first_has_ended = asyncio.Event(), asyncio.Event()
    open_session = ShardClient.open_session

    async def opened(client: ShardClient, driver: str, order: SessionOrder) -> None:
        if order.session not in come:
            come.append(order.session)
        await (all_are_here if order.session == come[0] else first_has_ended).wait()
        await open_session(client, driver, order)

    monkeypatch.setattr(ShardClient, "open_session", opened)
    async with ring.subscribe() as events, TaskScope() as tasks:
        sampling = replace(GREEDY, seed=seed, max_tokens=2)
        answers = [tasks.start(answer(ring, tokens, sampling)) for _ in range(4)]
        for _ in answers:
            while not isinstance(await anext(events), SessionStarted):
                pass
        all_are_here.set()
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        first_has_ended.set()
        told = await asyncio.gather(*answers)
    assert {done.cached_tokens for _, done in told} == {len(tokens) - 1}
    read = sum(status.steps for status in await until_idle(ring)) - steps
    assert read == 4 * 2 * len(ring.peers), "a step per token of the answers on each shard"


async def test_when_a_prefix_is_gone_the_next_best_is_taken(rings: Rings, model: Path) -> None:
    ring = await loaded(rings, model)
    shared = prompt(2, 40)
    await answer(ring, (*shared, *prompt(3, 30)), GREEDY)
    older = set((await statuses(ring))[0].prefixes)
    tokens = (*shared, *prompt(4, 30))
    await answer(ring, tokens, GREEDY)
    (newer,) = set((await statuses(ring))[0].prefixes) - older
    await ring._driver()._shards[0].drop_prefixes([newer])
    _, done = await answer(ring, tokens, GREEDY)
    assert done.cached_tokens == len(shared)


async def test_another_head_finds_nothing(rings: Rings, model: Path) -> None:
    """A driver that goes takes its prefixes with it."""
    ring = await loaded(rings, model)
    await answer(ring, prompt(3), GREEDY)
    assert all(prefixes(await statuses(ring)))
    driver = ring._driver()
    stranger = Keeper(driver._shards, CHUNK)
    order = driver.begin(prompt(3), GREEDY).order
    assert driver._keeper.find(prompt(3), order) is not None
    assert stranger.find(prompt(3), order) is None
    expected = reference_tokens(model, prompt(3), 8, CHUNK)
    await loaded(rings, model)
    assert prefixes(await statuses(ring)) == [set(), set()]
    got, _ = await answer(ring, prompt(3), replace(GREEDY, logit_bias=()))
    assert [t.token for t in got] == expected
