"""Prefixes are kept in the room that no session has: the oldest go first, all of them when it is needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from dnet_core.errors import NoRoom, PrefixGone
from dnet_core.shard.memory import KvRoom
from dnet_core.transport.control import KeptPrefix, Purpose, Reuse, SessionOrder
from dnet_core.transport.frames import Prompt
from dnet_core.types.generation import SamplingParams
from dnet_core.types.ring import LayerWindow
from tests.tiny_models import write_tiny_model
from tests.unit.shard.test_runtime import LAYERS, Shard

TOKENS = 64


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model("llama", tmp_path_factory.mktemp("room"))


@pytest.fixture
def shard(directory: Path) -> Shard:
    """A shard with room for three sessions of `TOKENS` tokens."""
    made = Shard(directory, LayerWindow(0, LAYERS))
    room = made.runtime.room
    made.runtime._room = KvRoom("here", 10**9, 3 * room.bytes_of(TOKENS), room._sizes)
    return made


def order(name: str, reuse: Reuse | None = None, tokens: int = TOKENS) -> SessionOrder:
    params = SamplingParams(max_tokens=1, seed=1)
    return SessionOrder(name, tokens - 1, 1, (), (), (), params, 1, (), Purpose.READ, reuse)


def read(shard: Shard, name: str, keep: bool = True) -> KeptPrefix | None:
    """A session that reads as much as it may, and is kept under its own name."""
    shard.runtime.open("driver:d", order(name))
    shard.send(Prompt(name, 0, tuple(5 + i % 200 for i in range(TOKENS)), False))
    assert shard.faults() == []
    return shard.runtime.close(name, name if keep else None)


def test_the_one_that_was_not_used_for_longest_goes(shard: Shard) -> None:
    for name in ("a", "b", "c"):
        assert read(shard, name) == KeptPrefix(TOKENS, can_trim=True)
    assert shard.runtime.prefixes.names == ("a", "b", "c")
    assert shard.runtime.prefixes.num_bytes == shard.runtime.room.room_bytes
    shard.runtime.open("driver:d", order("uses a", Reuse("a", 40)))
    assert shard.runtime.prefixes.names == ("c", "a"), "a session has come, and a was used"
    with pytest.raises(PrefixGone):
        shard.runtime.open("driver:d", order("uses b", Reuse("b", 40)))
    assert shard.runtime.sessions == ("uses a",), "who was refused has nothing"
    assert shard.runtime.room.taken_bytes == shard.runtime.room.bytes_of(TOKENS)


def test_sessions_take_all_that_is_kept_and_a_refused_one_takes_nothing(shard: Shard) -> None:
    for name in ("a", "b", "c"):
        read(shard, name)
    for name in ("1", "2"):
        shard.runtime.open("driver:d", order(name))
    assert shard.runtime.prefixes.names == ("c",)
    with pytest.raises(NoRoom):
        shard.runtime.open("driver:d", order("large", tokens=2 * TOKENS))
    assert shard.runtime.prefixes.names == ("c",), "it would not have helped"
    shard.runtime.open("driver:d", order("3", Reuse("c", TOKENS - 1)))
    assert shard.runtime.prefixes.names == (), "the session has its bytes now"
    shard.send(Prompt("3", TOKENS - 1, (7,), False))
    assert shard.faults() == []
    assert shard.runtime.close("3", "d") is not None
    assert shard.runtime.close("1", "e") is None, "nothing was read"


def test_what_does_not_fit_is_not_kept(directory: Path) -> None:
    shard = Shard(directory, LayerWindow(0, LAYERS))
    room = shard.runtime.room
    shard.runtime._room = KvRoom("here", 10**9, room.bytes_of(TOKENS), room._sizes)
    shard.runtime.open("driver:d", order("a"))
    shard.send(Prompt("a", 0, tuple(5 + i % 200 for i in range(TOKENS)), False))
    # The same bytes again, held by another session that is open, leave none for the prefix.
    shard.runtime.room._taken["other"] = room.bytes_of(TOKENS)
    shard.runtime.room._taken_bytes += room.bytes_of(TOKENS)
    assert shard.runtime.close("a", "a") is None
    assert shard.runtime.prefixes.names == ()


def test_a_driver_that_goes_takes_its_prefixes(shard: Shard) -> None:
    read(shard, "a")
    shard.runtime.close_all("driver:other")
    assert shard.runtime.prefixes.names == ("a",)
    shard.runtime.close_all("driver:d")
    assert (shard.runtime.prefixes.names, shard.runtime.prefixes.num_bytes) == ((), 0)


def test_a_prefix_is_as_long_as_what_was_read(shard: Shard) -> None:
    """Its arrays hold no more than that, whatever the session had room for; dropped, the memory is back."""
    read(shard, "warm", keep=False)
    before = mx.get_active_memory()
    shard.runtime.open("driver:d", replace(order("a"), max_tokens=100))
    shard.send(Prompt("a", 0, (5, 6, 7, 8), False))
    assert shard.runtime.close("a", "a") == KeptPrefix(4, can_trim=True)
    assert shard.runtime.prefixes.num_bytes == shard.runtime.room.bytes_of(4)
    shard.runtime.drop_prefixes(["a", "unknown"])
    assert shard.runtime.prefixes.num_bytes == 0
    assert mx.get_active_memory() <= before


@pytest.mark.parametrize("tokens", [TOKENS + 1, 2**31])
def test_a_prefix_is_not_longer_than_it_is(tokens: int, shard: Shard) -> None:
    read(shard, "a")
    with pytest.raises(PrefixGone):
        shard.runtime.open("driver:d", order("b", Reuse("a", tokens)))
