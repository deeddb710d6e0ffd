"""The runtime on this thread, with a real model: what each frame does, and what a frame must not do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dnet_core.errors import ProtocolError
from dnet_core.shard.runtime import NextFrame, Outputs, Runtime
from dnet_core.slices.weights import open_model
from dnet_core.transport.control import Arrival, Limits, LoadOrder, Purpose, SessionOrder
from dnet_core.transport.frames import (
    Activation,
    DriverFrame,
    Fault,
    Prompt,
    PromptRead,
    RingFrame,
    Sampled,
    Tensor,
    Tokens,
)
from dnet_core.types.generation import FinishReason, SamplingParams
from dnet_core.types.ring import LayerWindow
from tests.ring_tools import reference_tokens
from tests.tiny_models import write_tiny_model

LAYERS = 5
PROMPT = (5, 17, 42, 9, 100)


class Shard:
    """A runtime whose outputs are lists, and whose queue is worked off by `run`."""

    def __init__(self, directory: Path, *windows: LayerWindow, chunk_tokens: int = 32) -> None:
        self.next: list[NextFrame] = []
        self.driver: list[DriverFrame] = []
        self.waiting: deque[Callable[[], None]] = deque()
        model = open_model(directory, "tiny")
        order = LoadOrder("tiny", LAYERS, windows, (), 0, 512, 16, None, Limits(None, 0, chunk_tokens))
        model.check_windows(windows)
        outputs = Outputs(self.next.append, lambda _name, frame: self.driver.append(frame), self.again)
        self.runtime = Runtime("here", order, model, outputs)
        self.runtime.set_budget(10**12, order.limits)

    def again(self, work: Callable[[], None]) -> None:
        self.waiting.append(work)

    def open(self, session: str = "s", max_tokens: int = 6) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, seed=1)
        self.runtime.open(
            "driver:d",
            SessionOrder(session, len(PROMPT), max_tokens, (), (), (), sampling, 1, (), Purpose.ANSWER, None),
        )

    def send(self, frame: RingFrame) -> None:
        self.runtime.handle(Arrival(frame, 0.0, 0.0))
        while self.waiting:
            self.waiting.popleft()()

    def faults(self) -> list[Fault]:
        return [frame for frame in self.driver if isinstance(frame, Fault)]

    def tokens(self) -> list[int]:
        return [frame.token for frame in self.driver if isinstance(frame, Sampled)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("runtime"))


@pytest.fixture
def whole(directory: Path) -> Shard:
    shard = Shard(directory, LayerWindow(0, LAYERS))
    shard.open()
    return shard


def test_a_ring_of_one_answers_by_itself(whole: Shard, directory: Path) -> None:
    whole.send(Prompt("s", 0, PROMPT[:-1], False))
    whole.send(Prompt("s", 4, PROMPT[-1:], True))
    assert whole.driver[0] == PromptRead("s", 4, whole.driver[0].stages)  # type: ignore[union-attr]
    assert whole.tokens() == reference_tokens(directory, PROMPT, 6, 4)
    last = whole.driver[-1]
    assert isinstance(last, Sampled)
    assert last.finish is FinishReason.LENGTH
    assert whole.next == [], "a ring of one sends nothing round"


@pytest.mark.parametrize("when", [1, 2, 3])
def test_a_cancel_while_a_step_is_built_is_not_forgotten(when: int, directory: Path) -> None:
    """The event loop may cancel at any moment, also between building a step and telling the one before."""
    shard = Shard(directory, LayerWindow(0, LAYERS))
    shard.open(max_tokens=50)
    built = 0

    def again(work: Callable[[], None]) -> None:
        nonlocal built
        built += 1
        if built == when:
            shard.runtime.cancel("s")
        shard.waiting.append(work)

    shard.runtime._outputs = replace(shard.runtime._outputs, again=again)
    shard.send(Prompt("s", 0, PROMPT, True))
    assert built == when, "steps went on after the cancel"


def test_a_closed_session_is_not_continued(directory: Path) -> None:
    shard = Shard(directory, LayerWindow(0, LAYERS))
    shard.open(max_tokens=50)
    shard.runtime.handle(Arrival(Prompt("s", 0, PROMPT, True), 0.0, 0.0))
    steps = shard.runtime.steps
    shard.runtime.close("s")
    while shard.waiting:
        shard.waiting.popleft()()
    assert shard.runtime.steps == steps
    assert shard.driver == []


def test_frames_of_unknown_and_closed_sessions_do_nothing(whole: Shard) -> None:
    whole.send(Prompt("nobody", 0, PROMPT, True))
    whole.runtime.close("s")
    whole.send(Prompt("s", 0, PROMPT, True))
    assert (whole.driver, whole.next, whole.runtime.steps) == ([], [], 0)


def test_a_session_opens_once(whole: Shard) -> None:
    with pytest.raises(ProtocolError, match="already open"):
        whole.open()
    whole.open("t")
    assert whole.runtime.sessions == ("s", "t")


def test_a_driver_that_leaves_takes_its_sessions_along(whole: Shard) -> None:
    whole.open("t")
    whole.runtime.close_all("driver:other")
    assert whole.runtime.sessions == ("s", "t")
    whole.runtime.close_all("driver:d")
    assert whole.runtime.sessions == ()


@pytest.mark.parametrize("position", [1, 5, 2**31])
def test_a_gap_is_a_fault(position: int, whole: Shard) -> None:
    whole.send(Prompt("s", position, PROMPT, True))
    (fault,) = whole.faults()
    assert (fault.session, fault.peer, fault.kind) == ("s", "here", "ProtocolError")
    assert str(position) in fault.message
    assert whole.runtime.sessions == (), "a session with a wrong cache is of no use"


def test_a_repetition_is_a_fault(whole: Shard) -> None:
    whole.send(Prompt("s", 0, PROMPT[:3], False))
    whole.send(Prompt("s", 0, PROMPT[:3], False))
    assert [fault.kind for fault in whole.faults()] == ["ProtocolError"]


def activation(hidden: int = 64, **changes: object) -> Activation:
    data = b"\0" * (3 * hidden * 4)
    frame = Activation("s", 0, 3, 2, False, (Tensor("float32", (1, 3, hidden), data),), ())
    return replace(frame, **changes)  # type: ignore[arg-type]


BROKEN = {
    "a layer that begins no window": activation(next_layer=1),
    "the embedding's layer": activation(next_layer=0),
    "a layer beyond the model": activation(next_layer=99),
    "an unknown dtype": activation(tensors=(Tensor("float8", (1, 3, 64), b"\0" * 192),)),
    "too few bytes": activation(tensors=(Tensor("float32", (1, 3, 64), b"\0" * 767),)),
    "too many bytes": activation(tensors=(Tensor("float32", (1, 3, 64), b"\0" * 772),)),
    "another width": activation(hidden=32),
    "no tensor": activation(tensors=()),
    "two tensors": activation(tensors=activation().tensors * 2),
    "a flat tensor": activation(tensors=(Tensor("float32", (192,), b"\0" * 768),)),
    "other tokens than told": activation(num_tokens=2),
    "no tokens": activation(num_tokens=0, tensors=(Tensor("float32", (1, 0, 64), b""),)),
    "a batch that nobody opened": activation(tensors=(Tensor("float32", (3, 1, 64), b"\0" * 768),)),
    "another dtype than the model's": activation(tensors=(Tensor("float16", (1, 3, 64), b"\0" * 384),)),
    "a token for the first shard": Tokens("s", 0, (5,)),
    "a prompt for the first shard": Prompt("s", 0, PROMPT, False),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_frame_that_cannot_be_served_is_a_fault(what: str, directory: Path) -> None:
    shard = Shard(directory, LayerWindow(2, 4))
    shard.open()
    shard.open("good")
    shard.send(BROKEN[what])
    (fault,) = shard.faults()
    assert (fault.session, fault.peer) == ("s", "here")
    assert shard.next == []
    assert shard.runtime.sessions == ("good",)
    shard.send(replace(activation(), session="good"))
    assert [type(frame) for frame in shard.next] == [Activation]


@pytest.mark.parametrize("tokens", [(), (288,), (2**31,), (2**32 - 1,)])
def test_tokens_that_do_not_exist_are_a_fault(tokens: tuple[int, ...], whole: Shard) -> None:
    whole.send(Prompt("s", 0, tokens, True))
    assert [fault.kind for fault in whole.faults()] == ["ProtocolError"]
    assert whole.tokens() == []


def test_an_activation_for_the_embedding_is_a_fault(whole: Shard) -> None:
    whole.send(activation(next_layer=0))
    assert [fault.kind for fault in whole.faults()] == ["ProtocolError"]


def test_two_windows_on_one_shard_run_in_one_turn_when_they_meet(directory: Path) -> None:
    shard = Shard(directory, LayerWindow(0, 2), LayerWindow(2, LAYERS))
    shard.open()
    shard.send(Prompt("s", 0, PROMPT, True))
    assert shard.tokens() == reference_tokens(directory, PROMPT, 6, len(PROMPT))
    assert shard.next == []


@pytest.mark.parametrize("step", [1, 3])
def test_what_a_models_code_raises_is_told_and_logged(
    step: int, whole: Shard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver hears what; where it happened stands in this shard's log, and nowhere else."""
    model, calls = whole.runtime._model, 0
    embed_and_run = model.embed_and_run

    def fail(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise ZeroDivisionError("a mistake")
        return embed_and_run(*arguments)

    monkeypatch.setattr(model, "embed_and_run", fail)
    whole.send(Prompt("s", 0, PROMPT, True))
    (fault,) = whole.faults()
    assert (fault.kind, fault.message) == ("RingError", "here failed to compute: a mistake")
    assert whole.runtime.sessions == ()
    assert "in fail" in caplog.text
