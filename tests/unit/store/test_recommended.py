"""Sampling as a model's authors recommend it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnet_core.errors import LoadError
from dnet_core.store.recommended import recommended_sampling
from dnet_core.types.generation import SamplingParams


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({}, SamplingParams()),
        ({"temperature": 0.6, "top_k": 20}, SamplingParams()),  # it does not say that it samples
        ({"do_sample": False, "temperature": 0.6}, SamplingParams()),
        ({"do_sample": True}, SamplingParams(temperature=1.0)),
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05},
            SamplingParams(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.05),
        ),
        (
            {"do_sample": True, "temperature": -1, "top_p": "most", "top_k": 1e999, "min_p": 0.1},
            SamplingParams(temperature=1.0, min_p=0.1),
        ),
        ({"do_sample": True, "temperature": True, "top_k": 20.0}, SamplingParams(temperature=1.0, top_k=20)),
    ],
)
def test_what_authors_recommend(told: dict[str, object], expected: SamplingParams, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    assert recommended_sampling(tmp_path) == expected


def test_without_the_file_the_likeliest_token_is_taken(tmp_path: Path) -> None:
    assert recommended_sampling(tmp_path) == SamplingParams()


def test_a_file_that_is_no_object_is_told(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(LoadError, match="generation_config"):
        recommended_sampling(tmp_path)
