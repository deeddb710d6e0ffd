"""Fetching from a hub over real HTTP: what is fetched, what is shown, what goes wrong and how it is told."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from dnet_core.errors import LoadError, RequestError, UnknownModel, UnsupportedModel
from dnet_core.store.catalog import ModelKind, list_local, resolve
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.store.fetch import HubId, fetch, fetch_headers, parse_hub_id, search_hub
from dnet_core.store.hub import is_wanted
from tests.unit.store.hub_server import COMMIT, Hub, in_one_large_file

MODEL = HubId("tiny/llama", "main")


def ignore(_done_bytes: int, _total_bytes: int) -> None:
    """A progress listener that does not listen."""


async def test_only_what_mlx_lm_needs_is_fetched(hub: Hub) -> None:
    steps: list[tuple[int, int]] = []
    directory = await fetch(MODEL, lambda *step: steps.append(step))
    origin = hub.repositories[MODEL.repository]
    wanted = {f.name for f in origin.iterdir() if is_wanted(f.name)}
    assert {f.name for f in directory.iterdir()} == wanted
    assert wanted == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    assert read_checkpoint(directory).fingerprint == read_checkpoint(origin).fingerprint
    total_bytes = sum((origin / name).stat().st_size for name in wanted)
    assert steps[-1] == (total_bytes, total_bytes)
    assert {total for _, total in steps} == {total_bytes}
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


async def test_one_that_waits_for_anothers_fetch_tells_how_far_it_is(hub: Hub) -> None:
    """Two shards of one machine: the head must hear from both, however long one of them waits."""
    in_one_large_file(hub)
    hub.stall_after_bytes = 5 * 2**19
    arrived, told = asyncio.Event(), asyncio.Semaphore(0)

    def watch(done_bytes: int, _total_bytes: int) -> None:
        if done_bytes > 2**21:
            arrived.set()

    def wait(done_bytes: int, _total_bytes: int) -> None:
        if done_bytes > 2**21:
            told.release()

    async with asyncio.timeout(30):
        first = asyncio.create_task(fetch(MODEL, watch))
        await arrived.wait()
        second = asyncio.create_task(fetch(MODEL, wait))
        for _ in range(2):  # and again, though nothing more comes
            await told.acquire()
    assert not first.done()
    hub.resume.set()
    assert await first == await second


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tokenizer.model", True),
        ("chat_template.jinja", True),
        ("merges.txt", True),
        ("model.safetensors", True),
        ("qwen.tiktoken", True),
        ("LICENSE.txt", False),
        ("configuration.py", False),
        ("pytorch_model.bin", False),
        ("original/params.json", False),
        ("onnx/model.safetensors", False),
        ("adapter.safetensors", False),
    ],
)
def test_code_pickles_and_side_files_are_left_out(name: str, wanted: bool) -> None:
    assert is_wanted(name) is wanted


async def test_a_fetched_model_needs_no_hub(hub: Hub) -> None:
    directory = await resolve("tiny/llama", ignore)
    hub.requests.clear()
    assert await resolve("tiny/llama", ignore) == directory
    assert hub.requests == []
    (listed,) = [model for model in list_local() if model.kind is ModelKind.HUB]
    assert (listed.id, listed.path) == ("tiny/llama", directory)
    assert listed.size_bytes == sum(f.stat().st_size for f in directory.iterdir())


async def test_a_model_with_a_missing_file_is_completed(hub: Hub) -> None:
    directory = await resolve("tiny/llama", ignore)
    assert list_local()[-1].kind is ModelKind.HUB
    missing = directory / "model-00002-of-00002.safetensors"
    missing.resolve().unlink()
    missing.unlink()
    assert list_local()[-1].kind is ModelKind.SAMPLE, "half a model is none"
    hub.requests.clear()
    steps: list[tuple[int, int]] = []
    assert await resolve("tiny/llama", lambda *step: steps.append(step)) == directory
    assert [name for name, _ in hub.contents()] == [missing.name]
    assert steps[0][0] > 0, "what is here already counts as done"
    assert read_checkpoint(directory).model_type == "llama"


async def test_cancelling_stops_the_download_and_the_next_one_resumes(hub: Hub) -> None:
    folder = hub.repositories[MODEL.repository]
    in_one_large_file(hub)
    hub.stall_after_bytes = 5 * 2**19  # 2.5 MiB: two whole chunks of the download, and a half
    arrived = asyncio.Event()

    def watch(done_bytes: int, _total_bytes: int) -> None:
        if done_bytes > 2**21:
            arrived.set()

    async with asyncio.timeout(60):
        fetching = asyncio.create_task(fetch(MODEL, watch))
        await arrived.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    (partial_bytes,) = partial_sizes()
    assert partial_bytes >= 2**20
    hub.stall_after_bytes = None
    hub.resume.set()
    hub.requests.clear()
    directory = await fetch(MODEL, ignore)
    assert hub.contents() == [("model.safetensors", f"bytes={partial_bytes}-")]
    assert read_checkpoint(directory).fingerprint == read_checkpoint(folder).fingerprint
    assert (directory / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def partial_sizes() -> list[int]:
    return [f.stat().st_size for f in Path(constants.HF_HUB_CACHE).rglob("*.incomplete") if f.stat().st_size]


async def test_headers_alone_give_the_same_checkpoint(hub: Hub) -> None:
    origin = hub.repositories[MODEL.repository]
    checkpoint = await fetch_headers(MODEL)
    local = read_checkpoint(origin)
    assert checkpoint.tensors == local.tensors
    assert checkpoint.fingerprint == local.fingerprint
    assert (checkpoint.config, checkpoint.directory) == (local.config, None)
    asked = [(name, span) for name, span in hub.contents() if name.endswith(".safetensors")]
    assert asked, "headers come from the weight files"
    assert all(span is not None for _, span in asked)
    assert list_local()[-1].kind is ModelKind.SAMPLE, "no file was kept"


async def test_long_headers_take_a_second_range(hub: Hub) -> None:
    file = hub.repositories[MODEL.repository] / "model-00001-of-00002.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": {"filler": "x" * 150_000}}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    checkpoint = await fetch_headers(MODEL)
    assert checkpoint.tensors == read_checkpoint(file.parent).tensors
    spans = [span for name, span in hub.contents() if name == file.name]
    assert spans == ["bytes=0-99999", f"bytes=100000-{8 + len(text) - 1}"]


@pytest.mark.parametrize("filler", [10, 150_000], ids=["one request", "two requests"])
async def test_a_hub_without_ranges_is_not_asked_for_all_the_weights(hub: Hub, filler: int) -> None:
    """It begins to send the whole file and never ends: what is needed has come long before."""
    in_one_large_file(hub)
    file = hub.repositories[MODEL.repository] / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": {"filler": "x" * filler}}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    hub.ignores_ranges, hub.stall_after_bytes = True, 2**20
    async with asyncio.timeout(20):
        checkpoint = await fetch_headers(MODEL)
    assert checkpoint.tensors == read_checkpoint(file.parent).tensors


async def test_a_login_page_in_the_way_is_told(hub: Hub) -> None:
    hub.is_login_page = True
    for attempt in (fetch(MODEL, ignore), fetch_headers(MODEL), search_hub("llama")):
        with pytest.raises(LoadError, match="want you to log in first"):
            await attempt


async def test_an_unknown_model_is_told(hub: Hub) -> None:
    with pytest.raises(UnknownModel, match="no such model") as caught:
        await fetch(HubId("tiny/lama", "main"), ignore)
    assert caught.value.model == "tiny/lama"
    with pytest.raises(UnknownModel, match="no revision 'v9'"):
        await fetch(HubId("tiny/llama", "v9"), ignore)


async def test_a_gated_model_wants_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add(MODEL.repository)
    with pytest.raises(RequestError, match=r"accept its licence .* set HF_TOKEN"):
        await fetch(MODEL, ignore)
    with pytest.raises(RequestError, match="HF_TOKEN"):
        await fetch_headers(MODEL)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert (await fetch(MODEL, ignore)).is_dir()


async def test_a_hub_that_fails_or_is_away_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.broken_status = 403
    with pytest.raises(RequestError, match="refuses tiny/llama"):
        await fetch(MODEL, ignore)
    hub.broken_status = 501
    with pytest.raises(LoadError, match=r"failed for tiny/llama \(501\)"):
        await fetch_headers(MODEL)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LoadError, match="check the network"):
        await fetch(MODEL, ignore)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LoadError, match="HF_HUB_OFFLINE"):
        await fetch(MODEL, ignore)


async def test_a_repository_without_safetensors_is_refused(hub: Hub) -> None:
    for file in hub.repositories[MODEL.repository].glob("model*"):
        file.unlink()
    with pytest.raises(UnsupportedModel, match="look for an MLX version"):
        await fetch(MODEL, ignore)


async def test_a_model_larger_than_the_disk_is_refused_before_it_starts(hub: Hub) -> None:
    weights = hub.repositories[MODEL.repository] / "model-00001-of-00002.safetensors"
    os.truncate(weights, 2 * shutil.disk_usage("/").total)  # sparse: takes no room here
    with pytest.raises(LoadError, match="make room") as caught:
        await fetch(MODEL, ignore)
    needed_bytes = sum(f.stat().st_size for f in weights.parent.iterdir() if is_wanted(f.name))
    assert f"needs {needed_bytes:,} more bytes" in str(caught.value)
    assert hub.contents() == []


@pytest.mark.parametrize(
    ("text", "hub_id"),
    [
        ("mlx-community/Qwen3-0.6B-4bit", HubId("mlx-community/Qwen3-0.6B-4bit", "main")),
        ("a/b@v1.0", HubId("a/b", "v1.0")),
        ("a/b@refs/pr/1", HubId("a/b", "refs/pr/1")),
        (f"a/b@{COMMIT}", HubId("a/b", COMMIT)),
        ("gpt2", None),
        ("a/b/c", None),
        ("../b", None),
        ("a/..", None),
        ("a/b@../../etc", None),
        ("a/b@", None),
        ("/a/b", None),
        ("~/b", None),
        ("a--x/b", None),
        ("http://a/b", None),
        ("a/b\n", None),
        ("", None),
    ],
)
def test_only_lawful_hub_ids_are_taken(text: str, hub_id: HubId | None) -> None:
    assert parse_hub_id(text) == hub_id
