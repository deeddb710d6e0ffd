"""The simulated cluster: real plans, simulated times, a device that is lost in the middle of an answer."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from dnet_core.demo import models
from dnet_core.demo.answers import ANSWERS
from dnet_core.demo.cluster import DemoCluster
from dnet_core.demo.worlds import Macs
from dnet_core.errors import NotReady, RequestError, UnknownModel
from dnet_core.events import Event, ModelUnloaded, Recovered, RecoveryStarted, RingLost
from dnet_core.types.generation import (
    GenerationDone,
    GenerationEvent,
    GenerationRequest,
    Message,
    Paused,
    Resumed,
    Role,
    TokenText,
)
from dnet_core.types.ring import LayerWindow

QWEN = "mlx-community/Qwen3-235B-A22B-4bit"
LLAMA = "mlx-community/Llama-3.3-70B-Instruct-4bit"


class Hourglass:
    """A clock that moves only by pauses, which do not wait."""

    def __init__(self) -> None:
        self.now_s = 0.0

    async def pause(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)

    def clock(self) -> float:
        return self.now_s


def open_demo(count: int) -> DemoCluster:
    glass = Hourglass()
    return DemoCluster(Macs(count), pause=glass.pause, clock=glass.clock)


def question(text: str) -> GenerationRequest:
    return GenerationRequest((Message(Role.USER, text),))


async def answer_of(demo: DemoCluster, text: str) -> list[GenerationEvent]:
    async with aclosing(demo.generate(question(text))) as events:
        return [event async for event in events]


def text_of(events: list[GenerationEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenText))


async def test_four_macs_hold_what_none_of_them_holds() -> None:
    async with open_demo(4) as demo:
        loaded = await demo.load(QWEN)
        assert len(loaded.plan.assignments) == 4


@pytest.mark.parametrize(("count", "model"), [(4, QWEN), (2, LLAMA), (2, QWEN), (1, models.for_macs(1))])
async def test_answers_come_as_fast_as_the_solver_predicted(count: int, model: str) -> None:
    """Resident and streamed; the simulator knows none of the solver's formulas."""
    async with open_demo(count) as demo:
        await demo.load(model)
        assert demo.prepared is not None
        events = await answer_of(demo, "How does a ring work?")
        done = events[-1]
        assert isinstance(done, GenerationDone)
        predicted = demo.prepared.solution.prediction.tokens_per_s
        assert done.decode_tokens_per_s == pytest.approx(predicted, rel=0.1)
        laps = [event.stages for event in events if isinstance(event, TokenText)]
        lap_s = statistics.mean(
            sum(s.queue_s + s.compute_s + s.disk_wait_s + s.wire_s for s in stages) for stages in laps
        )
        assert lap_s == pytest.approx(1 / predicted, rel=0.1), "the stages tell where the time goes"


async def test_an_answer_goes_on_without_a_lost_device() -> None:
    async with open_demo(5) as demo, demo.subscribe() as told:
        await demo.load(LLAMA)
        assert demo.loaded is not None
        gone = demo.loaded.plan.assignments[0].peer
        events: list[GenerationEvent] = []
        async with aclosing(demo.generate(question("hello"))) as stream:
            async for event in stream:
                events.append(event)
                if sum(isinstance(e, TokenText) for e in events) == 5:
                    demo.lose(gone)
        paused = next(event for event in events if isinstance(event, Paused))
        resumed = next(event for event in events if isinstance(event, Resumed))
        assert paused.peer == gone
        assert gone not in resumed.peers
        assert resumed.seconds > 0
        assert text_of(events) == "".join(ANSWERS[0].tokens), "the same text as without the loss"
        assert gone not in [a.peer for a in demo.loaded.plan.assignments]
        heard = await heard_until(told, Recovered)
        assert any(isinstance(event, RingLost) and event.peer == gone for event in heard)
        demo.rejoin(gone)
        assert demo.offered == (gone,)
        assert gone in [a.peer for a in (await demo.take_in()).plan.assignments]


