"""Take the pictures in this folder from the running application: `uv run python -m screenshots.make [NAME]`.

    chat          a real ring of two local shards and the sample model at temperature 0: nothing is made up
    cluster       four simulated Macs generating (marked DEMO)
    streaming     two simulated Macs with a model that does not fit them
    models        the model picker over the same Macs
    plan          the plan, edited by hand: one layer moved, with what it costs
    endpoint      the endpoint's panel
    device        the command for another device
    settings      the settings
    help          every key

Measured times differ from run to run and from machine to machine; simulated ones do not.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from textual.pilot import Pilot

from dnet_core.cluster_options import ClusterOptions
from dnet_core.coordinator import Coordinator
from dnet_tui.app import DnetApp
from dnet_tui.chat import ChatOverrides, Finished
from dnet_tui.cluster import Cluster
from dnet_tui.launch import demo_app
from dnet_tui.main import SAMPLE_MODEL
from dnet_tui.pace import Timing
from dnet_tui.personal_app import Personal
from dnet_tui.screens.models import ModelPicker
from dnet_tui.serving import On
from dnet_tui.state import Ready

FOLDER = Path(__file__).parent
QUESTIONS = (
    "What is the capital of France?",
    "Name three things that make it worth a visit, as a short list.",
)
PATIENCE_S = 240.0
STILL = Timing(blink=False)

Act = Callable[[DnetApp, Pilot[None]], Awaitable[None]]


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 - it looks at the screen, as a person does
        await asyncio.sleep(0.05)


async def ready(app: DnetApp) -> None:
    await until(lambda: isinstance(app.view.model, Ready))


async def ask(app: DnetApp, pilot: Pilot[None], question: str) -> None:
    """Ask, and wait for the end of the answer."""
    count = len(app.conversation.turns)
    await begin(app, pilot, question)
    await until(
        lambda: len(app.conversation.turns) > count and isinstance(app.conversation.turns[-1].phase, Finished)
    )


async def begin(app: DnetApp, pilot: Pilot[None], question: str) -> None:
    app.conversation.prompt.insert(question)
    await pilot.press("enter")


async def chat(app: DnetApp, pilot: Pilot[None]) -> None:
    await ready(app)
    for question in QUESTIONS:
        await ask(app, pilot, question)


async def cluster(app: DnetApp, pilot: Pilot[None]) -> None:
    await ready(app)
    await ask(app, pilot, "What is the capital of France?")
    await ask(app, pilot, "And what is all this?")
    await begin(app, pilot, "How does a ring run a model?")
    await until(lambda: len(app.conversation.turns[-1].answer) > 250)


async def streaming(app: DnetApp, pilot: Pilot[None]) -> None:
    await ready(app)
    await begin(app, pilot, "What happens when a model does not fit?")
    await until(lambda: len(app.conversation.turns[-1].answer) > 60)


async def models(app: DnetApp, pilot: Pilot[None]) -> None:
    await ready(app)
    await pilot.press("ctrl+o")

    def known() -> bool:
        return isinstance(app.screen, ModelPicker) and len(app.screen.catalogue.fits) == 11

    await until(known)


async def plan(app: DnetApp, pilot: Pilot[None]) -> None:
    """Give the second device one layer more; the solver, on another thread, says what it costs."""
    await ready(app)
    await pilot.press("f12", "j", "right")
    await pilot.pause()
    for worker in [worker for worker in app.workers if worker.group == "predict"]:
        await worker.wait()


async def endpoint(app: DnetApp, pilot: Pilot[None]) -> None:
    await ready(app)
    await pilot.press("f4")
    await until(lambda: isinstance(app.endpoint, On))


def after(*keys: str) -> Act:
    """Press `keys` once the model is ready."""

    async def act(app: DnetApp, pilot: Pilot[None]) -> None:
        await ready(app)
        await pilot.press(*keys)

    return act


@asynccontextmanager
async def two_local_shards() -> AsyncIterator[Cluster]:
    async with Coordinator(ClusterOptions(local_shards=2)) as coordinator:
        yield coordinator


def real() -> DnetApp:
    personal = Personal(override=ChatOverrides(temperature=0.0, max_tokens=120).over)
    return DnetApp(two_local_shards, SAMPLE_MODEL, personal, STILL)


def macs(count: int, model: str | None = None) -> Callable[[], DnetApp]:
    return lambda: demo_app(count, model, Personal(), STILL)


TOO_BIG = "mlx-community/Qwen3-235B-A22B-4bit"
PICTURES: dict[str, tuple[tuple[int, int], Callable[[], DnetApp], Act]] = {
    "chat": ((120, 40), real, chat),
    "cluster": ((200, 60), macs(4), cluster),
    "streaming": ((120, 40), macs(2, TOO_BIG), streaming),
    "models": ((120, 40), macs(2), models),
    "plan": ((120, 40), macs(4), plan),
    "endpoint": ((120, 40), macs(2), endpoint),
    "device": ((120, 40), macs(1), after("f9")),
    "settings": ((120, 40), macs(2), after("f2")),
    "help": ((120, 40), macs(2), after("f1")),
}


async def take(name: str) -> None:
    size, make, act = PICTURES[name]
    app = make()
    async with app.run_test(size=size) as pilot, asyncio.timeout(PATIENCE_S):
        await act(app, pilot)
        await pilot.pause(0.6)  # the last paced drawing
        path = FOLDER / f"{name}.svg"
        path.write_text(app.export_screenshot(title="dnet-tui"), encoding="utf-8")
        print(path.relative_to(FOLDER.parent), flush=True)


async def main(names: list[str]) -> None:
    for name in names or PICTURES:
        await take(name)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
