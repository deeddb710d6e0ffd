"""`dnet-tui --demo N`: the whole app over simulated Macs, marked as such."""

from __future__ import annotations

import asyncio

from textual.app import App

from dnet_tui.app import DnetApp
from dnet_tui.chat import Finished
from dnet_tui.launch import demo_app
from dnet_tui.pace import Timing
from dnet_tui.personal_app import Personal
from dnet_tui.state import Ready

MODEL = "mlx-community/Qwen3-30B-A3B-4bit"  # here, small and fast: the times are those of real Macs


def screen_text(app: App[None]) -> str:
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


async def holds(app: DnetApp, name: str, condition: object) -> None:
    changed = asyncio.Event()
    app.watch(app if name == "view" else app.conversation, name, changed.set, init=False)
    while not condition():  # type: ignore[operator]
        await changed.wait()
        changed.clear()


async def test_the_demonstration_is_marked_and_answers() -> None:
    app = demo_app(2, MODEL, Personal(), Timing(blink=False))
    async with app.run_test(size=(120, 40)) as pilot, asyncio.timeout(60):
        assert "DEMO" in screen_text(app)
        await holds(app, "view", lambda: isinstance(app.view.model, Ready))
        app.conversation.prompt.insert("What is the capital of France?")
        await pilot.press("enter")
        turns = lambda: app.conversation.turns  # noqa: E731
        await holds(app, "turns", lambda: turns() and isinstance(turns()[-1].phase, Finished))
        assert turns()[-1].answer == "The capital of France is **Paris**."
        commands = {c.title: c.callback for c in app.get_system_commands(app.screen)}
        commands["Demo: lose mbp-16"]()
        await holds(app, "view", lambda: len(app.view.here) == 1)
        commands = {c.title: c.callback for c in app.get_system_commands(app.screen)}
        commands["Demo: bring mbp-16 back"]()
        await holds(app, "view", lambda: len(app.view.here) == 2)
