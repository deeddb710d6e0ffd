"""A step that was stopped between two layers leaves caches that do not belong together: nobody gets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dnet_core.shard.loader import LayerStream
from dnet_core.shard.mlx_thread import MlxThread
from dnet_core.shard.runtime import Outputs, Runtime
from dnet_core.slices.layers import find_layers, make_streamed
from dnet_core.slices.weights import open_model
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.transport.control import Arrival, KeptPrefix, Limits, LoadOrder, Purpose, SessionOrder
from dnet_core.transport.frames import DriverFrame, Prompt, PromptRead
from dnet_core.types.generation import SamplingParams
from dnet_core.types.ring import LayerWindow
from tests.tiny_models import write_tiny_model

LAYERS = 5
PROMPT = tuple(5 + i % 200 for i in range(33))
CHUNK = 16


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("torn"))


@pytest.fixture
def loader() -> Iterator[MlxThread]:
    with MlxThread("loader") as thread:
        yield thread


class StreamedShard:
    """A shard that reads all its layers from disk; `cancel_at` is the turn during which a cancel comes."""

    def __init__(self, directory: Path, loader: MlxThread) -> None:
        self.told: list[DriverFrame] = []
        self.cancel_at: int | None = None
        window, layers = LayerWindow(0, LAYERS), tuple(range(LAYERS))
        model = open_model(directory, "tiny")
        places = find_layers(model, read_checkpoint(directory), layers, "tiny")
        streamed = {layer: make_streamed(model.layers[layer], places[layer]) for layer in layers}
        stream = LayerStream(model, streamed, 2, loader)
        order = LoadOrder("tiny", LAYERS, (window,), layers, 2, 512, 16, None, Limits(None, 0, CHUNK))
        outputs = Outputs(
            lambda _frame: None, lambda _name, frame: self.told.append(frame), lambda _work: None
        )
        self.runtime = Runtime("here", order, model, outputs, stream)
        self.runtime.set_budget(10**12, order.limits)
        is_wanted, turns = stream._is_wanted, 0

        def watched() -> bool:
            nonlocal turns
            if turns == self.cancel_at:
                self.runtime.cancel("s")
            turns += 1
            return is_wanted()

        stream.watch(watched)

    def read(self, chunk: int) -> None:
        tokens = PROMPT[chunk * CHUNK : (chunk + 1) * CHUNK]
        self.runtime.handle(Arrival(Prompt("s", chunk * CHUNK, tokens, False), 0.0, 0.0))


def order() -> SessionOrder:
    sampling = SamplingParams(max_tokens=1, seed=1)
    return SessionOrder("s", len(PROMPT), 1, (), (), (), sampling, 1, (), Purpose.ANSWER, None)


@pytest.mark.parametrize("cancel_at", [1, 3, LAYERS + 1, 2 * LAYERS - 1])
def test_a_chunk_that_was_stopped_halfway_is_not_kept(
    cancel_at: int, directory: Path, loader: MlxThread
) -> None:
    shard = StreamedShard(directory, loader)
    shard.runtime.open("driver:d", order())
    shard.cancel_at = cancel_at
    shard.read(0)
    shard.read(1)
    assert len(shard.told) == cancel_at // LAYERS, "it was stopped in the middle of a chunk"
    assert shard.runtime.close("s", "kept") is None
    assert shard.runtime.prefixes.names == ()
    assert shard.runtime.room.taken_bytes == 0


def test_a_cancel_between_chunks_keeps_what_has_been_read(directory: Path, loader: MlxThread) -> None:
    shard = StreamedShard(directory, loader)
    shard.runtime.open("driver:d", order())
    shard.read(0)
    shard.runtime.cancel("s")
    shard.read(1)
    assert [type(frame) for frame in shard.told] == [PromptRead]
    assert shard.runtime.close("s", "kept") == KeptPrefix(CHUNK, can_trim=True)
