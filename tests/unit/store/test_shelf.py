"""The list of models on this machine, searching the hub, and deleting: only what the store has put there."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants

from dnet_core.errors import LoadError, RequestError
from dnet_core.settings import paths
from dnet_core.store import shelf
from dnet_core.store.catalog import SAMPLE_ID, resolve
from dnet_core.store.fetch import HubId, fetch, search_hub
from dnet_core.types.models import ModelOrigin
from tests.tiny_models import write_tiny_model
from tests.unit.store.hub_server import Hub, in_one_large_file

MODEL = HubId("tiny/llama", "main")


def ignore(_done_bytes: int, _total_bytes: int) -> None:
    """A progress listener that does not listen."""


def blob_bytes() -> int:
    """What the hub's cache holds."""
    return sum(f.stat().st_size for f in Path(constants.HF_HUB_CACHE).rglob("blobs/*") if f.is_file())


async def test_what_was_fetched_is_listed_and_can_be_deleted(hub: Hub) -> None:
    directory = await fetch(MODEL, ignore)
    entry = next(entry for entry in shelf.entries() if entry.id == "tiny/llama")
    assert entry.origin is ModelOrigin.CACHED
    assert entry.is_here
    assert entry.num_layers == 5
    assert entry.size_bytes == entry.here_bytes == sum(f.stat().st_size for f in directory.iterdir())
    assert shelf.delete("tiny/llama") >= entry.size_bytes
    assert not directory.exists()
    assert "tiny/llama" not in [entry.id for entry in shelf.entries()]
    assert blob_bytes() == 0


@pytest.mark.parametrize(
    "note", ["", "[]", '{"model": 5, "total_bytes": 1}', '{"model": "a/b", "total_bytes": 1e999}']
)
async def test_a_note_that_means_nothing_is_passed_over(hub: Hub, note: str) -> None:
    folder = paths().cache / "downloads"
    folder.mkdir(parents=True)
    (folder / "a--b@main.json").write_text(note)
    assert [entry.id for entry in shelf.entries()] == [SAMPLE_ID]


async def test_an_interrupted_fetch_is_shown_with_what_it_has(hub: Hub) -> None:
    """As after a restart: only the disk tells."""
    in_one_large_file(hub)
    hub.stall_after_bytes = 5 * 2**19
    arrived = asyncio.Event()
    totals: list[int] = []

    def watch(done_bytes: int, total_bytes: int) -> None:
        totals.append(total_bytes)
        if done_bytes > 2**21:
            arrived.set()

    async with asyncio.timeout(60):
        fetching = asyncio.create_task(fetch(MODEL, watch))
        await arrived.wait()
        shelf.begin_fetch(MODEL, totals[-1])
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    (entry,) = [entry for entry in shelf.entries() if entry.origin is ModelOrigin.PARTIAL]
    assert (entry.id, entry.size_bytes) == ("tiny/llama", totals[-1])
    assert entry.here_bytes == blob_bytes()
    assert 2**20 <= entry.here_bytes < totals[-1]
    assert not entry.is_here
    assert shelf.delete("tiny/llama") >= 2**20
    assert [e.origin for e in shelf.entries()] == [ModelOrigin.SAMPLE]
    assert blob_bytes() == 0


async def test_nothing_outside_the_store_is_ever_deleted(hub: Hub, tmp_path: Path) -> None:
    own = write_tiny_model("llama", tmp_path / "mine")
    for name in (str(own), "tiny/llama", "no-such-model", "../dnet", "/", "tiny/..", str(paths().models)):
        with pytest.raises(RequestError, match="not in the model store"):
            shelf.delete(name)
    assert (own / "config.json").is_file()


async def test_the_imported_sample_can_be_deleted_and_comes_back(hub: Hub) -> None:
    directory = await resolve(SAMPLE_ID, ignore)
    assert directory == paths().models / SAMPLE_ID
    shelf.delete(SAMPLE_ID)
    assert not directory.exists()
    assert shelf.entries()[0].id == SAMPLE_ID, "its package is still there"
    with pytest.raises(RequestError, match="not in the model store"):
        shelf.delete(SAMPLE_ID)
    assert await resolve(SAMPLE_ID, ignore) == directory


async def test_search_tells_size_quantisation_and_gate(hub: Hub) -> None:
    hub.repositories["tiny/locked"] = hub.repositories["tiny/llama"]
    hub.gated.add("tiny/locked")
    hub.described["tiny/llama"] = {
        "safetensors": {"parameters": {"U32": 1000, "BF16": 100}, "total": 1100},
        "config": {"quantization_config": {"bits": 4}, "model_type": "llama"},
    }
    found = {entry.id: entry for entry in await search_hub("TINY")}
    assert set(found) == {"tiny/llama", "tiny/locked"}
    assert found["tiny/llama"].size_bytes == 4200
    assert found["tiny/llama"].quantization == "4bit"
    assert found["tiny/llama"].origin is ModelOrigin.FOUND
    assert found["tiny/locked"].is_gated
    assert found["tiny/locked"].size_bytes is None, "what the hub does not tell is not known"
    assert await search_hub("nothing like it") == ()


async def test_a_hub_that_is_away_is_told_in_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.broken_status = 501
    with pytest.raises(LoadError, match=r"failed to search \(501\)"):
        await search_hub("tiny")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LoadError, match=r"cannot be reached: check the network"):
        await search_hub("tiny")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
        with pytest.raises(LoadError, match=r"cannot be reached: check the network \(ReadTimeout"):
            await search_hub("tiny")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LoadError, match="HF_HUB_OFFLINE"):
        await search_hub("tiny")
