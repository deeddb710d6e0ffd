"""The one error tree. Errors carry data; `str(error)` says what happened, where, and what to do next.

DnetError
  RequestError        the caller can fix it
    UnknownModel      no such model here or on the hub
    UnsupportedModel  the architecture or the file cannot run in a ring
    ContextTooLong    prompt longer than the context
    NoRoom            the memory for it is in use now; it may be asked again
    GrammarError      a grammar, JSON schema or regular expression that is invalid or too complex
  NotReady            no model is loaded, or one is being loaded
    PeerAbsent        a device that is asked for is not there
  InfeasiblePlan      the model does not fit, with what is missing per device
  LoadError           missing or corrupt files, disk full
  ProfileError        a measurement of a device or link failed
  PrefixGone          a shard no longer has the KV that a session was to begin with: it reads the prompt anew
  RingError           a hop failed
    PeerLost          a shard went away
    PeerReturned      the ring ends, because a shard that is back takes part in the next one
    DeadlineExceeded  a named wait ran out
  ProtocolError       a frame or reply that this version does not understand
  TrustError          wrong or missing cluster key
  StartError          this process cannot start as asked (bad option, ...)
    PortTaken         another program listens there
"""

from __future__ import annotations


class DnetError(Exception):
    """Base of all errors a person may see."""


class RequestError(DnetError):
    """The request cannot be served as it is; the message says what to change."""


class UnknownModel(RequestError):
    def __init__(self, model: str, detail: str) -> None:
        super().__init__(f"model '{model}' was not found: {detail}")
        self.model = model
        self.detail = detail


class UnsupportedModel(RequestError):
    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"model '{model}' is not supported: {reason}")
        self.model = model
        self.reason = reason


class ContextTooLong(RequestError):
    def __init__(self, prompt_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"the prompt has {prompt_tokens:,} tokens, but the context holds {context_tokens:,} including at"
            " least one token of answer: shorten the conversation or load with a longer context"
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class GrammarError(RequestError):
    """What an answer is to be bound to is invalid, or too complex to follow; the message is llguidance's."""


class NoRoom(RequestError):
    """Sessions that run have the memory that this one needs; `peer` is the device that lacks it."""

    def __init__(self, peer: str, detail: str) -> None:
        super().__init__(f"{peer} has no room now: {detail}; try again when an answer has ended")
        self.peer = peer


class NotReady(DnetError):
    """No model is loaded (yet)."""


class PeerAbsent(NotReady):
    def __init__(self, peer: str, known: tuple[str, ...]) -> None:
        super().__init__(f"'{peer}' is not there: known devices are {', '.join(known) or 'none'}")
        self.peer = peer


class InfeasiblePlan(DnetError):
    """The model does not fit the devices. `reasons` maps each peer to what it lacks.

    `missing_bytes` is the same in numbers, for the peers that lack memory; `advice` is what would help, one
    sentence each.
    """

    def __init__(
        self,
        summary: str,
        reasons: dict[str, str],
        missing_bytes: dict[str, int] | None = None,
        advice: tuple[str, ...] = (),
    ) -> None:
        lines = [summary, *(f"  {peer}: {why}" for peer, why in reasons.items())]
        super().__init__("\n".join([*lines, *(f"  what would help: {line}" for line in advice)]))
        self.reasons = reasons
        self.missing_bytes = missing_bytes or {}
        self.advice = advice


class LoadError(DnetError):
    """Model files are missing or corrupt, or there is no room for them."""


class ProfileError(DnetError):
    """A measurement of `device` (or of the link from it) failed; there is no figure to plan with."""

    def __init__(self, device: str, what: str, detail: str) -> None:
        super().__init__(f"{device}: the {what} could not be measured: {detail}")
        self.device = device
        self.what = what


class PrefixGone(DnetError):
    """A kept prefix is not on `peer` any more, or cannot go back so far. The driver reads the prompt anew."""

    def __init__(self, peer: str) -> None:
        super().__init__(f"{peer} does not have the beginning of this prompt any more")


class RingError(DnetError):
    """A hop of the ring failed."""


class PeerLost(RingError):
    def __init__(self, peer: str, detail: str) -> None:
        super().__init__(f"{peer} left the ring: {detail}")
        self.peer = peer


class PeerReturned(RingError):
    def __init__(self, peers: tuple[str, ...]) -> None:
        self.peer = " and ".join(peers)
        self.peers = peers
        super().__init__(f"{self.peer} takes part again: layers move")


class DeadlineExceeded(RingError):
    def __init__(self, peer: str, what: str, seconds: float) -> None:
        super().__init__(f"{peer} did not {what} within {seconds:g} s")
        self.peer = peer


class ProtocolError(DnetError):
    """A message that this version does not understand; usually two versions of dnet in one ring."""


class TrustError(DnetError):
    """The other side does not have this cluster's key."""


class StartError(DnetError):
    """This process cannot start as asked."""


class PortTaken(StartError):
    """Another program listens on `port`; `free_port` is the next that is free (None: none near it is)."""

    def __init__(self, host: str, port: int, free_port: int | None) -> None:
        free = f"port {free_port} is free (--http-port {free_port})"
        advice = "choose another with --http-port" if free_port is None else free
        super().__init__(f"cannot listen on {host} port {port}: another program uses it; {advice}")
        self.host = host
        self.port = port
        self.free_port = free_port
