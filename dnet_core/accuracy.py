"""What was predicted of the loaded ring against what it does: told after answers, remembered per device.

    prediction of the plan  --+
                              +--> ratio per device --> PredictionCompared, and a file of the last ratios
    laps of an answer       --+                          that the next plan's reasons quote

A ratio above 1 means slower than predicted. Predictions themselves stay what the profiles say: a device that
was busy with something else for one answer is not punished in the next plan.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from dnet_core.events import (
    Event,
    LapMeasured,
    ModelLoaded,
    ModelUnloaded,
    PredictionCompared,
    Recovered,
    RingLost,
    SessionEnded,
    SessionStarted,
)
from dnet_core.files import replace_text
from dnet_core.planning import Prepared
from dnet_core.types.plan import DeviceAccuracy, DeviceReason
from dnet_core.types.ring import RingPlan

log = logging.getLogger(__name__)

MIN_LAPS = 8
"""Answers shorter than this say too little."""

NOTABLE = 1.1
"""A device this many times slower or faster than predicted has it among the reasons of the next plan."""

_Ratios = TypeAdapter(dict[str, dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]])


class Accuracy:
    """Compares the last plan with its laps. Owned by the coordinator, which lets it hear all events."""

    def __init__(self, path: Path) -> None:
        """`path` keeps the ratios: by the device's fingerprint, then by model."""
        self._path = path
        self._ratios = _read(path)
        self._prepared: Prepared | None = None
        self._serving: Prepared | None = (
            None  # what is loaded, as it was planned; None: nobody predicted that
        )
        self._alone: str | None = None  # the session whose laps count: no other has run beside it
        self._live: dict[str, int] = {}  # prompt tokens of every session
        self._laps: list[LapMeasured] = []

    def remember(self, prepared: Prepared) -> Prepared:
        """Take note of a plan; returns it with what earlier answers of the same model showed."""
        self._prepared = prepared
        prints = {device.peer: device.fingerprint for device in prepared.request.devices}
        reasons = tuple(
            _with_ratio(reason, self._ratios.get(prints.get(reason.peer, ""), {}).get(prepared.model))
            for reason in prepared.solution.reasons
        )
        return replace(prepared, solution=replace(prepared.solution, reasons=reasons))

    def hear(self, event: Event) -> PredictionCompared | None:
        """Fold `event`; returns the comparison when an answer ends that allows one."""
        match event:
            case ModelLoaded(plan=plan) | Recovered(plan=plan):
                self._begin(plan)
            case ModelUnloaded() | RingLost():
                self._serving = self._alone = None
            case SessionStarted(session=session, prompt_tokens=prompt_tokens):
                self._alone = None if self._live else session
                self._live[session] = prompt_tokens
                self._laps = []
            case LapMeasured(session=session, position=position):
                if session == self._alone and position > self._live[session]:  # else a lap of the prompt
                    self._laps.append(event)
            case SessionEnded(session=session):
                self._live.pop(session, None)
                if session == self._alone:
                    self._alone = None
                    return self._compare()
            case _:
                pass
        return None

    def _begin(self, plan: RingPlan) -> None:
        known = self._prepared is not None and self._prepared.solution.plan == plan
        self._serving = self._prepared if known else None
        self._alone = None

    def _compare(self) -> PredictionCompared | None:
        prepared = self._serving  # not the plan made last: another model may have been planned meanwhile
        if prepared is None or len(self._laps) < MIN_LAPS:
            return None
        prediction = prepared.solution.prediction
        devices = tuple(
            DeviceAccuracy(
                device.peer,
                device.compute_s,
                median(sum(s.compute_s for s in lap.stages if s.peer == device.peer) for lap in self._laps),
            )
            for device in prediction.devices
        )
        token_s = median(
            sum(s.queue_s + s.compute_s + s.disk_wait_s + s.wire_s for s in lap.stages) for lap in self._laps
        )
        prints = {device.peer: device.fingerprint for device in prepared.request.devices}
        for device in devices:
            if device.measured_compute_s > 0:
                self._ratios.setdefault(prints[device.peer], {})[prepared.model] = device.ratio
        self._write()
        return PredictionCompared(prepared.model, len(self._laps), prediction.tpot_s, token_s, devices)

    def _write(self) -> None:
        try:
            replace_text(self._path, json.dumps(self._ratios, indent=2) + "\n")
        except OSError as error:
            log.warning("what was measured against predictions cannot be kept: %s", error)


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        return _Ratios.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        log.warning("%s is ignored and written anew: %s", path, error)
        return {}


def _with_ratio(reason: DeviceReason, ratio: float | None) -> DeviceReason:
    if not reason.used or ratio is None or 1 / NOTABLE < ratio < NOTABLE:
        return reason
    how = f"{ratio:.2f} times as long as predicted" if ratio > 1 else f"{ratio:.2f} of the predicted time"
    return replace(reason, text=f"{reason.text}; last time its layers took {how}")
