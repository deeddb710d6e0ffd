"""The comparison of a plan with its laps, as a fold of events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dnet_core.accuracy import MIN_LAPS, Accuracy
from dnet_core.events import LapMeasured, ModelLoaded, PredictionCompared, SessionEnded, SessionStarted
from dnet_core.planning import Prepared
from dnet_core.solve.plan import solve
from dnet_core.types.generation import FinishReason, StageTime
from tests.solver_requests import small_request


def prepared() -> Prepared:
    """A plan of two devices or more."""
    requests = (small_request(seed, 1.5) for seed in range(50))
    solutions = ((request, solve(request)) for request in requests)
    request, solution = next(found for found in solutions if len(found[1].plan.assignments) > 1)
    return Prepared(request.model.model, request, solution, one_machine=False)


def answer(
    accuracy: Accuracy, plan: Prepared, ratio: float, laps: int = MIN_LAPS, session: str = "s"
) -> PredictionCompared | None:
    """Tell of an answer whose stages take `ratio` times what was predicted, and 10 s in its prompt."""
    accuracy.hear(SessionStarted(session, 5))
    for position in range(4, 6 + laps):
        stages = tuple(
            StageTime(d.peer, 0.0, 10.0 if position <= 5 else ratio * d.compute_s, 0.0, 0.001, 0, 0.0)
            for d in plan.solution.prediction.devices
        )
        accuracy.hear(LapMeasured(session, position, stages))
    return accuracy.hear(SessionEnded(session, FinishReason.STOP, 5, laps, 0))


def test_an_answer_is_compared_device_by_device(tmp_path: Path) -> None:
    accuracy, plan = Accuracy(tmp_path / "accuracy.json"), prepared()
    assert accuracy.remember(plan) == plan, "nothing is known yet"
    accuracy.hear(ModelLoaded(plan.solution.plan, 1.0))
    compared = answer(accuracy, plan, 1.25)
    assert compared is not None
    assert (compared.model, compared.laps) == (plan.model, MIN_LAPS)
    assert [d.peer for d in compared.devices] == [a.peer for a in plan.solution.plan.assignments]
    assert [d.ratio for d in compared.devices] == pytest.approx([1.25] * len(compared.devices))
    stages = sum(1.25 * d.compute_s + 0.001 for d in plan.solution.prediction.devices)
    assert compared.measured_tpot_s == pytest.approx(stages)
    assert compared.predicted_tpot_s == plan.solution.prediction.tpot_s


def test_the_next_plan_quotes_it_also_after_a_restart(tmp_path: Path) -> None:
    path, plan = tmp_path / "accuracy.json", prepared()
    first = Accuracy(path)
    first.remember(plan)
    first.hear(ModelLoaded(plan.solution.plan, 1.0))
    answer(first, plan, 1.25)
    for accuracy in (first, Accuracy(path)):
        reasons = accuracy.remember(plan).solution.reasons
        assert all(r.text.endswith("took 1.25 times as long as predicted") for r in reasons if r.used)
        assert all("predicted" not in r.text for r in reasons if not r.used)
    answer(first, plan, 1.01)
    assert first.remember(plan) == plan, "what is right within a tenth needs no words"


def test_what_says_nothing_is_not_compared(tmp_path: Path) -> None:
    accuracy, plan = Accuracy(tmp_path / "accuracy.json"), prepared()
    assert answer(accuracy, plan, 1.0) is None, "nothing is loaded"
    accuracy.remember(plan)
    accuracy.hear(ModelLoaded(plan.solution.plan, 1.0))
    assert answer(accuracy, plan, 1.0, laps=MIN_LAPS - 1) is None, "too short"
    accuracy.hear(SessionStarted("other", 5))
    assert answer(accuracy, plan, 1.0) is None, "another session ran beside it"
    accuracy.hear(SessionEnded("other", None, 5, 0, 0))
    assert answer(accuracy, plan, 1.0) is not None
    other = small_request(3, 1.5)
    accuracy.hear(ModelLoaded(solve(other).plan, 1.0))
    assert answer(accuracy, plan, 1.0) is None, "what is loaded is not what was planned last"


def test_a_plan_for_another_model_meanwhile_changes_nothing(tmp_path: Path) -> None:
    """As the plan view and /v1/prepare_topology make them, of devices that do not serve."""
    accuracy, plan = Accuracy(tmp_path / "accuracy.json"), prepared()
    accuracy.remember(plan)
    accuracy.hear(ModelLoaded(plan.solution.plan, 1.0))
    newcomer = replace(plan.request.devices[0], peer="newcomer", fingerprint="newcomer")
    request = replace(plan.request, devices=(newcomer,), links=())
    other = Prepared(
        "another/model", request, solve(replace(request, context_tokens=1024)), one_machine=False
    )
    accuracy.remember(other)
    compared = answer(accuracy, plan, 1.25)
    assert compared is not None
    assert compared.model == plan.model
    assert accuracy.remember(other) == other


@pytest.mark.parametrize("text", ["", "[]", '{"a": {"b": -1}}', '{"a": {"b": "x"}}', "\xff"])
def test_a_broken_file_is_written_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "accuracy.json"
    path.write_text(text, encoding="latin-1")
    accuracy, plan = Accuracy(path), prepared()
    accuracy.remember(plan)
    accuracy.hear(ModelLoaded(plan.solution.plan, 1.0))
    assert answer(accuracy, plan, 2.0) is not None
    assert Accuracy(path).remember(plan) != plan
