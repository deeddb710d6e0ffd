"""What the command line says of the endpoint. Imports nothing slow: options are read before all else."""

from __future__ import annotations

from dataclasses import dataclass

from dnet_core.option_types import SESSIONS, WAITING


@dataclass(frozen=True, slots=True)
class EndpointWish:
    """Where to listen, and the keys that requests need; any but a loopback address needs some.

    `sessions` answers are generated at once, `waiting` requests may wait for their turn.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    sessions: int = SESSIONS
    waiting: int = WAITING
