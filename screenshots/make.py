"""Take the pictures in this folder from the running application: `uv run python -m screenshots.make`.

A real ring of two local shards answers with the sample model at temperature 0; nothing on the pictures is
made up. The measured times differ from run to run and from machine to machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_core.types.generation import SamplingParams
from dnet_tui.app import DnetApp, Timing
from dnet_tui.chat import ChatSettings, Finished
from dnet_tui.cluster import Cluster
from dnet_tui.main import SAMPLE_MODEL
from dnet_tui.state import Ready
from dnet_tui.widgets.prompt import Prompt

FOLDER = Path(__file__).parent
SIZE = (120, 40)
QUESTIONS = (
    "What is the capital of France?",
    "Name three things that make it worth a visit, as a short list.",
)
PATIENCE_S = 180.0


@asynccontextmanager
async def two_local_shards() -> AsyncIterator[Cluster]:
    async with Coordinator(ClusterOptions(local_shards=2)) as coordinator:
        yield coordinator


async def take() -> None:
    """Ask the questions and save the screen after the last answer."""
    settings = ChatSettings(SamplingParams(temperature=0.0, max_tokens=120))
    app = DnetApp(two_local_shards, SAMPLE_MODEL, settings, Timing(blink=False))
    changed = asyncio.Event()
    async with app.run_test(size=SIZE) as pilot, asyncio.timeout(PATIENCE_S):
        app.watch(app, "view", changed.set, init=False)
        app.watch(app, "turns", changed.set, init=False)
        while not isinstance(app.view.model, Ready):
            await _next(changed)
        for number, question in enumerate(QUESTIONS, 1):
            app.query_one(Prompt).insert(question)
            await pilot.press("enter")
            while len(app.turns) < number or not isinstance(app.turns[-1].phase, Finished):
                assert not app.turns or not app.turns[-1].is_over or number > len(app.turns), app.turns[-1]
                await _next(changed)
        await pilot.pause(0.3)  # the last paced drawing
        path = FOLDER / "chat.svg"
        path.write_text(app.export_screenshot(title="dnet-tui"), encoding="utf-8")
        print(f"{path.relative_to(FOLDER.parent)}: {app.turns[0].answer}")


async def _next(changed: asyncio.Event) -> None:
    await changed.wait()
    changed.clear()


if __name__ == "__main__":
    asyncio.run(take())
