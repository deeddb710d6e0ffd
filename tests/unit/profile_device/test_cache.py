"""Cached profiles: found again while they are true, measured again when they are not."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from dnet_core.profile.cache import MAX_AGE_S, ProfileCache
from dnet_core.types.profiles import LayerShape, ProfileRequest, Quantization, WeightFormat
from tests.unit.profile_device.samples import PROFILE, REQUEST

NOW = PROFILE.measured_at_unix_s
MARK = PROFILE.fingerprint


@pytest.fixture
def cache(tmp_path: Path) -> ProfileCache:
    return ProfileCache(tmp_path / "profiles")


def test_what_was_put_is_found_by_another_process(cache: ProfileCache, tmp_path: Path) -> None:
    assert cache.get(REQUEST, MARK, NOW) is None
    cache.put(REQUEST, PROFILE)
    assert ProfileCache(tmp_path / "profiles").get(REQUEST, MARK, NOW + MAX_AGE_S) == PROFILE


@pytest.mark.parametrize("now", [NOW + MAX_AGE_S + 1, NOW - 1], ids=["too old", "from the future"])
def test_a_profile_expires(cache: ProfileCache, now: float) -> None:
    cache.put(REQUEST, PROFILE)
    assert cache.get(REQUEST, MARK, now) is None


def test_other_hardware_or_another_question_is_measured(cache: ProfileCache) -> None:
    cache.put(REQUEST, PROFILE)
    assert cache.get(REQUEST, "other", NOW) is None
    others: list[ProfileRequest] = [
        replace(REQUEST, shape=LayerShape(64, 128, 1, 1, 64)),
        replace(REQUEST, formats=(WeightFormat("bf16", Quantization(4, 32, "affine")),)),
        replace(REQUEST, chunk_tokens=64),
        replace(REQUEST, disk_read_size_bytes=4096),
    ]
    for other in others:
        assert cache.get(other, MARK, NOW) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"profile_version": 1}'])
def test_a_corrupt_file_is_ignored_and_told(
    cache: ProfileCache, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(REQUEST, PROFILE)
    path = cache.path(REQUEST, MARK)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert cache.get(REQUEST, MARK, NOW) is None
    assert path.name in caplog.text or content == b"\xff\xfe"
    assert "ignored and measured again" in caplog.text
    cache.put(REQUEST, PROFILE)
    assert cache.get(REQUEST, MARK, NOW) == PROFILE


def test_a_file_under_a_wrong_name_is_not_believed(cache: ProfileCache) -> None:
    cache.put(REQUEST, PROFILE)
    cache.path(REQUEST, MARK).rename(cache.path(REQUEST, "other"))
    assert cache.get(REQUEST, "other", NOW) is None


def test_nothing_but_the_profile_is_left(cache: ProfileCache, tmp_path: Path) -> None:
    cache.put(REQUEST, PROFILE)
    cache.put(REQUEST, replace(PROFILE, layer_overhead_s=1.0))
    assert [path.name for path in (tmp_path / "profiles").iterdir()] == [cache.path(REQUEST, MARK).name]


def test_a_place_that_cannot_be_written_costs_only_the_cache(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profiles").write_text("a file")
    cache = ProfileCache(tmp_path / "profiles")
    with caplog.at_level(logging.WARNING):
        cache.put(REQUEST, PROFILE)
        assert cache.get(REQUEST, MARK, NOW) is None
    assert "cannot be kept" in caplog.text
