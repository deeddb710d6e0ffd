"""The control calls' values to protobuf messages and back, one function per direction; see `codec.py`."""

from __future__ import annotations

from itertools import pairwise

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
from dnet_core.transport.pb import shard_pb2 as pb
from dnet_core.types.devices import Medium, PeerAddress, ThunderboltPort
from dnet_core.types.generation import SamplingParams
from dnet_core.types.profiles import LayerShape, ProfileRequest, Quantization, WeightFormat
from dnet_core.types.ring import LayerWindow

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
