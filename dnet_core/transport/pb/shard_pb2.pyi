from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Address(_message.Message):
    __slots__ = ("host", "medium")
    HOST_FIELD_NUMBER: _ClassVar[int]
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    host: str
    medium: str
    def __init__(self, host: _Optional[str] = ..., medium: _Optional[str] = ...) -> None: ...

class ThunderboltPort(_message.Message):
    __slots__ = ("domain", "connected")
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    domain: str
    connected: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, domain: _Optional[str] = ..., connected: _Optional[_Iterable[str]] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("name", "version", "protocol_version", "cluster", "grpc_port", "http_port", "backend", "active_bytes", "peak_bytes", "memory_total_bytes", "model", "sessions", "steps", "id", "addresses", "thunderbolt", "budget_bytes", "num_resident", "num_streamed", "read_bytes", "read_s", "kv_room_bytes", "kv_taken_bytes", "prefixes", "prefix_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    GRPC_PORT_FIELD_NUMBER: _ClassVar[int]
    HTTP_PORT_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    THUNDERBOLT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_RESIDENT_FIELD_NUMBER: _ClassVar[int]
    NUM_STREAMED_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_S_FIELD_NUMBER: _ClassVar[int]
    KV_ROOM_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_TAKEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    protocol_version: int
    cluster: str
    grpc_port: int
    http_port: int
    backend: str
    active_bytes: int
    peak_bytes: int
    memory_total_bytes: int
    model: str
    sessions: _containers.RepeatedScalarFieldContainer[str]
    steps: int
    id: str
    addresses: _containers.RepeatedCompositeFieldContainer[Address]
    thunderbolt: _containers.RepeatedCompositeFieldContainer[ThunderboltPort]
    budget_bytes: int
    num_resident: int
    num_streamed: int
    read_bytes: int
    read_s: float
    kv_room_bytes: int
    kv_taken_bytes: int
    prefixes: _containers.RepeatedScalarFieldContainer[str]
    prefix_bytes: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., protocol_version: _Optional[int] = ..., cluster: _Optional[str] = ..., grpc_port: _Optional[int] = ..., http_port: _Optional[int] = ..., backend: _Optional[str] = ..., active_bytes: _Optional[int] = ..., peak_bytes: _Optional[int] = ..., memory_total_bytes: _Optional[int] = ..., model: _Optional[str] = ..., sessions: _Optional[_Iterable[str]] = ..., steps: _Optional[int] = ..., id: _Optional[str] = ..., addresses: _Optional[_Iterable[_Union[Address, _Mapping]]] = ..., thunderbolt: _Optional[_Iterable[_Union[ThunderboltPort, _Mapping]]] = ..., budget_bytes: _Optional[int] = ..., num_resident: _Optional[int] = ..., num_streamed: _Optional[int] = ..., read_bytes: _Optional[int] = ..., read_s: _Optional[float] = ..., kv_room_bytes: _Optional[int] = ..., kv_taken_bytes: _Optional[int] = ..., prefixes: _Optional[_Iterable[str]] = ..., prefix_bytes: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsReply(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, models: _Optional[_Iterable[str]] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("model", "num_layers", "windows", "streamed", "num_buffers", "context_tokens", "kv_bits", "next", "budget_bytes", "workspace_bytes", "chunk_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    WINDOWS_FIELD_NUMBER: _ClassVar[int]
    STREAMED_FIELD_NUMBER: _ClassVar[int]
    NUM_BUFFERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_BITS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKSPACE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    num_layers: int
    windows: _containers.RepeatedCompositeFieldContainer[Window]
    streamed: _containers.RepeatedScalarFieldContainer[int]
    num_buffers: int
    context_tokens: int
    kv_bits: int
    next: Hop
    budget_bytes: int
    workspace_bytes: int
    chunk_tokens: int
    def __init__(self, model: _Optional[str] = ..., num_layers: _Optional[int] = ..., windows: _Optional[_Iterable[_Union[Window, _Mapping]]] = ..., streamed: _Optional[_Iterable[int]] = ..., num_buffers: _Optional[int] = ..., context_tokens: _Optional[int] = ..., kv_bits: _Optional[int] = ..., next: _Optional[_Union[Hop, _Mapping]] = ..., budget_bytes: _Optional[int] = ..., workspace_bytes: _Optional[int] = ..., chunk_tokens: _Optional[int] = ...) -> None: ...

class Hop(_message.Message):
    __slots__ = ("name", "target")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    name: str
    target: str
    def __init__(self, name: _Optional[str] = ..., target: _Optional[str] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("step", "done_bytes", "total_bytes", "fingerprint")
    class Step(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STEP_UNSPECIFIED: _ClassVar[LoadProgress.Step]
        STEP_FETCH: _ClassVar[LoadProgress.Step]
        STEP_READ: _ClassVar[LoadProgress.Step]
        STEP_WARM: _ClassVar[LoadProgress.Step]
        STEP_READY: _ClassVar[LoadProgress.Step]
    STEP_UNSPECIFIED: LoadProgress.Step
    STEP_FETCH: LoadProgress.Step
    STEP_READ: LoadProgress.Step
    STEP_WARM: LoadProgress.Step
    STEP_READY: LoadProgress.Step
    STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    step: LoadProgress.Step
    done_bytes: int
    total_bytes: int
    fingerprint: str
    def __init__(self, step: _Optional[_Union[LoadProgress.Step, str]] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class ProfileRequest(_message.Message):
    __slots__ = ("hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim", "formats", "chunk_tokens", "disk_read_size_bytes", "fresh")
    class Format(_message.Message):
        __slots__ = ("dtype", "bits", "group_size", "mode")
        DTYPE_FIELD_NUMBER: _ClassVar[int]
        BITS_FIELD_NUMBER: _ClassVar[int]
        GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
        MODE_FIELD_NUMBER: _ClassVar[int]
        dtype: str
        bits: int
        group_size: int
        mode: str
        def __init__(self, dtype: _Optional[str] = ..., bits: _Optional[int] = ..., group_size: _Optional[int] = ..., mode: _Optional[str] = ...) -> None: ...
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    INTERMEDIATE_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_HEADS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DISK_READ_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FRESH_FIELD_NUMBER: _ClassVar[int]
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    formats: _containers.RepeatedCompositeFieldContainer[ProfileRequest.Format]
    chunk_tokens: int
    disk_read_size_bytes: int
    fresh: bool
    def __init__(self, hidden_size: _Optional[int] = ..., intermediate_size: _Optional[int] = ..., num_heads: _Optional[int] = ..., num_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., formats: _Optional[_Iterable[_Union[ProfileRequest.Format, _Mapping]]] = ..., chunk_tokens: _Optional[int] = ..., disk_read_size_bytes: _Optional[int] = ..., fresh: _Optional[bool] = ...) -> None: ...

class ProfileReply(_message.Message):
    __slots__ = ("profile_json",)
    PROFILE_JSON_FIELD_NUMBER: _ClassVar[int]
    profile_json: str
    def __init__(self, profile_json: _Optional[str] = ...) -> None: ...

class MeasureLinkRequest(_message.Message):
    __slots__ = ("hop", "medium")
    HOP_FIELD_NUMBER: _ClassVar[int]
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    hop: Hop
    medium: str
    def __init__(self, hop: _Optional[_Union[Hop, _Mapping]] = ..., medium: _Optional[str] = ...) -> None: ...

class MeasureLinkReply(_message.Message):
    __slots__ = ("latency_s", "bytes_per_s")
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    latency_s: float
    bytes_per_s: float
    def __init__(self, latency_s: _Optional[float] = ..., bytes_per_s: _Optional[float] = ...) -> None: ...

class EchoRequest(_message.Message):
    __slots__ = ("payload",)
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    def __init__(self, payload: _Optional[bytes] = ...) -> None: ...

class EchoReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnloadReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LogitBias(_message.Message):
    __slots__ = ("token", "bias")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    token: int
    bias: float
    def __init__(self, token: _Optional[int] = ..., bias: _Optional[float] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "min_tokens_to_keep", "xtc_probability", "xtc_threshold", "xtc_special_tokens", "repetition_penalty", "repetition_context_tokens", "presence_penalty", "presence_context_tokens", "frequency_penalty", "frequency_context_tokens", "logit_bias", "logprobs", "seed", "grammar")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_TO_KEEP_FIELD_NUMBER: _ClassVar[int]
    XTC_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    XTC_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    XTC_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    min_tokens_to_keep: int
    xtc_probability: float
    xtc_threshold: float
    xtc_special_tokens: _containers.RepeatedScalarFieldContainer[int]
    repetition_penalty: float
    repetition_context_tokens: int
    presence_penalty: float
    presence_context_tokens: int
    frequency_penalty: float
    frequency_context_tokens: int
    logit_bias: _containers.RepeatedCompositeFieldContainer[LogitBias]
    logprobs: int
    seed: int
    grammar: str
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., min_tokens_to_keep: _Optional[int] = ..., xtc_probability: _Optional[float] = ..., xtc_threshold: _Optional[float] = ..., xtc_special_tokens: _Optional[_Iterable[int]] = ..., repetition_penalty: _Optional[float] = ..., repetition_context_tokens: _Optional[int] = ..., presence_penalty: _Optional[float] = ..., presence_context_tokens: _Optional[int] = ..., frequency_penalty: _Optional[float] = ..., frequency_context_tokens: _Optional[int] = ..., logit_bias: _Optional[_Iterable[_Union[LogitBias, _Mapping]]] = ..., logprobs: _Optional[int] = ..., seed: _Optional[int] = ..., grammar: _Optional[str] = ...) -> None: ...

class Reuse(_message.Message):
    __slots__ = ("prefix", "tokens")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    tokens: int
    def __init__(self, prefix: _Optional[str] = ..., tokens: _Optional[int] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("session", "prompt_tokens", "max_tokens", "stop_tokens", "recent_tokens", "sampling", "answered_tokens", "purpose", "reuse")
    class Purpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PURPOSE_UNSPECIFIED: _ClassVar[OpenSessionRequest.Purpose]
        PURPOSE_ANSWER: _ClassVar[OpenSessionRequest.Purpose]
        PURPOSE_EMBED: _ClassVar[OpenSessionRequest.Purpose]
        PURPOSE_READ: _ClassVar[OpenSessionRequest.Purpose]
    PURPOSE_UNSPECIFIED: OpenSessionRequest.Purpose
    PURPOSE_ANSWER: OpenSessionRequest.Purpose
    PURPOSE_EMBED: OpenSessionRequest.Purpose
    PURPOSE_READ: OpenSessionRequest.Purpose
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECENT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    REUSE_FIELD_NUMBER: _ClassVar[int]
    session: str
    prompt_tokens: int
    max_tokens: int
    stop_tokens: _containers.RepeatedScalarFieldContainer[int]
    recent_tokens: _containers.RepeatedScalarFieldContainer[int]
    sampling: Sampling
    answered_tokens: _containers.RepeatedScalarFieldContainer[int]
    purpose: OpenSessionRequest.Purpose
    reuse: Reuse
    def __init__(self, session: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stop_tokens: _Optional[_Iterable[int]] = ..., recent_tokens: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., answered_tokens: _Optional[_Iterable[int]] = ..., purpose: _Optional[_Union[OpenSessionRequest.Purpose, str]] = ..., reuse: _Optional[_Union[Reuse, _Mapping]] = ...) -> None: ...

class OpenSessionReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session", "keep_as")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    KEEP_AS_FIELD_NUMBER: _ClassVar[int]
    session: str
    keep_as: str
    def __init__(self, session: _Optional[str] = ..., keep_as: _Optional[str] = ...) -> None: ...

class CloseSessionReply(_message.Message):
    __slots__ = ("kept",)
    class Kept(_message.Message):
        __slots__ = ("tokens", "can_trim")
        TOKENS_FIELD_NUMBER: _ClassVar[int]
        CAN_TRIM_FIELD_NUMBER: _ClassVar[int]
        tokens: int
        can_trim: bool
        def __init__(self, tokens: _Optional[int] = ..., can_trim: _Optional[bool] = ...) -> None: ...
    KEPT_FIELD_NUMBER: _ClassVar[int]
    kept: CloseSessionReply.Kept
    def __init__(self, kept: _Optional[_Union[CloseSessionReply.Kept, _Mapping]] = ...) -> None: ...

class DropPrefixesRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class DropPrefixesReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ping(_message.Message):
    __slots__ = ("sent_ns",)
    SENT_NS_FIELD_NUMBER: _ClassVar[int]
    sent_ns: int
    def __init__(self, sent_ns: _Optional[int] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("ping_sent_ns", "received_ns")
    PING_SENT_NS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_NS_FIELD_NUMBER: _ClassVar[int]
    ping_sent_ns: int
    received_ns: int
    def __init__(self, ping_sent_ns: _Optional[int] = ..., received_ns: _Optional[int] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("peer", "queue_s", "compute_s", "disk_wait_s", "wire_s", "read_bytes", "read_s")
    PEER_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    DISK_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    WIRE_S_FIELD_NUMBER: _ClassVar[int]
    READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    READ_S_FIELD_NUMBER: _ClassVar[int]
    peer: str
    queue_s: float
    compute_s: float
    disk_wait_s: float
    wire_s: float
    read_bytes: int
    read_s: float
    def __init__(self, peer: _Optional[str] = ..., queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., disk_wait_s: _Optional[float] = ..., wire_s: _Optional[float] = ..., read_bytes: _Optional[int] = ..., read_s: _Optional[float] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("dtype", "shape", "data")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("session", "position", "tokens", "last")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    session: str
    position: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    last: bool
    def __init__(self, session: _Optional[str] = ..., position: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., last: _Optional[bool] = ...) -> None: ...

class Activation(_message.Message):
    __slots__ = ("session", "position", "num_tokens", "next_layer", "last", "tensors", "stages")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    session: str
    position: int
    num_tokens: int
    next_layer: int
    last: bool
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    def __init__(self, session: _Optional[str] = ..., position: _Optional[int] = ..., num_tokens: _Optional[int] = ..., next_layer: _Optional[int] = ..., last: _Optional[bool] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("session", "position", "tokens")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    session: str
    position: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, session: _Optional[str] = ..., position: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: str
    def __init__(self, session: _Optional[str] = ...) -> None: ...

class ToShard(_message.Message):
    __slots__ = ("sent_ns", "ping", "frames")
    class Frame(_message.Message):
        __slots__ = ("prompt", "activation", "tokens", "cancel")
        PROMPT_FIELD_NUMBER: _ClassVar[int]
        ACTIVATION_FIELD_NUMBER: _ClassVar[int]
        TOKENS_FIELD_NUMBER: _ClassVar[int]
        CANCEL_FIELD_NUMBER: _ClassVar[int]
        prompt: Prompt
        activation: Activation
        tokens: Tokens
        cancel: Cancel
        def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., activation: _Optional[_Union[Activation, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...
    SENT_NS_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    sent_ns: int
    ping: Ping
    frames: _containers.RepeatedCompositeFieldContainer[ToShard.Frame]
    def __init__(self, sent_ns: _Optional[int] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., frames: _Optional[_Iterable[_Union[ToShard.Frame, _Mapping]]] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token", "logprob")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class Sampled(_message.Message):
    __slots__ = ("session", "position", "token", "finish", "logprob", "top_logprobs", "stages")
    class Finish(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FINISH_NONE: _ClassVar[Sampled.Finish]
        FINISH_STOP: _ClassVar[Sampled.Finish]
        FINISH_LENGTH: _ClassVar[Sampled.Finish]
    FINISH_NONE: Sampled.Finish
    FINISH_STOP: Sampled.Finish
    FINISH_LENGTH: Sampled.Finish
    SESSION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    session: str
    position: int
    token: int
    finish: Sampled.Finish
    logprob: float
    top_logprobs: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    def __init__(self, session: _Optional[str] = ..., position: _Optional[int] = ..., token: _Optional[int] = ..., finish: _Optional[_Union[Sampled.Finish, str]] = ..., logprob: _Optional[float] = ..., top_logprobs: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ...) -> None: ...

class PromptRead(_message.Message):
    __slots__ = ("session", "position", "stages")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    session: str
    position: int
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    def __init__(self, session: _Optional[str] = ..., position: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ...) -> None: ...

class Embedded(_message.Message):
    __slots__ = ("session", "values", "stages")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    session: str
    values: _containers.RepeatedScalarFieldContainer[float]
    stages: _containers.RepeatedCompositeFieldContainer[Stage]
    def __init__(self, session: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ..., stages: _Optional[_Iterable[_Union[Stage, _Mapping]]] = ...) -> None: ...

class Fault(_message.Message):
    __slots__ = ("session", "peer", "kind", "message")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    session: str
    peer: str
    kind: str
    message: str
    def __init__(self, session: _Optional[str] = ..., peer: _Optional[str] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class FromShard(_message.Message):
    __slots__ = ("pong", "frames")
    class Frame(_message.Message):
        __slots__ = ("sampled", "prompt_read", "fault", "embedded")
        SAMPLED_FIELD_NUMBER: _ClassVar[int]
        PROMPT_READ_FIELD_NUMBER: _ClassVar[int]
        FAULT_FIELD_NUMBER: _ClassVar[int]
        EMBEDDED_FIELD_NUMBER: _ClassVar[int]
        sampled: Sampled
        prompt_read: PromptRead
        fault: Fault
        embedded: Embedded
        def __init__(self, sampled: _Optional[_Union[Sampled, _Mapping]] = ..., prompt_read: _Optional[_Union[PromptRead, _Mapping]] = ..., fault: _Optional[_Union[Fault, _Mapping]] = ..., embedded: _Optional[_Union[Embedded, _Mapping]] = ...) -> None: ...
    PONG_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    pong: Pong
    frames: _containers.RepeatedCompositeFieldContainer[FromShard.Frame]
    def __init__(self, pong: _Optional[_Union[Pong, _Mapping]] = ..., frames: _Optional[_Iterable[_Union[FromShard.Frame, _Mapping]]] = ...) -> None: ...
