"""A shard that is killed in mid-answer: its readers see a pause, and the text that they would have had."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import pytest_asyncio
from llguidance import LLMatcher

from dnet_core import planning
from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.discover.static import parse_target
from dnet_core.errors import InfeasiblePlan, NotReady, PeerLost
from dnet_core.events import (
    Event,
    LoadFailed,
    LoadStarted,
    ModelUnloaded,
    PeerJoined,
    PeerLeft,
    PeerOffered,
    Recovered,
    RecoveryStarted,
    RingLost,
    SessionStarted,
)
from dnet_core.memory_option import memory_limit
from dnet_core.planning import Prepared, Wishes, plan_on
from dnet_core.store.catalog import SAMPLE_ID
from dnet_core.transport import grpc_link
from dnet_core.transport.control import ShardStatus
from dnet_core.types.generation import (
    FinishReason,
    GenerationDone,
    GenerationEvent,
    Paused,
    PromptProgress,
    Resumed,
    SamplingParams,
    TokenText,
)
from dnet_core.types.ring import RingPlan, split_evenly
from tests.ring.processes import local_process, shard_process
from tests.ring.sampling_reference import reference_answer
from tests.ring_tools import until_idle
from tests.tiny_models import EOS, make_tokenizer, write_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = (5, 17, 42, 9, 100, 33, 7, 11, 60, 8)
LONG_PROMPT = tuple(7 + i % 250 for i in range(600))
NO_EOS = ((make_tokenizer().token_to_id(EOS), -100.0),)
GREEDY = SamplingParams(max_tokens=150, logit_bias=NO_EOS)
"""Long enough not to end by itself before the shard does."""
SEEDED = replace(
    GREEDY,
    temperature=0.9,
    top_p=0.95,
    seed=11,
    repetition_penalty=1.2,
    presence_penalty=0.5,
    frequency_penalty=0.3,
)
GRAMMAR = LLMatcher.grammar_from_regex(r"([a-f]{1,9} the lazy dog ){200}")
CHUNK = 4


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return write_tiny_model("llama", models / "recovery", overrides={"max_position_embeddings": 4096})


@pytest_asyncio.fixture(loop_scope="session")
async def ring(model: Path) -> AsyncIterator[Coordinator]:
    """Three shards of its own, with the model loaded: they will not all survive."""
    async with Coordinator(ClusterOptions(local_shards=3)) as coordinator:
        await coordinator.load(str(model), None, CHUNK)
        yield coordinator


class Reader:
    """What the reader of one answer sees."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.events: list[GenerationEvent] = []
        self.news = asyncio.Event()
        self.is_over = False

    async def read(self, ring: Coordinator, prompt: Sequence[int], sampling: SamplingParams) -> Reader:
        try:
            async for event in ring.generate_from(tuple(prompt), sampling):
                self.events.append(event)
                if isinstance(event, TokenText):
                    self.tokens.append(event.token)
                    self.text += event.text
                self.news.set()
        finally:
            self.is_over = True
            self.news.set()
        return self

    async def until(self, kind: type[GenerationEvent], count: int) -> None:
        """Wait until `count` events of `kind` have been seen."""
        while len(self.seen(kind)) < count:
            assert not self.is_over, f"the answer ended before {count} x {kind.__name__}"
            self.news.clear()
            await self.news.wait()

    def seen(self, kind: type[GenerationEvent]) -> list[GenerationEvent]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def done(self) -> GenerationDone:
        last = self.events[-1]
        assert isinstance(last, GenerationDone)
        return last


class Listener:
    """What is told of the cluster while the block of `listening` runs."""

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events
        self.told: list[Event] = []

    async def until(self, kind: type[Event]) -> Event:
        """The next event of `kind`."""
        async for event in self._events:
            self.told.append(event)
            if isinstance(event, kind):
                return event
        raise AssertionError("events do not end")


@asynccontextmanager
async def listening(ring: Coordinator) -> AsyncIterator[Listener]:
    async with ring.subscribe() as events:
        yield Listener(events)


def kill(ring: Coordinator, index: int) -> str:
    """Kill the shard at `index` of the loaded ring; its name."""
    assert ring.loaded is not None
    name = ring.loaded.plan.assignments[index].peer
    local_process(ring, name).kill()
    return name


