"""DnetErrors across a gRPC call: the class name travels in the trailing metadata, the text in the details."""

from __future__ import annotations

import grpc

from dnet_core import errors
from dnet_core.errors import DeadlineExceeded, DnetError, PeerLost, ProtocolError
from dnet_core.transport import tls

ERROR_KEY = "dnet-error"

_CODES: tuple[tuple[type[DnetError], grpc.StatusCode], ...] = (
    (errors.UnknownModel, grpc.StatusCode.NOT_FOUND),
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


def rebuild(kind: str, message: str, peer: str) -> DnetError:
    """The error that another process raised, as far as a class name and a text can tell it.

    `peer` is whom it is about, for the errors that say so.
    """
    cls = getattr(errors, kind, None)
    if not (isinstance(cls, type) and issubclass(cls, DnetError)):
        return ProtocolError(f"a shard reports an unknown kind of error, {kind!r}: {message}")
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    if isinstance(error, PeerLost | DeadlineExceeded):
        error.peer = peer
    return error


def from_rpc(error: grpc.aio.AioRpcError, peer: str) -> DnetError:
    """What a failed call to `peer` means."""
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_KEY:
            text = error.details() or ""
            return rebuild(str(value), text if peer in text else f"{peer}: {text}", peer)
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
