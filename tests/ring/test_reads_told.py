"""What streaming reads is told: lap by lap, by the shards themselves, and on /metrics."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import httpx2
import pytest

from dnet_core.api.app import endpoint
from dnet_core.events import LapMeasured, SessionEnded
from dnet_core.slices.weights import open_model, parameter_bytes
from dnet_core.types.generation import SamplingParams
from tests.api.test_metrics import metrics
from tests.conftest import Rings
from tests.ring_tools import ring_plan, ring_tokens, until_idle
from tests.tiny_models import write_large_random_model

pytestmark = pytest.mark.asyncio(loop_scope="session")

LAYERS = 8
PROMPT = (5, 17, 42, 9, 100, 33, 7)
ANSWER_TOKENS = 6
NUM_BUFFERS = 2


@pytest.mark.parametrize(
    ("ends", "rounds", "streams", "own"),
    [([4, 8], 1, (0, 1, 2, 3, 5, 6, 7), (4, 3)), ([2, 4, 6, 8], 2, (0, 1, 2, 4, 5, 6, 7), (4, 3))],
)
async def test_reads_of_every_lap(
    ends: list[int], rounds: int, streams: tuple[int, ...], own: tuple[int, int], rings: Rings, models: Path
) -> None:
    model = write_large_random_model(models / "reads", layers=LAYERS, hidden=128, vocab=512)
    layer_bytes = parameter_bytes(open_model(model, "tiny").layers[0])
    ring = await rings(2)
    first, second = (peer.name for peer in ring.peers)
    plan = ring_plan(model, ring.peers, ends, rounds, streams, NUM_BUFFERS)
    streamed = dict(zip((first, second), own, strict=True))
    async with (
        endpoint(ring, "127.0.0.1", 0) as served,
        httpx2.AsyncClient(base_url=served.url) as raw,
        ring.subscribe() as events,
    ):
        await ring.load(str(model), plan, 3)
        answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
        statuses = {status.name: status for status in await until_idle(ring)}
        told: Counter[str] = Counter()
        seconds: defaultdict[str, float] = defaultdict(float)
        async for event in events:
            if isinstance(event, LapMeasured):
                for stage in event.stages:
                    told[stage.peer] += stage.read_bytes
                    seconds[stage.peer] += stage.read_s
            if isinstance(event, SessionEnded):
                break
        shown = await metrics(raw)
    passes = 2 + len(answer)  # the prompt is two chunks and its last token, which gives the first one
    for name, status in statuses.items():
        num_streamed = streamed[name]
        assert (status.num_resident, status.num_streamed) == (4 - num_streamed, num_streamed)
        assert status.read_bytes % layer_bytes == 0
        # A read that had begun when a lap was told is told with the next one.
        assert abs(told[name] - passes * num_streamed * layer_bytes) <= NUM_BUFFERS * layer_bytes
        assert told[name] < status.read_bytes, "warming has read, too, for no lap"
        assert 0 < seconds[name] < status.read_s
        labels = f'{{device="{name}"}}'
        assert shown[f"dnet_disk_read_bytes_total{labels}"] == told[name]
        assert shown[f"dnet_disk_read_seconds_total{labels}"] == pytest.approx(seconds[name])
        speed = told[name] / seconds[name]
        assert shown[f"dnet_disk_read_bytes_per_second{labels}"] == pytest.approx(speed)
        assert 0 <= shown[f"dnet_disk_overlap_ratio{labels}"] < 1
        assert shown[f"dnet_disk_stall_seconds_total{labels}"] > 0
        assert shown[f"dnet_layers_resident{labels}"] == 4 - num_streamed
        assert shown[f"dnet_layers_streamed{labels}"] == num_streamed
        assert shown[f"dnet_memory_budget_bytes{labels}"] == status.budget_bytes > 0
        assert shown[f"dnet_memory_active_bytes{labels}"] > 0


async def test_nothing_is_read_when_all_is_in_memory(rings: Rings, models: Path) -> None:
    model = write_large_random_model(models / "reads", layers=LAYERS, hidden=128, vocab=512)
    ring = await rings(2)
    await ring.load(str(model), ring_plan(model, ring.peers, [4, 8]), 3)
    answer = await ring_tokens(ring, PROMPT, SamplingParams(max_tokens=ANSWER_TOKENS))
    stages = [stage for token in answer for stage in token.stages]
    assert {(stage.read_bytes, stage.read_s, stage.disk_wait_s) for stage in stages} == {(0, 0.0, 0.0)}
    for status in await until_idle(ring):
        assert (status.num_resident, status.num_streamed) == (4, 0)
        assert (status.read_bytes, status.read_s) == (0, 0.0)
