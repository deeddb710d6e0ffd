"""What the command line says of the endpoint. Imports nothing slow: options are read before all else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndpointWish:
    """Where to listen, and the keys that requests need; any but a loopback address needs some."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
