"""DnetErrors across a gRPC call: the text travels in the details, class and peer in the trailing metadata."""

from __future__ import annotations

import grpc

from dnet_core import errors
from dnet_core.errors import DeadlineExceeded, DnetError, NoRoom, PeerLost, ProtocolError
from dnet_core.transport import tls

_ABOUT_A_PEER = PeerLost | DeadlineExceeded | NoRoom

ERROR_KEY = "dnet-error"
PEER_KEY = "dnet-peer-bin"  # bytes: a name need not be ASCII

_CODES: tuple[tuple[type[DnetError], grpc.StatusCode], ...] = (
    (errors.UnknownModel, grpc.StatusCode.NOT_FOUND),
    (errors.NoRoom, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotReady, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.InfeasiblePlan, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.LoadError, grpc.StatusCode.DATA_LOSS),
    (errors.TrustError, grpc.StatusCode.UNAUTHENTICATED),
    (errors.RingError, grpc.StatusCode.UNAVAILABLE),
    (errors.DnetError, grpc.StatusCode.INTERNAL),
)


def code_of(error: DnetError) -> grpc.StatusCode:
    return next(code for kind, code in _CODES if isinstance(error, kind))


def metadata_of(error: DnetError) -> tuple[tuple[str, str | bytes], ...]:
    """What tells the caller which error it was, and whom it is about."""
    kind = (ERROR_KEY, type(error).__name__)
    return (kind, (PEER_KEY, error.peer.encode())) if isinstance(error, _ABOUT_A_PEER) else (kind,)


def rebuild(kind: str, message: str, peer: str) -> DnetError:
    """The error that another process raised, as far as a class name and a text can tell it.

    `peer` is whom it is about, for the errors that say so.
    """
    cls = getattr(errors, kind, None)
    if not (isinstance(cls, type) and issubclass(cls, DnetError)):
        return ProtocolError(f"a shard reports an unknown kind of error, {kind!r}: {message}")
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    if isinstance(error, _ABOUT_A_PEER):
        error.peer = peer
    return error


def from_rpc(error: grpc.aio.AioRpcError, peer: str) -> DnetError:
    """What a failed call to `peer` means."""
    told = dict(error.trailing_metadata() or ())
    if ERROR_KEY in told:
        text = error.details() or ""
        about = told.get(PEER_KEY)
        name = about.decode() if isinstance(about, bytes) else peer
        return rebuild(str(told[ERROR_KEY]), text if peer in text else f"{peer}: {text}", name)
    details = error.details() or error.code().name.lower()
    distrust = tls.refusal(peer, details)
    if distrust is not None:
        return distrust
    match error.code():
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED | grpc.StatusCode.INTERNAL:
            # Errors of ours carry their name: an INTERNAL without one is gRPC's word for a broken stream.
            return PeerLost(peer, details)
        case grpc.StatusCode.UNIMPLEMENTED:
            return ProtocolError(f"{peer} does not speak this protocol version: update dnet there and here")
        case _:
            return ProtocolError(f"{peer} answered {error.code().name}: {details}")