async def test_what_the_others_cannot_hold_ends_the_answer_with_the_reason() -> None:
    async with open_demo(4) as demo:
        await demo.load(QWEN)
        stream = demo.generate(question("hello"))
        async with aclosing(stream):
            await anext(stream)
            for name in ("studio", "mbp-16", "mini", "air"):
                demo.lose(name)
            with pytest.raises(RequestError, match="no device is left"):
                async for _ in stream:
                    pass
        assert demo.loaded is None


async def until_token(stream: AsyncIterator[GenerationEvent], count: int) -> None:
    async for event in stream:
        count -= isinstance(event, TokenText)
        if count == 0:
            return


async def test_a_device_that_leaves_while_layers_move_is_left_out_too() -> None:
    async with open_demo(5) as demo, demo.subscribe() as told:
        loaded = await demo.load(LLAMA)
        first = loaded.plan.assignments[0].peer
        async with aclosing(demo.generate(question("hello"))) as stream:
            await until_token(stream, 3)
            demo.lose(first)
            second = ""
            async for event in told:
                if isinstance(event, RecoveryStarted):
                    second = next(name for name in event.peers if name != first)
                    demo.lose(second)
                    break
            rest = [event async for event in stream]
        assert isinstance(rest[-1], GenerationDone)
        (resumed,) = (event for event in rest if isinstance(event, Resumed))
        assert not {first, second} & set(resumed.peers)


async def test_another_model_or_none_ends_answers_and_recoveries() -> None:
    async with open_demo(5) as demo, demo.subscribe() as told:
        await demo.load(LLAMA)
        async with aclosing(demo.generate(question("hello"))) as stream:
            await until_token(stream, 3)
            await demo.load(models.for_macs(1))
            with pytest.raises(NotReady, match="another model"):
                await until_token(stream, 99)
        loaded = await demo.load(LLAMA)
        async with aclosing(demo.generate(question("hello"))) as stream:
            await until_token(stream, 3)
            demo.lose(loaded.plan.assignments[0].peer)
            await heard_until(told, RecoveryStarted)
            await demo.unload()
            with pytest.raises(NotReady, match="unloaded"):
                await until_token(stream, 99)
        assert demo.loaded is None
        assert not demo.is_changing


async def test_a_device_that_is_back_is_taken_in_while_an_answer_waits() -> None:
    async with open_demo(5) as demo, demo.subscribe() as told:
        loaded = await demo.load(LLAMA)
        gone = loaded.plan.assignments[0].peer
        with pytest.raises(NotReady, match="no device is back"):
            await demo.take_in()
        demo.lose(gone)
        await heard_until(told, Recovered)
        bystander = next(peer.name for peer in demo.peers if peer.name not in str(demo.loaded))
        demo.lose(bystander)
        demo.rejoin(bystander)
        assert demo.offered == (), "the model never had it"
        async with aclosing(demo.generate(question("hello"))) as stream:
            await until_token(stream, 3)
            demo.rejoin(gone)
            taking = asyncio.create_task(demo.take_in())
            rest = [event async for event in stream]
        assert gone in [a.peer for a in (await taking).plan.assignments]
        assert [(p.peer, p.is_back) for p in rest if isinstance(p, Paused)] == [(gone, True)]
        assert not any(isinstance(event, ModelUnloaded) for event in await heard_until(told, Recovered))


async def test_plans_by_hand_are_checked_as_the_coordinator_checks_them() -> None:
    async with open_demo(2) as demo:
        await demo.load(LLAMA)
        solution = await demo.predict({"studio": (LayerWindow(0, 60),), "mbp-16": (LayerWindow(60, 80),)})
        loaded = await demo.load(LLAMA, solution)
        assert [len(a.layers) for a in loaded.plan.assignments] == [60, 20]
        alone = await demo.replan(excluded=["mbp-16"])
        assert [a.peer for a in alone.plan.assignments] == ["studio"]


async def test_a_model_that_is_not_there_is_refused() -> None:
    async with open_demo(1) as demo:
        with pytest.raises(UnknownModel):
            await demo.load("no/such-model")
        with pytest.raises(NotReady):
            await answer_of(demo, "hello")


async def heard_until(events: AsyncIterator[Event], kind: type[Event]) -> list[Event]:
    heard: list[Event] = []
    async for event in events:
        heard.append(event)
        if isinstance(event, kind):
            break
    return heard
