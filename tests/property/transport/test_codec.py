"""Every value comes out of its message as it went in, through the bytes that travel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnet_core import errors
from dnet_core.errors import DnetError, LoadError, PeerLost, ProtocolError
from dnet_core.transport import codec, control_codec
from dnet_core.transport.control import (
    Hop,
    KeptPrefix,
    Limits,
    LoadOrder,
    LoadReport,
    LoadStep,
    Purpose,
    Reuse,
    SessionOrder,
)
from dnet_core.transport.failures import code_of, rebuild
from dnet_core.transport.frames import (
    Activation,
    Cancel,
    DriverFrame,
    Embedded,
    Fault,
    Prompt,
    PromptRead,
    Sampled,
    Tensor,
    Tokens,
)
from dnet_core.transport.pb import shard_pb2 as pb
from dnet_core.types.generation import FinishReason, SamplingParams, StageTime, TokenLogprob
from dnet_core.types.ring import LayerWindow

names = st.text(max_size=12)
u32 = st.integers(0, 2**32 - 1)
tokens = st.lists(u32, max_size=6).map(tuple)
seconds = st.floats(0, 1e6)
f32 = st.floats(width=32, allow_nan=False)
u64 = st.integers(0, 2**64 - 1)
stages = st.lists(
    st.builds(StageTime, names, seconds, seconds, seconds, seconds, u64, seconds), max_size=3
).map(tuple)
tensors = st.builds(
    Tensor,
    st.sampled_from(["bfloat16", "float32"]),
    st.lists(u32, max_size=4).map(tuple),
    st.binary(max_size=64),
)
ring_frames = st.one_of(
    st.builds(Prompt, names, u32, tokens, st.booleans()),
    st.builds(
        Activation,
        names,
        u32,
        u32,
        u32,
        st.booleans(),
        st.lists(tensors, max_size=2).map(tuple),
        stages,
    ),
    st.builds(Tokens, names, u32, tokens),
    st.builds(Cancel, names),
)
driver_frames = st.one_of(
    st.builds(
        Sampled,
        names,
        u32,
        u32,
        st.sampled_from([None, FinishReason.STOP, FinishReason.LENGTH]),
        st.none() | f32,
        st.lists(st.builds(TokenLogprob, u32, f32), max_size=3).map(tuple),
        stages,
    ),
    st.builds(PromptRead, names, u32, stages),
    st.builds(Embedded, names, st.lists(f32, max_size=5).map(tuple), stages),
    st.builds(Fault, names, names, names, names),
)
windows = st.lists(st.integers(0, 99), min_size=2, max_size=6, unique=True).map(
    lambda ends: tuple(LayerWindow(a, b) for a, b in zip(sorted(ends)[::2], sorted(ends)[1::2], strict=False))
)
sampling = st.builds(
    SamplingParams,
    temperature=st.floats(0, 100),
    top_p=st.floats(0, 1),
    top_k=u32,
    min_p=st.floats(0, 1),
    min_tokens_to_keep=st.integers(1, 100),
    xtc_probability=st.floats(0, 1),
    xtc_threshold=st.floats(0, 0.5),
    repetition_penalty=st.floats(0.1, 10),
    repetition_context_tokens=st.integers(1, 1000),
    presence_penalty=st.floats(-2, 2),
    presence_context_tokens=st.none() | st.integers(1, 1000),
    frequency_penalty=st.floats(-2, 2),
    frequency_context_tokens=st.none() | st.integers(1, 1000),
    logit_bias=st.lists(st.tuples(u32, f32), max_size=3).map(tuple),
    logprobs=st.none() | st.integers(0, 20),
    seed=st.integers(0, 2**64 - 1),
    max_tokens=st.integers(1, 2**32 - 1),
    grammar=st.none() | names,
)


@given(frames=st.lists(ring_frames, max_size=5), sent_ns=st.integers(-(2**63), 2**63 - 1))
def test_ring_frames(frames: list[Prompt | Activation | Tokens | Cancel], sent_ns: int) -> None:
    message = pb.ToShard.FromString(codec.encode_ring(frames, sent_ns).SerializeToString())
    assert message.sent_ns == sent_ns
    assert not message.HasField("ping")
    assert codec.decode_ring(message) == frames


@given(frames=st.lists(driver_frames, max_size=5))
def test_driver_frames(frames: list[DriverFrame]) -> None:
    message = pb.FromShard.FromString(codec.encode_driver(frames).SerializeToString())
    assert codec.decode_driver(message) == frames


@given(
    model=names,
    windows=windows,
    streamed=tokens,
    numbers=st.tuples(u32, u32),
    kv_bits=st.sampled_from([4, 8, 16]),
    hop=st.none() | st.builds(Hop, st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=9)),
    limits=st.builds(Limits, st.none() | u64, u64, u32),
)
def test_load_orders(
    model: str,
    windows: tuple[LayerWindow, ...],
    streamed: tuple[int, ...],
    numbers: tuple[int, int],
    kv_bits: int,
    hop: Hop | None,
    limits: Limits,
) -> None:
    order = LoadOrder(model, 100, windows, streamed, numbers[0], numbers[1], kv_bits, hop, limits)
    message = pb.LoadRequest.FromString(control_codec.encode_load(order).SerializeToString())
    assert control_codec.decode_load(message) == order


@given(
    params=sampling,
    name=names,
    prompt_tokens=u32,
    lists=st.tuples(tokens, tokens, tokens, tokens),
    purpose=st.sampled_from(Purpose),
    reuse=st.none() | st.builds(Reuse, names, u32),
)
def test_session_orders(
    params: SamplingParams,
    name: str,
    prompt_tokens: int,
    lists: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    purpose: Purpose,
    reuse: Reuse | None,
) -> None:
    assert params.seed is not None
    assert params.max_tokens is not None
    stop, recent, special, answered = lists
    order = SessionOrder(
        name,
        prompt_tokens,
        params.max_tokens,
        stop,
        recent,
        special,
        params,
        params.seed,
        answered,
        purpose,
        reuse,
    )
    message = pb.OpenSessionRequest.FromString(control_codec.encode_session(order).SerializeToString())
    assert control_codec.decode_session(message) == order


@given(step=st.sampled_from(LoadStep), done=st.integers(0, 2**63), total=st.integers(0, 2**63), text=names)
def test_load_reports(step: LoadStep, done: int, total: int, text: str) -> None:
    report = LoadReport(step, done, total, text)
    message = pb.LoadProgress.FromString(control_codec.encode_report(report).SerializeToString())
    assert control_codec.decode_report(message) == report


@given(kept=st.none() | st.builds(KeptPrefix, u32, st.booleans()))
def test_kept_prefixes(kept: KeptPrefix | None) -> None:
    message = pb.CloseSessionReply.FromString(control_codec.encode_kept(kept).SerializeToString())
    assert control_codec.decode_kept(message) == kept


UNLAWFUL = {
    "a ring frame of no kind": lambda: codec.decode_ring(pb.ToShard(frames=[pb.ToShard.Frame()])),
    "a driver frame of no kind": lambda: codec.decode_driver(pb.FromShard(frames=[pb.FromShard.Frame()])),
    "a finish of a later version": lambda: codec.decode_driver(
        pb.FromShard(frames=[pb.FromShard.Frame(sampled=pb.Sampled(finish=99))])  # type: ignore[arg-type]
    ),
    "a purpose of a later version": lambda: control_codec.decode_session(pb.OpenSessionRequest(purpose=99)),  # type: ignore[arg-type]
    "a step of a later version": lambda: control_codec.decode_report(pb.LoadProgress(step=99)),  # type: ignore[arg-type]
    "an order without windows": lambda: control_codec.decode_load(pb.LoadRequest(num_layers=4)),
    "an empty window": lambda: control_codec.decode_load(
        pb.LoadRequest(num_layers=4, windows=[pb.Window(start=2, stop=2)])
    ),
    "a window beyond the model": lambda: control_codec.decode_load(
        pb.LoadRequest(num_layers=4, windows=[pb.Window(start=2, stop=5)])
    ),
    "a first window beyond the model": lambda: control_codec.decode_load(
        pb.LoadRequest(num_layers=4, windows=[pb.Window(start=7, stop=9), pb.Window(start=0, stop=4)])
    ),
    "windows that overlap": lambda: control_codec.decode_load(
        pb.LoadRequest(num_layers=4, windows=[pb.Window(start=0, stop=3), pb.Window(start=2, stop=4)])
    ),
    "windows out of order": lambda: control_codec.decode_load(
        pb.LoadRequest(num_layers=4, windows=[pb.Window(start=2, stop=4), pb.Window(start=0, stop=2)])
    ),
    "a session that says nothing": lambda: control_codec.decode_session(pb.OpenSessionRequest()),
}


@pytest.mark.parametrize("what", UNLAWFUL)
def test_what_is_not_lawful_is_a_protocol_error(what: str) -> None:
    with pytest.raises(ProtocolError):
        UNLAWFUL[what]()


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DnetError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_error_is_rebuilt(kind: type[DnetError]) -> None:
    error = rebuild(kind.__name__, "what happened", "mini")
    assert type(error) is kind
    assert str(error) == "what happened"
    code_of(error)


def test_a_lost_peer_is_named() -> None:
    lost = rebuild("PeerLost", str(PeerLost("mini", "gone")), "mini")
    assert isinstance(lost, PeerLost)
    assert lost.peer == "mini"


@pytest.mark.parametrize("kind", ["", "KeyError", "annotations", "Exception", "rebuild"])
def test_unknown_kinds_of_errors(kind: str) -> None:
    error = rebuild(kind, "what happened", "mini")
    assert isinstance(error, ProtocolError)
    assert "what happened" in str(error)


def test_codes_go_from_the_particular_to_the_general() -> None:
    assert code_of(PeerLost("mini", "gone")) != code_of(DnetError("?"))
    assert code_of(LoadError("cut")) != code_of(DnetError("?"))
