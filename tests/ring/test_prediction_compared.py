"""A real answer is compared with its plan's prediction, and the ratio is kept for the next plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnet_core.events import PredictionCompared
from dnet_core.settings import paths
from dnet_core.types.generation import SamplingParams
from tests.conftest import Rings
from tests.ring_tools import ring_tokens
from tests.tiny_models import write_large_random_model

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_answer_tells_how_true_the_plan_was(rings: Rings, models: Path) -> None:
    model = str(write_large_random_model(models / "compared", layers=8, hidden=128, vocab=512))
    ring = await rings(2)
    await ring.load(model)
    assert ring.prepared is not None
    prediction = ring.prepared.solution.prediction
    async with ring.subscribe() as events:
        await ring_tokens(ring, (5, 17, 42), SamplingParams(max_tokens=16))
        compared = await anext(e async for e in events if isinstance(e, PredictionCompared))
    assert compared.model == model
    assert compared.predicted_tpot_s == prediction.tpot_s
    assert [d.predicted_compute_s for d in compared.devices] == [d.compute_s for d in prediction.devices]
    assert all(d.measured_compute_s > 0 for d in compared.devices)
    assert compared.measured_tpot_s >= sum(d.measured_compute_s for d in compared.devices) * 0.5
    kept = (paths().cache / "accuracy.json").read_text(encoding="utf-8")
    assert model in kept
