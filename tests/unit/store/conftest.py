"""A hub of one's own: real HTTP on a loopback port, a cache and a home in the test's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.store.hub_server import Hub, hub_of_one_model


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model, `tiny/llama`."""
    with hub_of_one_model(tmp_path, monkeypatch) as hub:
        yield hub
