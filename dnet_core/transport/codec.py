"""Values to protobuf messages and back, one function per direction. Messages never leave this package.

A message that does not say what it must is a ProtocolError.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer as RepeatedComposite

from dnet_core.errors import ProtocolError
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
    ShardStatus,
)
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
from dnet_core.types.devices import Medium, PeerAddress, ThunderboltPort
from dnet_core.types.generation import FinishReason, SamplingParams, StageTime, TokenLogprob
from dnet_core.types.profiles import LayerShape, ProfileRequest, Quantization, WeightFormat
from dnet_core.types.ring import LayerWindow

_FINISH_TO_PB = {
    None: pb.Sampled.FINISH_NONE,
    FinishReason.STOP: pb.Sampled.FINISH_STOP,
    FinishReason.LENGTH: pb.Sampled.FINISH_LENGTH,
}
_FINISH_FROM_PB = {value: key for key, value in _FINISH_TO_PB.items()}

_PURPOSE_TO_PB = {
    Purpose.ANSWER: pb.OpenSessionRequest.PURPOSE_ANSWER,
    Purpose.EMBED: pb.OpenSessionRequest.PURPOSE_EMBED,
    Purpose.READ: pb.OpenSessionRequest.PURPOSE_READ,
}
_PURPOSE_FROM_PB = {value: key for key, value in _PURPOSE_TO_PB.items()}

_STEP_TO_PB = {
    LoadStep.FETCH: pb.LoadProgress.STEP_FETCH,
    LoadStep.READ: pb.LoadProgress.STEP_READ,
    LoadStep.WARM: pb.LoadProgress.STEP_WARM,
    LoadStep.READY: pb.LoadProgress.STEP_READY,
}
_STEP_FROM_PB = {value: key for key, value in _STEP_TO_PB.items()}


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


# ---- control calls ----


def encode_status(status: ShardStatus) -> pb.DescribeReply:
    return pb.DescribeReply(
        name=status.name,
        version=status.version,
        protocol_version=status.protocol_version,
        cluster=status.cluster,
        grpc_port=status.grpc_port,
        http_port=status.http_port,
        backend=status.backend,
        active_bytes=status.active_bytes,
        peak_bytes=status.peak_bytes,
        memory_total_bytes=status.memory_total_bytes,
        model=status.model,
        sessions=status.sessions,
        prefixes=status.prefixes,
        prefix_bytes=status.prefix_bytes,
        steps=status.steps,
        budget_bytes=status.budget_bytes,
        num_resident=status.num_resident,
        num_streamed=status.num_streamed,
        read_bytes=status.read_bytes,
        read_s=status.read_s,
        kv_room_bytes=status.kv_room_bytes,
        kv_taken_bytes=status.kv_taken_bytes,
        id=status.id,
        addresses=[pb.Address(host=a.host, medium=a.medium) for a in status.addresses],
        thunderbolt=[pb.ThunderboltPort(domain=t.domain, connected=t.connected) for t in status.thunderbolt],
    )


def decode_status(m: pb.DescribeReply) -> ShardStatus:
    return ShardStatus(
        name=m.name,
        version=m.version,
        protocol_version=m.protocol_version,
        cluster=m.cluster,
        grpc_port=m.grpc_port,
        http_port=m.http_port,
        backend=m.backend,
        active_bytes=m.active_bytes,
        peak_bytes=m.peak_bytes,
        memory_total_bytes=m.memory_total_bytes,
        model=m.model if m.HasField("model") else None,
        sessions=tuple(m.sessions),
        prefixes=tuple(m.prefixes),
        prefix_bytes=m.prefix_bytes,
        steps=m.steps,
        budget_bytes=m.budget_bytes,
        num_resident=m.num_resident,
        num_streamed=m.num_streamed,
        read_bytes=m.read_bytes,
        read_s=m.read_s,
        kv_room_bytes=m.kv_room_bytes,
        kv_taken_bytes=m.kv_taken_bytes,
        id=m.id,
        addresses=tuple(PeerAddress(a.host, decode_medium(a.medium)) for a in m.addresses),
        thunderbolt=tuple(ThunderboltPort(t.domain, tuple(t.connected)) for t in m.thunderbolt),
    )


def decode_medium(name: str) -> Medium:
    """A newer version may know more of them than this one."""
    return next((medium for medium in Medium if medium == name), Medium.UNKNOWN)


def encode_load(order: LoadOrder) -> pb.LoadRequest:
    return pb.LoadRequest(
        model=order.model,
        num_layers=order.num_layers,
        windows=[pb.Window(start=w.start, stop=w.stop) for w in order.windows],
        streamed=order.streamed,
        num_buffers=order.num_buffers,
        context_tokens=order.context_tokens,
        kv_bits=order.kv_bits,
        next=None if order.next is None else pb.Hop(name=order.next.name, target=order.next.target),
        budget_bytes=order.limits.budget_bytes,
        workspace_bytes=order.limits.workspace_bytes,
        chunk_tokens=order.limits.chunk_tokens,
    )


def decode_load(m: pb.LoadRequest) -> LoadOrder:
    try:
        windows = tuple(LayerWindow(w.start, w.stop) for w in m.windows)
    except ValueError as error:
        raise ProtocolError(f"a load order is not lawful: {error}") from error
    follows = all(a.stop <= b.start for a, b in pairwise(windows))
    if not windows or not follows or windows[-1].stop > m.num_layers:
        told = ", ".join(map(str, windows)) or "none"
        raise ProtocolError(f"a load order needs windows in order within {m.num_layers} layers, not {told}")
    return LoadOrder(
        model=m.model,
        num_layers=m.num_layers,
        windows=windows,
        streamed=tuple(m.streamed),
        num_buffers=m.num_buffers,
        context_tokens=m.context_tokens,
        kv_bits=m.kv_bits,
        next=Hop(m.next.name, m.next.target) if m.HasField("next") else None,
        limits=Limits(
            m.budget_bytes if m.HasField("budget_bytes") else None, m.workspace_bytes, m.chunk_tokens
        ),
    )


def encode_report(report: LoadReport) -> pb.LoadProgress:
    return pb.LoadProgress(
        step=_STEP_TO_PB[report.step],
        done_bytes=report.done_bytes,
        total_bytes=report.total_bytes,
        fingerprint=report.fingerprint,
    )


def decode_report(m: pb.LoadProgress) -> LoadReport:
    if m.step not in _STEP_FROM_PB:
        raise ProtocolError(f"a load reports the unknown step {m.step}: are all shards of one version?")
    return LoadReport(_STEP_FROM_PB[m.step], m.done_bytes, m.total_bytes, m.fingerprint)


def encode_session(order: SessionOrder) -> pb.OpenSessionRequest:
    s = order.sampling
    return pb.OpenSessionRequest(
        session=order.session,
        prompt_tokens=order.prompt_tokens,
        max_tokens=order.max_tokens,
        stop_tokens=order.stop_tokens,
        recent_tokens=order.recent_tokens,
        answered_tokens=order.answered_tokens,
        purpose=_PURPOSE_TO_PB[order.purpose],
        reuse=None
        if order.reuse is None
        else pb.Reuse(prefix=order.reuse.prefix, tokens=order.reuse.num_tokens),
        sampling=pb.Sampling(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            min_tokens_to_keep=s.min_tokens_to_keep,
            xtc_probability=s.xtc_probability,
            xtc_threshold=s.xtc_threshold,
            xtc_special_tokens=order.xtc_special_tokens,
            repetition_penalty=s.repetition_penalty,
            repetition_context_tokens=s.repetition_context_tokens,
            presence_penalty=s.presence_penalty,
            presence_context_tokens=s.presence_context_tokens,
            frequency_penalty=s.frequency_penalty,
            frequency_context_tokens=s.frequency_context_tokens,
            logit_bias=[pb.LogitBias(token=token, bias=bias) for token, bias in s.logit_bias],
            logprobs=s.logprobs,
            seed=order.seed,
            grammar=s.grammar,
        ),
    )


def decode_session(m: pb.OpenSessionRequest) -> SessionOrder:
    if m.purpose not in _PURPOSE_FROM_PB:
        raise ProtocolError(f"a session has the unknown purpose {m.purpose}: are all shards of one version?")
    s = m.sampling
    try:
        sampling = SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            min_tokens_to_keep=s.min_tokens_to_keep,
            xtc_probability=s.xtc_probability,
            xtc_threshold=s.xtc_threshold,
            repetition_penalty=s.repetition_penalty,
            repetition_context_tokens=s.repetition_context_tokens,
            presence_penalty=s.presence_penalty,
            presence_context_tokens=s.presence_context_tokens
            if s.HasField("presence_context_tokens")
            else None,
            frequency_penalty=s.frequency_penalty,
            frequency_context_tokens=s.frequency_context_tokens
            if s.HasField("frequency_context_tokens")
            else None,
            logit_bias=tuple((b.token, b.bias) for b in s.logit_bias),
            logprobs=s.logprobs if s.HasField("logprobs") else None,
            seed=s.seed,
            max_tokens=m.max_tokens,
            grammar=s.grammar if s.HasField("grammar") else None,
        )
    except ValueError as error:
        raise ProtocolError(f"a session order is not lawful: {error}") from error
    return SessionOrder(
        session=m.session,
        prompt_tokens=m.prompt_tokens,
        max_tokens=m.max_tokens,
        stop_tokens=tuple(m.stop_tokens),
        recent_tokens=tuple(m.recent_tokens),
        xtc_special_tokens=tuple(s.xtc_special_tokens),
        sampling=sampling,
        seed=s.seed,
        answered_tokens=tuple(m.answered_tokens),
        purpose=_PURPOSE_FROM_PB[m.purpose],
        reuse=Reuse(m.reuse.prefix, m.reuse.tokens) if m.HasField("reuse") else None,
    )


def encode_profile_request(request: ProfileRequest, fresh: bool) -> pb.ProfileRequest:
    shape = request.shape
    return pb.ProfileRequest(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        formats=[_format(f) for f in request.formats],
        chunk_tokens=request.chunk_tokens,
        disk_read_size_bytes=request.disk_read_size_bytes,
        fresh=fresh,
    )


def _format(weight_format: WeightFormat) -> pb.ProfileRequest.Format:
    q = weight_format.quantization
    if q is None:
        return pb.ProfileRequest.Format(dtype=weight_format.dtype)
    return pb.ProfileRequest.Format(
        dtype=weight_format.dtype, bits=q.bits, group_size=q.group_size, mode=q.mode
    )


def decode_profile_request(m: pb.ProfileRequest) -> tuple[ProfileRequest, bool]:
    try:
        request = ProfileRequest(
            shape=LayerShape(m.hidden_size, m.intermediate_size, m.num_heads, m.num_kv_heads, m.head_dim),
            formats=tuple(
                WeightFormat(
                    f.dtype,
                    Quantization(f.bits, f.group_size, f.mode) if f.HasField("bits") else None,
                )
                for f in m.formats
            ),
            chunk_tokens=m.chunk_tokens,
            disk_read_size_bytes=m.disk_read_size_bytes,
        )
    except ValueError as error:
        raise ProtocolError(f"a profile request is not lawful: {error}") from error
    return request, m.fresh


def encode_kept(kept: KeptPrefix | None) -> pb.CloseSessionReply:
    if kept is None:
        return pb.CloseSessionReply()
    told = pb.CloseSessionReply.Kept(tokens=kept.num_tokens, can_trim=kept.can_trim)
    return pb.CloseSessionReply(kept=told)


def decode_kept(m: pb.CloseSessionReply) -> KeptPrefix | None:
    return KeptPrefix(m.kept.tokens, m.kept.can_trim) if m.HasField("kept") else None
