"""What several commands read from their options; refusals are for the person who typed, not for a programmer.

Every reader is an argparse type: it raises ArgumentTypeError with the whole sentence.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

_Word = TypeVar("_Word", bound=StrEnum)


def whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def at_least_one(text: str) -> int:
    number = whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"at least 1, not {number}")
    return number


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
