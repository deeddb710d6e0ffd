"""The loader thread with a real model: reads ahead, few buffers, files that fail, and an end."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from dnet_core.errors import LoadError, NotReady
from dnet_core.shard.loader import LayerStream, Reads, Spent, Stopped
from dnet_core.shard.mlx_thread import MlxThread
from dnet_core.slices.layers import find_layers, make_streamed
from dnet_core.slices.weights import open_model, parameter_bytes
from dnet_core.slices.window import WindowedModel
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.store.repack import LayerFile
from dnet_core.types.ring import LayerWindow
from tests.tiny_models import write_tiny_model

LAYERS = 5
TOKENS = mx.array([[5, 17, 42]])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("loader"), num_files=2)


@pytest.fixture
def thread() -> Iterator[MlxThread]:
    with MlxThread("loader") as thread:
        yield thread


class Streamed:
    """A whole model on this thread, of which `layers` are streamed."""

    def __init__(self, directory: Path, layers: tuple[int, ...], num_buffers: int, thread: MlxThread) -> None:
        self.model: WindowedModel = open_model(directory, "tiny")
        self.layer_bytes = parameter_bytes(self.model.layers[0])
        self.files: dict[int, LayerFile] = {}
        places = find_layers(self.model, read_checkpoint(directory), layers, "tiny")
        streamed = {layer: make_streamed(self.model.layers[layer], places[layer]) for layer in layers}
        self.files = {layer: made.file for layer, made in streamed.items()}
        self.thread = thread
        self.stream = LayerStream(self.model, streamed, num_buffers, thread)

    def logits(self) -> np.ndarray:
        (logits,) = self.model.embed_and_run(LayerWindow(0, LAYERS), TOKENS, self.model.make_cache(), 0)
        return np.array(logits)

    def until_idle(self) -> None:
        """Wait for the reads that were asked for: they are done in order."""
        wait([self.thread.submit(lambda: None)])


def plain(directory: Path) -> np.ndarray:
    model = open_model(directory, "tiny")
    (logits,) = model.embed_and_run(LayerWindow(0, LAYERS), TOKENS, model.make_cache(), 0)
    return np.array(logits)


@pytest.mark.parametrize("num_buffers", [1, 2, 4])
def test_the_same_logits_again_and_again(num_buffers: int, directory: Path, thread: MlxThread) -> None:
    streamed = Streamed(directory, (0, 2, 3, 4), num_buffers, thread)
    expected = plain(directory)
    for _ in range(3):
        assert np.array_equal(streamed.logits(), expected)


def test_reads_go_on_while_nothing_is_computed(directory: Path, thread: MlxThread) -> None:
    """After the last layer of a token come the first ones of the next, before anybody asks."""
    streamed = Streamed(directory, (0, 1, 2, 3), 3, thread)
    assert streamed.stream.read.num_bytes == 0
    streamed.stream.begin()
    streamed.until_idle()
    assert streamed.stream.read.num_bytes == 3 * streamed.layer_bytes
    for tokens in (1, 2):
        streamed.logits()
        streamed.until_idle()
        assert streamed.stream.read.num_bytes == (4 * tokens + 3) * streamed.layer_bytes
    assert streamed.stream.read.seconds > 0


def test_a_layer_has_no_weights_outside_its_turn(directory: Path, thread: MlxThread) -> None:
    streamed = Streamed(directory, (1, 2), 1, thread)
    weight = streamed.model.layers[1].self_attn.q_proj
    with streamed.stream.turn(1):
        assert not mx.isnan(weight.weight).any().item()
    assert mx.isnan(weight.weight).all().item()


def test_what_was_spent_is_told_once(directory: Path, thread: MlxThread) -> None:
    streamed = Streamed(directory, (0, 1, 2), 2, thread)
    for _ in range(2):
        streamed.logits()
    streamed.until_idle()
    spent = streamed.stream.take_spent()
    assert spent.reads == streamed.stream.read
    assert spent.reads.num_bytes == (2 * 3 + 2) * streamed.layer_bytes, "two tokens, and two buffers ahead"
    assert spent.waited_s > 0
    assert streamed.stream.take_spent() == Spent(0.0, Reads(0, 0.0))
    streamed.logits()
    streamed.until_idle()
    assert streamed.stream.take_spent().reads.num_bytes == 3 * streamed.layer_bytes


def test_a_read_ahead_that_failed_is_tried_again(directory: Path, thread: MlxThread, tmp_path: Path) -> None:
    streamed = Streamed(directory, (0, 1, 2), 2, thread)
    path = streamed.files[1].path
    kept = shutil.move(path, tmp_path / "kept")
    streamed.stream.begin()
    streamed.until_idle()  # layer 1 has failed, and nobody has heard of it
    shutil.move(kept, path)
    assert np.array_equal(streamed.logits(), plain(directory))


def test_a_missing_file_is_an_error_until_it_is_back(
    directory: Path, thread: MlxThread, tmp_path: Path
) -> None:
    streamed = Streamed(directory, (0, 1, 2), 2, thread)
    path = streamed.files[1].path
    kept = shutil.move(path, tmp_path / "kept")
    for _ in range(3):
        with pytest.raises(LoadError, match="No such file"):
            streamed.logits()
    shutil.move(kept, path)
    assert np.array_equal(streamed.logits(), plain(directory))


def test_what_is_not_wanted_stops_before_the_next_layer(directory: Path, thread: MlxThread) -> None:
    streamed = Streamed(directory, (0, 1, 2, 3), 2, thread)
    turns = 0

    def is_wanted() -> bool:
        nonlocal turns
        turns += 1
        return turns <= 2

    streamed.stream.watch(is_wanted)
    with pytest.raises(Stopped):
        streamed.logits()
    assert turns == 3, "two layers ran"
    streamed.stream.watch(lambda: True)
    assert np.array_equal(streamed.logits(), plain(directory))


def test_layers_in_an_order_that_nobody_expects(directory: Path, thread: MlxThread) -> None:
    streamed = Streamed(directory, (0, 1, 2, 3, 4), 2, thread)
    norms = {
        i: np.array(layer.input_layernorm.weight)
        for i, layer in enumerate(open_model(directory, "tiny").layers)
    }
    for layer in (3, 3, 1, 4, 0, 2, 2, 1, 0, 4):
        with streamed.stream.turn(layer):
            here = streamed.model.layers[layer].input_layernorm.weight
            assert np.array_equal(np.array(here), norms[layer])


def test_there_are_no_turns_after_the_end(directory: Path, thread: MlxThread) -> None:
    streamed = Streamed(directory, (0, 1), 1, thread)
    streamed.stream.begin()
    streamed.stream.close()
    with pytest.raises(NotReady):
        streamed.logits()
