"""Simulated Macs at a gate: the solver's plans and the simulator's times, walked step by step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping

from textual.pilot import Pilot

from dnet_core.demo.answers import Answer
from dnet_core.demo.cluster import DemoCluster, DemoModel
from dnet_core.demo.worlds import Macs
from dnet_core.types.generation import FinishReason
from dnet_core.types.plan import Pin, Solution
from dnet_core.types.ring import LayerWindow, RingPlan
from dnet_tui.app import DnetApp
from tests.fake_coordinator import Gate, words
from tests.tui.conftest import still

FITS = "mlx-community/Qwen3-235B-A22B-4bit"
"""On four Macs all of it stays in memory, on three it streams in two rounds."""
EIGHT = "mlx-community/GLM-4.6-4bit"
_STEPS = 5000

ANSWER = Answer(words("The layers lie where the *solver* puts them: " + "word " * 40))


class Crowd(Gate):
    """A gate that knows how many stand at it: an answer and what brings its ring back may at once."""

    def __init__(self) -> None:
        super().__init__()
        self.num_waiting = 0

    async def __call__(self, seconds: float) -> None:
        self.num_waiting += 1
        try:
            await super().__call__(seconds)
        finally:
            self.num_waiting -= 1

    async def let_one_pass(self) -> None:
        """Let the first of those that stand here pass; wait for one if nobody does."""
        if self.num_waiting == 0:
            self._quiet.clear()
            await self._quiet.wait()
        if self.num_waiting:
            self._go.release()
            for _ in range(4):  # until who passes has left the gate
                await asyncio.sleep(0)


class GatedMacs(DemoCluster):
    """`count` simulated Macs; everything that takes time waits at `gate`, the solver at `solves`."""

    def __init__(self, count: int) -> None:
        self.gate = Crowd()
        self.solves = asyncio.Event()
        self.solves.set()
        self.plans_loaded: list[RingPlan] = []
        self.ended: list[FinishReason] = []
        super().__init__(
            Macs(count), answers=(ANSWER,), known={}, pause=self.gate, clock=lambda: self.gate.now_s
        )

    async def replan(self, excluded: Collection[str] = (), pins: tuple[Pin, ...] = ()) -> Solution:
        await self.solves.wait()
        return await super().replan(excluded, pins)

    async def predict(
        self, windows: Mapping[str, tuple[LayerWindow, ...]], num_resident: Mapping[str, int] | None = None
    ) -> Solution:
        await self.solves.wait()
        return await super().predict(windows, num_resident)

    async def load(
        self, model: str, plan: RingPlan | Solution | None = None, chunk_tokens: int | None = None
    ) -> DemoModel:
        try:
            loaded = await super().load(model, plan, chunk_tokens)
            self.plans_loaded.append(loaded.plan)
            return loaded
        finally:
            self.gate.rest()

    def session_ended(self, sent: int, finish: FinishReason, answer: Answer) -> None:
        self.ended.append(finish)
        self.gate.rest()

    async def until(self, holds: Callable[[], bool], pilot: Pilot[None]) -> None:
        """Let time pass until `holds`."""
        for _ in range(_STEPS):
            if holds():
                await pilot.pause()
                return
            await self.gate.let_one_pass()
        raise AssertionError("it did not happen")


def macs_app(macs: GatedMacs, model: str) -> DnetApp:
    return DnetApp(lambda: macs, model, timing=still(macs.gate))


async def loaded(macs: GatedMacs, pilot: Pilot[None]) -> None:
    await macs.gate.arrive()
    await macs.until(lambda: bool(macs.plans_loaded), pilot)
    await pilot.pause()


async def ask(macs: GatedMacs, pilot: Pilot[None], tokens: int | None = None) -> None:
    """Ask, and wait for `tokens` of the answer (None: to its end)."""
    app = pilot.app
    assert isinstance(app, DnetApp)
    app.conversation.prompt.insert("How does the ring place layers?")
    await pilot.press("enter")
    await pilot.pause()
    before = len(macs.ended)

    def done() -> bool:
        sessions = app._seen.sessions.values()
        enough = tokens is not None and any(session.answer_tokens >= tokens for session in sessions)
        return enough or len(macs.ended) > before

    await macs.until(done, pilot)
    await pilot.pause()


async def checked(pilot: Pilot[None]) -> None:
    """Wait until the solver, which works on another thread, has answered what was asked so far."""
    await pilot.pause()
    newest = [worker for worker in pilot.app.workers if worker.group == "predict"][-1:]
    for worker in newest:
        await worker.wait()
    await pilot.pause()
