"""Frames to protobuf messages and back, one function per direction. Messages never leave this package.

A message that does not say what it must is a ProtocolError.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer as RepeatedComposite

from dnet_core.errors import ProtocolError
from dnet_core.transport.frames import (
    Activation,
    Cancel,
    DriverFrame,
    Embedded,
    Fault,
    Prompt,
    PromptRead,
    RingFrame,
    Sampled,
    Tensor,
    Tokens,
)
from dnet_core.transport.pb import shard_pb2 as pb
from dnet_core.types.generation import FinishReason, StageTime, TokenLogprob

_FINISH_TO_PB = {
    None: pb.Sampled.FINISH_NONE,
    FinishReason.STOP: pb.Sampled.FINISH_STOP,
    FinishReason.LENGTH: pb.Sampled.FINISH_LENGTH,
}
_FINISH_FROM_PB = {value: key for key, value in _FINISH_TO_PB.items()}


# ---- ring frames ----


def encode_ring(frames: Iterable[RingFrame], sent_ns: int) -> pb.ToShard:
    """Fills the message in place: sub-messages made apart would be copied, activations with them."""
    message = pb.ToShard(sent_ns=sent_ns)
    for frame in frames:
        _fill_ring_frame(message.frames.add(), frame)
    return message


def _fill_ring_frame(into: pb.ToShard.Frame, frame: RingFrame) -> None:
    match frame:
        case Activation():
            activation = into.activation
            activation.session = frame.session
            activation.position = frame.position
            activation.num_tokens = frame.num_tokens
            activation.next_layer = frame.next_layer
            activation.last = frame.last
            for tensor in frame.tensors:
                activation.tensors.add(dtype=tensor.dtype, shape=tensor.shape, data=tensor.data)
            _add_stages(activation.stages, frame.stages)
        case Tokens():
            into.tokens.session = frame.session
            into.tokens.position = frame.position
            into.tokens.tokens.extend(frame.tokens)
        case Prompt():
            into.prompt.session = frame.session
            into.prompt.position = frame.position
            into.prompt.tokens.extend(frame.tokens)
            into.prompt.last = frame.last
        case Cancel():
            into.cancel.session = frame.session


def decode_ring(message: pb.ToShard) -> list[RingFrame]:
    return [_ring_value(frame) for frame in message.frames]


def _ring_value(frame: pb.ToShard.Frame) -> RingFrame:
    match frame.WhichOneof("kind"):
        case "activation":
            a = frame.activation
            return Activation(
                session=a.session,
                position=a.position,
                num_tokens=a.num_tokens,
                next_layer=a.next_layer,
                last=a.last,
                tensors=tuple(Tensor(t.dtype, tuple(t.shape), t.data) for t in a.tensors),
                stages=_stage_values(a.stages),
            )
        case "tokens":
            t = frame.tokens
            return Tokens(t.session, t.position, tuple(t.tokens))
        case "prompt":
            p = frame.prompt
            return Prompt(p.session, p.position, tuple(p.tokens), p.last)
        case "cancel":
            return Cancel(frame.cancel.session)
        case kind:
            raise ProtocolError(
                f"a ring frame of unknown kind {kind!r} arrived: are all shards of one version?"
            )


def encode_driver(frames: Iterable[DriverFrame]) -> pb.FromShard:
    message = pb.FromShard()
    for frame in frames:
        _fill_driver_frame(message.frames.add(), frame)
    return message


def _fill_driver_frame(into: pb.FromShard.Frame, frame: DriverFrame) -> None:
    match frame:
        case Sampled():
            sampled = into.sampled
            sampled.session = frame.session
            sampled.position = frame.position
            sampled.token = frame.token
            sampled.finish = _FINISH_TO_PB[frame.finish]
            if frame.logprob is not None:
                sampled.logprob = frame.logprob
            for top in frame.top_logprobs:
                sampled.top_logprobs.add(token=top.token, logprob=top.logprob)
            _add_stages(sampled.stages, frame.stages)
        case PromptRead():
            into.prompt_read.session = frame.session
            into.prompt_read.position = frame.position
            _add_stages(into.prompt_read.stages, frame.stages)
        case Embedded():
            into.embedded.session = frame.session
            into.embedded.values.extend(frame.values)
            _add_stages(into.embedded.stages, frame.stages)
        case Fault():
            into.fault.session = frame.session
            into.fault.peer = frame.peer
            into.fault.kind = frame.kind
            into.fault.message = frame.message


def decode_driver(message: pb.FromShard) -> list[DriverFrame]:
    return [_driver_value(frame) for frame in message.frames]


def _finish_value(finish: pb.Sampled.Finish) -> FinishReason | None:
    if finish not in _FINISH_FROM_PB:
        raise ProtocolError(f"a token came with the unknown end {finish}: are all shards of one version?")
    return _FINISH_FROM_PB[finish]


def _driver_value(frame: pb.FromShard.Frame) -> DriverFrame:
    match frame.WhichOneof("kind"):
        case "sampled":
            s = frame.sampled
            return Sampled(
                session=s.session,
                position=s.position,
                token=s.token,
                finish=_finish_value(s.finish),
                logprob=s.logprob if s.HasField("logprob") else None,
                top_logprobs=tuple(TokenLogprob(t.token, t.logprob) for t in s.top_logprobs),
                stages=_stage_values(s.stages),
            )
        case "prompt_read":
            r = frame.prompt_read
            return PromptRead(r.session, r.position, _stage_values(r.stages))
        case "embedded":
            e = frame.embedded
            return Embedded(e.session, tuple(e.values), _stage_values(e.stages))
        case "fault":
            f = frame.fault
            return Fault(f.session, f.peer, f.kind, f.message)
        case kind:
            raise ProtocolError(
                f"a driver frame of unknown kind {kind!r} arrived: are all shards of one version?"
            )


def _add_stages(into: RepeatedComposite[pb.Stage], stages: Iterable[StageTime]) -> None:
    for stage in stages:
        into.add(
            peer=stage.peer,
            queue_s=stage.queue_s,
            compute_s=stage.compute_s,
            disk_wait_s=stage.disk_wait_s,
            wire_s=stage.wire_s,
            read_bytes=stage.read_bytes,
            read_s=stage.read_s,
        )


def _stage_values(stages: Iterable[pb.Stage]) -> tuple[StageTime, ...]:
    return tuple(
        StageTime(s.peer, s.queue_s, s.compute_s, s.disk_wait_s, s.wire_s, s.read_bytes, s.read_s)
        for s in stages
    )