async def still_there(ring: Coordinator) -> list[ShardStatus]:
    """What the shards that live say of themselves."""
    return [status for _, status in await ring.survey() if isinstance(status, ShardStatus)]


async def check_empty(ring: Coordinator) -> None:
    """Nothing is loaded and no session open on the two shards that live, and on the third if it is back."""
    assert ring.loaded is None
    found = [(s.model, s.sessions) for s in await still_there(ring)]
    assert len(found) >= 2
    assert set(found) == {(None, ())}


async def check_whole(ring: Coordinator, model: Path) -> None:
    """Every shard of the ring has the model and no session; the next answer is exact."""
    assert ring.loaded is not None
    there = {status.name: status for status in await until_idle(ring)}
    for assignment in ring.loaded.plan.assignments:
        assert there[assignment.peer].model == str(model)
    short = replace(GREEDY, max_tokens=20)
    answer = await Reader().read(ring, PROMPT[::-1], short)
    assert answer.tokens == expected(model, PROMPT[::-1], short)


@cache
def expected(model: Path, prompt: tuple[int, ...], sampling: SamplingParams) -> list[int]:
    """The answer of mlx-lm in this process."""
    return [
        token.token
        for token in reference_answer(model, prompt, replace(sampling, seed=sampling.seed or 0), CHUNK)
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [((1, 0), (2, -1)), ((2, 1), (3, 0)), ((3, -1), (10, -1)), ((10, 0), (11, 0)), ((0, 1), (1, 0))],
)
async def test_two_shards_are_lost_one_after_the_other(
    first: tuple[int, int], second: tuple[int, int], ring: Coordinator, model: Path
) -> None:
    """Killed after so many tokens at that place of the ring: head, middle and tail."""
    reader = Reader()
    async with asyncio.TaskGroup() as tasks, listening(ring) as listener:
        tasks.create_task(reader.read(ring, PROMPT, GREEDY))
        for losses, (count, place) in enumerate((first, second), 1):
            await reader.until(TokenText if count else PromptProgress, count or 1)
            name = kill(ring, place)
            lost = await listener.until(RingLost)
            assert isinstance(lost, RingLost)
            assert lost.peer == name
            await reader.until(Resumed, losses)
    assert reader.tokens == expected(model, PROMPT, GREEDY)
    paused, resumed = reader.seen(Paused), reader.seen(Resumed)
    assert [type(event) for event in (*paused, *resumed)] == [Paused, Paused, Resumed, Resumed]
    assert [len(event.peers) for event in resumed if isinstance(event, Resumed)] == [2, 1]
    assert reader.done.completion_tokens == GREEDY.max_tokens
    assert reader.done.prompt_tokens == len(PROMPT)
    assert reader.done.finish_reason is FinishReason.LENGTH
    await check_whole(ring, model)


