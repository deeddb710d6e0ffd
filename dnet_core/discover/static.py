"""Targets that a person wrote down: `--peer host:port` and hostfiles.

text, one per line                      JSON
# comment                               [{"host": "10.0.0.5", "grpc_port": 58081, "name": "studio"},
10.0.0.5:58081  studio                   {"host": "fe80::1%en5"}]
[2001:db8::7]
mini.local      mini                    only `host` is required
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dnet_core.errors import StartError
from dnet_core.types.devices import grpc_target

DEFAULT_GRPC_PORT = 58081
MAX_WORD_BYTES = 180  # a host name without its port: with it, it fits what a shard may be called

_TARGET = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<name>[^\s:\[\]]+))(?::(?P<port>\d{1,5}))?"
)
_NAME = re.compile(r"[^\s:\[\]/]+")


@dataclass(frozen=True, slots=True)
class StaticTarget:
    """Where a shard is said to be. `name` is what the person calls it until it is asked."""

    host: str
    grpc_port: int = DEFAULT_GRPC_PORT
    name: str | None = None

    def __post_init__(self) -> None:
        for word in (self.host, self.name or "-"):
            if not word or not word.isprintable() or len(word.encode()) > MAX_WORD_BYTES:
                raise ValueError(f"not a host or a name: {word!r}")
        if not (_NAME.fullmatch(self.host) or _is_ipv6(self.host)):
            hint = ": its port goes into 'grpc_port'" if self.host.count(":") == 1 else ""
            raise ValueError(f"'{self.host}' is not a host name or an IP address{hint}")
        if not 0 < self.grpc_port < 65536:
            raise ValueError(f"{self.grpc_port} is not a port: use 1 to 65535")

    @property
    def target(self) -> str:
        """`host:port`, as gRPC wants it."""
        return grpc_target(self.host, self.grpc_port)


def _is_ipv6(host: str) -> bool:
    try:
        return ip_address(host).version == 6
    except ValueError:
        return False


class _HostEntry(BaseModel):
    """One object of a JSON hostfile."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    host: str = Field(min_length=1)
    grpc_port: int = Field(default=DEFAULT_GRPC_PORT, ge=1, le=65535)
    name: str | None = Field(default=None, min_length=1)


_HOSTFILE = TypeAdapter(list[_HostEntry])


def parse_target(text: str) -> StaticTarget:
    """Read `host`, `host:port` or `[v6]:port`. Raises ValueError with what is wrong."""
    match = _TARGET.fullmatch(text)
    if match is None:
        hint = (
            f": an IPv6 address needs brackets, [{text}]" if text.count(":") > 1 and "[" not in text else ""
        )
        raise ValueError(f"'{text}' is not host, host:port or [ipv6]:port{hint}")
    port = match["port"]
    return StaticTarget(match["v6"] or match["name"], int(port) if port else DEFAULT_GRPC_PORT)


def parse_peer_option(text: str) -> StaticTarget:
    """Read one `--peer`. Raises StartError."""
    try:
        return parse_target(text)
    except ValueError as error:
        raise StartError(f"--peer: {error}") from error


def read_hostfile(path: Path) -> tuple[StaticTarget, ...]:
    """Read a hostfile, JSON if it starts with `[` or `{`, else text. Raises StartError with file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StartError(f"cannot read the hostfile {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StartError(f"cannot read the hostfile {path}: it is no text") from error
    # A text hostfile may start with a bracket too: [2001:db8::7]
    is_json = path.suffix == ".json" or re.match(r"\s*(\{|\[\s*[\{\]])", text) is not None
    targets: dict[str, StaticTarget] = {}
    for line, target in _parse_json(text, path) if is_json else _parse_text(text, path):
        if target.target in targets:
            raise StartError(f"{path}:{line}: {target.target} is there twice")
        targets[target.target] = target
    if not targets:
        raise StartError(f"the hostfile {path} names no host")
    return tuple(targets.values())


def _parse_text(text: str, path: Path) -> Iterator[tuple[int, StaticTarget]]:
    for line, content in enumerate(text.splitlines(), start=1):
        words = content.split("#", 1)[0].split()
        if not words:
            continue
        try:
            yield line, _parse_words(words)
        except ValueError as error:
            raise StartError(f"{path}:{line}: {error}") from error


def _parse_words(words: list[str]) -> StaticTarget:
    if len(words) > 2:
        raise ValueError(f"expected 'host[:grpc_port] [name]', not {len(words)} words")
    where = parse_target(words[0])
    return StaticTarget(where.host, where.grpc_port, words[1]) if len(words) == 2 else where


def _parse_json(text: str, path: Path) -> Iterator[tuple[int, StaticTarget]]:
    try:
        json.loads(text)  # only for its line numbers: pydantic tells them in prose
        entries = _HOSTFILE.validate_json(text)
    except json.JSONDecodeError as error:
        raise StartError(f"{path}:{error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):  # a number of thousands of digits, brackets without end
            raise StartError(f"{path}: it is no list of hosts: {error}") from error
        first = error.errors()[0]
        index, *field = first["loc"] or (0,)
        what = "".join(f"{part}: " for part in field)
        raise StartError(f"{path}:{_line_of(text, index)}: {what}{first['msg']}") from error
    for index, entry in enumerate(entries):
        line = _line_of(text, index)
        try:
            yield line, StaticTarget(entry.host, entry.grpc_port, entry.name)
        except ValueError as error:
            raise StartError(f"{path}:{line}: {error}") from error


def _line_of(text: str, index: int | str) -> int:
    """The line on which the entry number `index` opens its brace (entries hold no braces of their own)."""
    braces = [match.start() for match in re.finditer(r'"(?:\\.|[^"\\])*"|\{', text) if match[0] == "{"]
    position = braces[index] if isinstance(index, int) and index < len(braces) else 0
    return text.count("\n", 0, position) + 1
