"""What several commands read from their options; refusals are for the person who typed, not for a programmer.

Every reader is an argparse type: it raises ArgumentTypeError with the whole sentence.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

MAX_NAME_BYTES = 50

SESSIONS, WAITING = 4, 64
"""Answers generated at once, and requests that may wait for their turn, unless asked otherwise."""

_MOST = 10**9
_Word = TypeVar("_Word", bound=StrEnum)


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def at_least_one(text: str) -> int:
    """A count; what is beyond a billion is a slip of the hand, and more than a computation can take."""
    number = whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, not {number}")
    if number > _MOST:
        raise argparse.ArgumentTypeError(f"at most {_MOST:,}")
    return number


def a_name(text: str) -> str:
    """What a device or a cluster may be called: it is announced, and drawn on terminals."""
    if not text.strip() or not text.isprintable() or len(text.encode()) > MAX_NAME_BYTES:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name: use 1 to {MAX_NAME_BYTES} bytes of printable text"
        )
    return text


def port(text: str) -> int:
    """A TCP port to listen on; 0 lets the system choose."""
    number = whole_number(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"a port is between 0 and 65535, not {number}")
    return number


def one_of(words: type[_Word]) -> Callable[[str], _Word]:
    """A reader of the words of an enumeration (argparse's own message would show the name of the class)."""

    def read(text: str) -> _Word:
        try:
            return words(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(words)}") from None

    return read


def add_endpoint_options(parser: argparse.ArgumentParser, title: str) -> argparse._ArgumentGroup:
    """Add the group of options on where the OpenAI endpoint listens, who may use it, how many at once."""
    http = parser.add_argument_group(title)
    http.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; any but a loopback one needs an API key (default: %(default)s)",
    )
    http.add_argument(
        "--http-port",
        type=port,
        default=8080,
        metavar="PORT",
        help="0 picks a free one (default: %(default)s)",
    )
    http.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="API keys, one per line; requests need one of them (also: DNET_API_KEYS=key,key)",
    )
    http.add_argument(
        "--sessions",
        type=at_least_one,
        default=SESSIONS,
        metavar="N",
        help="answers that are generated at once (default: %(default)s)",
    )
    http.add_argument(
        "--waiting",
        type=at_least_one,
        default=WAITING,
        metavar="N",
        help="requests that may wait for their turn; more are told to come back (default: %(default)s)",
    )
    return http