async def test_answers_that_run_at_once_all_go_on(ring: Coordinator, model: Path) -> None:
    """With a seed, penalties and a stop string; bound to a grammar; and one whose prompt is being read."""
    undisturbed = await Reader().read(ring, PROMPT, SEEDED)
    stop = undisturbed.text[len(undisturbed.text) * 2 // 3 :][:4]
    stopping = replace(SEEDED, stop=(stop,))
    short = replace(GREEDY, max_tokens=4)
    bound = replace(SEEDED, grammar=GRAMMAR)
    asked = ((PROMPT, SEEDED), (PROMPT, stopping), (PROMPT[::-1], bound), (LONG_PROMPT, short))
    # Not the long one: its prompt would be known, and not be read any more when the shard is lost.
    alone = [await Reader().read(ring, *question) for question in asked[:3]]
    readers = [Reader() for _ in asked]
    async with asyncio.TaskGroup() as tasks:
        for reader, question in zip(readers, asked, strict=True):
            tasks.create_task(reader.read(ring, *question))
        await asyncio.gather(readers[0].until(TokenText, 3), readers[3].until(PromptProgress, 5))
        kill(ring, 1)
    assert [reader.tokens for reader in readers[:3]] == [reader.tokens for reader in alone]
    assert [reader.text for reader in readers[:3]] == [reader.text for reader in alone]
    assert [r.done.finish_reason for r in readers[:3]] == [r.done.finish_reason for r in alone]
    assert all(len(reader.seen(Paused)) == 1 for reader in readers)
    assert readers[0].tokens == expected(model, PROMPT, SEEDED)
    assert readers[1].done.finish_reason is FinishReason.STOP
    assert stop not in readers[1].text
    assert readers[2].tokens == expected(model, PROMPT[::-1], bound)
    assert readers[3].tokens == expected(model, LONG_PROMPT, short)
    await check_whole(ring, model)


async def test_an_idle_ring_is_made_whole(ring: Coordinator, model: Path) -> None:
    async with listening(ring) as listener:
        name = kill(ring, 0)
        found = await listener.until(Recovered)
        assert isinstance(found, Recovered)
        assert name not in [assignment.peer for assignment in found.plan.assignments]
        assert found.seconds >= found.solve_s + found.load_s
    await check_whole(ring, model)


async def test_a_second_shard_is_lost_while_the_ring_is_made_anew(ring: Coordinator, model: Path) -> None:
    reader = Reader()
    async with asyncio.TaskGroup() as tasks, listening(ring) as listener:
        tasks.create_task(reader.read(ring, PROMPT, GREEDY))
        await reader.until(TokenText, 3)
        first = kill(ring, 1)
        started = await listener.until(LoadStarted)
        assert isinstance(started, LoadStarted)
        second = started.plan.assignments[-1].peer
        local_process(ring, second).kill()
        found = await listener.until(Recovered)
    assert isinstance(found, Recovered)
    (left,) = found.plan.assignments
    assert left.peer not in (first, second)
    lost = [event.peer for event in listener.told if isinstance(event, RingLost)]
    assert lost == [first, second]
    assert reader.tokens == expected(model, PROMPT, GREEDY)
    await check_whole(ring, model)


async def test_a_second_shard_has_ended_before_the_plan_that_counts_on_it_is_made(
    ring: Coordinator, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, plan_on = threading.Event(), planning.plan_on

    def slow(prepared: Prepared, names: Collection[str], plan: RingPlan) -> Prepared:
        go_on.wait()
        return plan_on(prepared, names, plan)

    monkeypatch.setattr(planning, "plan_on", slow)
    reader = Reader()
    async with asyncio.TaskGroup() as tasks, listening(ring) as listener:
        tasks.create_task(reader.read(ring, PROMPT, GREEDY))
        await reader.until(TokenText, 3)
        kill(ring, 1)
        await listener.until(RecoveryStarted)
        second = kill(ring, -1)
        while second in [peer.name for peer in ring.peers]:
            await listener.until(PeerLeft)
        go_on.set()
    assert reader.tokens == expected(model, PROMPT, GREEDY)
    await check_whole(ring, model)


async def test_a_shard_is_lost_while_a_session_is_opened_on_another(ring: Coordinator, model: Path) -> None:
    """The call that is under way ends with the ring; the answer does not."""
    assert ring.loaded is not None
    busy = local_process(ring, ring.loaded.plan.assignments[0].peer)
    reader = Reader()
    async with asyncio.TaskGroup() as tasks, listening(ring) as listener:
        busy.send_signal(signal.SIGSTOP)
        tasks.create_task(reader.read(ring, PROMPT, GREEDY))
        await listener.until(SessionStarted)
        kill(ring, -1)
        await reader.until(Paused, 1)
        busy.send_signal(signal.SIGCONT)
    assert reader.tokens == expected(model, PROMPT, GREEDY)
    await check_whole(ring, model)


async def test_an_answer_that_is_given_up_while_it_waits(ring: Coordinator, model: Path) -> None:
    count = 0
    async with aclosing(ring.generate_from(PROMPT, GREEDY)) as events:
        async for event in events:
            count += isinstance(event, TokenText)
            if count == 3 and isinstance(event, TokenText):
                kill(ring, 1)
            if isinstance(event, Paused):
                break
    async with listening(ring) as listener:
        await listener.until(Recovered)
    await check_whole(ring, model)


async def test_a_coordinator_that_ends_ends_answers_that_wait(model: Path) -> None:
    reader = Reader()
    async with Coordinator(ClusterOptions(local_shards=2)) as ring:
        await ring.load(str(model), None, CHUNK)
        reading = asyncio.ensure_future(reader.read(ring, PROMPT, GREEDY))
        await reader.until(TokenText, 3)
        kill(ring, 0)
        await reader.until(Paused, 1)
    with pytest.raises(NotReady, match="has ended"):
        await reading


async def test_unloading_ends_answers_that_wait(ring: Coordinator, model: Path) -> None:
    reader = Reader()
    reading = asyncio.ensure_future(reader.read(ring, PROMPT, GREEDY))
    async with listening(ring) as listener:
        await reader.until(TokenText, 3)
        kill(ring, 1)
        await listener.until(RecoveryStarted)
        await ring.unload()
        with pytest.raises(NotReady, match="unloaded"):
            await reading
    await check_empty(ring)
    await ring.load(str(model), None, CHUNK)
    await check_whole(ring, model)


async def test_a_load_that_is_cancelled_after_it_has_stopped_a_recovery(
    ring: Coordinator, model: Path, tmp_path: Path
) -> None:
    """Neither of the two goes on: answers are told, and nothing stays half loaded."""
    other = write_tiny_model("qwen2", tmp_path / "other")
    reader = Reader()
    reading = asyncio.ensure_future(reader.read(ring, PROMPT, GREEDY))
    async with listening(ring) as listener:
        await reader.until(TokenText, 3)
        kill(ring, 1)
        await listener.until(RecoveryStarted)
        loading = asyncio.ensure_future(ring.load(str(other), None, CHUNK))
        await asyncio.sleep(0)  # it waits for the recovery to let go
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        with pytest.raises(NotReady, match="another model"):
            await reading
        await listener.until(ModelUnloaded)
    await check_empty(ring)
    await ring.load(str(model), None, CHUNK)
    await check_whole(ring, model)


async def test_a_load_that_is_cancelled_before_the_recovery_that_it_stops_has_begun(
    ring: Coordinator, model: Path, tmp_path: Path
) -> None:
    other = write_tiny_model("qwen2", tmp_path / "other")
    async with listening(ring) as listener:
        kill(ring, 1)
        await listener.until(RingLost)  # the recovery runs its first step after this one
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await ring.load(str(other), None, CHUNK)
    assert not ring.is_changing
    assert not any(isinstance(event, RecoveryStarted) for event in listener.told)
    await check_empty(ring)
    await ring.load(str(model), None, CHUNK)
    await check_whole(ring, model)


async def test_a_second_load_does_not_wait_for_the_one_that_stops_a_recovery(
    ring: Coordinator, model: Path, tmp_path: Path
) -> None:
    other = write_tiny_model("qwen2", tmp_path / "other")
    async with listening(ring) as listener:
        kill(ring, 1)
        await listener.until(RecoveryStarted)
        loading = asyncio.ensure_future(ring.load(str(other), None, CHUNK))
        await asyncio.sleep(0)
        with pytest.raises(NotReady, match="being loaded"):
            await ring.load(str(model), None, CHUNK)
        assert (await loading).model == str(other)
    assert ring.loaded is not None
    assert ring.loaded.model == str(other)


async def test_another_model_goes_before_a_recovery(ring: Coordinator, model: Path, tmp_path: Path) -> None:
    other = write_tiny_model("qwen2", tmp_path / "other")
    async with listening(ring) as listener:
        kill(ring, 1)
        await listener.until(RecoveryStarted)
        loaded = await ring.load(str(other), None, CHUNK)
    assert loaded.model == str(other)
    assert not any(isinstance(event, Recovered) for event in listener.told)
    answer = await Reader().read(ring, PROMPT, GREEDY)
    assert answer.tokens == expected(other, PROMPT, GREEDY)


async def test_a_shard_that_is_back_is_offered_and_not_forced(ring: Coordinator, model: Path) -> None:
    endless = replace(GREEDY, max_tokens=3000)
    undisturbed = await Reader().read(ring, PROMPT, replace(endless, max_tokens=400))
    reader = Reader()
    reading = asyncio.ensure_future(reader.read(ring, PROMPT, endless))
    async with listening(ring) as listener:
        await reader.until(TokenText, 3)
        name = kill(ring, 1)
        offered = await listener.until(PeerOffered)
        assert offered == PeerOffered(name, str(model))
        assert ring.offered == (name,)
        assert ring.loaded is not None
        assert name not in [a.peer for a in ring.loaded.plan.assignments]
        loaded = await ring.take_in()
        assert name in [assignment.peer for assignment in loaded.plan.assignments]
        assert ring.offered == ()
        with pytest.raises(NotReady, match="no device is back"):
            await ring.take_in()
        count = len(reader.tokens)
        await reader.until(Resumed, 2)
        await reader.until(TokenText, max(400, count + 20))
    reading.cancel()
    assert reader.tokens[:400] == undisturbed.tokens
    whys = [event.reason for event in reader.seen(Paused) if isinstance(event, Paused)]
    assert "left the ring" in whys[0]
    assert "takes part again" in whys[1]
    with pytest.raises(asyncio.CancelledError):
        await reading
    await check_whole(ring, model)


async def test_shards_on_other_machines(model: Path) -> None:
    """Over TCP with TLS, found by their addresses: one is killed, started again there, and taken in."""
    async with AsyncExitStack() as stack:
        shards = [await stack.enter_async_context(shard_process(f"mac{i}")) for i in range(3)]
        static = tuple(parse_target(shard.target) for shard in shards)
        ring = await stack.enter_async_context(Coordinator(ClusterOptions(local_shards=0, static=static)))
        names = tuple(shard.name for shard in shards)
        async with listening(ring) as listener:
            while len(ring.peers) < len(shards):
                await listener.until(PeerJoined)
            await ring.load(str(model), split_evenly(str(model), 5, names, 1, 512), CHUNK)
            reader = Reader()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(reader.read(ring, PROMPT, GREEDY))
                await reader.until(TokenText, 3)
                shards[1].process.kill()
                await listener.until(Recovered)
            assert reader.tokens == expected(model, PROMPT, GREEDY)
            assert ring.offered == ()
            await stack.enter_async_context(shard_process("mac1", shards[1].grpc_port))
            assert await listener.until(PeerOffered) == PeerOffered("mac1", str(model))
            await ring.take_in()
        await check_whole(ring, model)


async def test_a_survivor_that_gets_no_layers_is_unloaded(ring: Coordinator, model: Path) -> None:
    """A person has put layers where the solver would not: what follows is planned without it."""
    await ring.unload()
    names = tuple(peer.name for peer in ring.peers)
    await ring.prepare(str(model), Wishes(excluded=frozenset({names[2]})))
    await ring.load(str(model), split_evenly(str(model), 5, names, 1, 512), CHUNK)
    async with listening(ring) as listener:
        kill(ring, 1)
        found = await listener.until(Recovered)
    assert isinstance(found, Recovered)
    assert [assignment.peer for assignment in found.plan.assignments] == [names[0]]
    there = {status.name: status for status in await until_idle(ring)}
    assert there[names[2]].model is None
    await check_whole(ring, model)


async def test_nobody_is_left(model: Path) -> None:
    async with Coordinator(ClusterOptions(local_shards=1)) as ring, listening(ring) as listener:
        await ring.load(str(model), None, CHUNK)
        reader = Reader()
        reading = asyncio.ensure_future(reader.read(ring, PROMPT, GREEDY))
        await reader.until(TokenText, 3)
        name = kill(ring, 0)
        with pytest.raises(PeerLost, match="no other device") as caught:
            await reading
        assert caught.value.peer == name
        await listener.until(LoadFailed)
        await listener.until(ModelUnloaded)
        # Its process is started again: it serves when it is asked to, not before.
        await listener.until(PeerJoined)
        assert ring.loaded is None
        await ring.load(str(model), None, CHUNK)
        await check_whole(ring, model)


def least_megabytes(prepared: Prepared, names: tuple[str, ...]) -> int:
    """The memory that each of these devices needs, if the others were not there."""

    def fits(megabytes: int) -> bool:
        devices = [replace(d, memory_budget_bytes=megabytes * 10**6) for d in prepared.request.devices]
        request = replace(prepared.request, devices=tuple(devices))
        try:
            plan_on(replace(prepared, request=request), names, prepared.solution.plan)
        except InfeasiblePlan:
            return False
        return True

    return next(megabytes for megabytes in range(1, 10_000) if fits(megabytes))


async def test_survivors_that_cannot_hold_the_model(models: Path) -> None:
    """Three can, two cannot: the answer ends with what is missing, and nothing stays loaded."""
    model = write_tiny_model("llama", models / "long", overrides={"max_position_embeddings": 1 << 17})
    wishes = Wishes(context_tokens=1 << 17)
    async with Coordinator(ClusterOptions(local_shards=3), wishes) as ring:
        prepared = await ring.prepare(str(model))
    names = tuple(device.peer for device in prepared.request.devices)
    enough = least_megabytes(prepared, names)
    assert enough < least_megabytes(prepared, names[1:])
    budget = memory_limit(f"{enough}MB")
    async with Coordinator(ClusterOptions(local_shards=3, memory=budget), wishes) as ring:
        await ring.load(str(model), None, CHUNK)
        reader = Reader()
        reading = asyncio.ensure_future(reader.read(ring, PROMPT, GREEDY))
        await reader.until(TokenText, 3)
        name = kill(ring, 0)
        with pytest.raises(InfeasiblePlan) as caught:
            await reading
        assert str(caught.value).startswith(f"{name} left the ring")
        left = {peer.name for peer in ring.peers if peer.name != name}
        assert caught.value.missing_bytes
        assert set(caught.value.missing_bytes) <= left
        assert all(missing > 0 for missing in caught.value.missing_bytes.values())
        await ring.unload()  # waits for the one in hand
        assert ring.loaded is None
        assert [(s.model, s.sessions) for s in await still_there(ring) if s.name in left] == [(None, ())] * 2


async def test_a_ring_that_was_placed_by_hand_without_measuring(ring: Coordinator, model: Path) -> None:
    """Nothing is known of the devices: they are measured before they are given more."""
    await ring.unload()
    names = tuple(peer.name for peer in ring.peers)
    async with Coordinator(ClusterOptions(local_shards=3)) as other:
        await other.wait_for_local_shards()
        await other.load(str(model), split_evenly(str(model), 5, names, 1, 512), CHUNK)
        assert other.prepared is None
        reader = Reader()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reader.read(other, PROMPT, GREEDY))
            await reader.until(TokenText, 3)
            kill(other, 2)
        assert reader.tokens == expected(model, PROMPT, GREEDY)
        assert other.loaded is not None
        assert other.loaded.context_tokens == 512
        await check_whole(other, model)


async def test_a_shard_that_hangs_is_lost_like_one_that_is_gone(
    ring: Coordinator, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_link, "PING_DEADLINE_S", 1.0)  # the head's; between shards it stays long
    assert ring.loaded is not None
    name = ring.loaded.plan.assignments[1].peer
    process = local_process(ring, name)
    reader = Reader()
    async with asyncio.TaskGroup() as tasks, listening(ring) as listener:
        tasks.create_task(reader.read(ring, PROMPT, GREEDY))
        await reader.until(TokenText, 3)
        process.send_signal(signal.SIGSTOP)
        await reader.until(GenerationDone, 1)
        assert reader.tokens == expected(model, PROMPT, GREEDY)
        await listener.until(PeerLeft)  # by now it has not been offered
        assert not any(isinstance(event, PeerOffered) for event in listener.told)
        process.send_signal(signal.SIGCONT)
        assert await listener.until(PeerOffered) == PeerOffered(name, str(model))
        await ring.take_in()
    await check_whole(ring, model)


async def test_the_sample_model_goes_on_with_the_same_words() -> None:
    """What is read anew as one prompt may differ in the last bits from what was decoded: the words do not."""
    sampling = SamplingParams(max_tokens=24)
    async with Coordinator(ClusterOptions(local_shards=3)) as ring:
        await ring.load(SAMPLE_ID)
        prompt = ring.tokenizer.encode("The lighthouse keeper opened the door and", add_special_tokens=True)
        undisturbed = await Reader().read(ring, prompt, sampling)
        reader = Reader()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(reader.read(ring, prompt, sampling))
            await reader.until(TokenText, 8)
            kill(ring, 1)
        assert len(reader.seen(Resumed)) == 1
        assert reader.text == undisturbed.text
        assert reader.tokens == undisturbed.tokens
