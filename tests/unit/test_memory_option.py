"""`--memory` says what it takes, and takes nothing else."""

from __future__ import annotations

import argparse

import pytest

from dnet_core.memory_option import memory_limit

GB = 10**9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * GB),
        ("8g", 8 * GB),
        ("1.5 GB", 1.5 * GB),
        ("512MiB", 512 * 2**20),
        ("2000000000", 2 * GB),
        ("60%", 0.6 * 16 * GB),
        ("100%", 16 * GB),
    ],
)
def test_amounts(text: str, expected: float) -> None:
    assert memory_limit(text).of(16 * GB) == int(expected)


@pytest.mark.parametrize(
    "text", ["", "8 apples", "-1GB", "0%", "101%", "8", "GB", "1e9", "8i", "8iB", f"{'9' * 400}GB"]
)
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        memory_limit(text)
