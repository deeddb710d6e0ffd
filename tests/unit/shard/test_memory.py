"""KV memory is counted whole, to the byte, and what computing takes is within what is set aside for it."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnet_core.errors import NoRoom, RequestError
from dnet_core.profile.model import profile_model
from dnet_core.shard.memory import KvRoom, MlxLimits, mlx_limits, set_limits
from dnet_core.shard.sessions import Session
from dnet_core.slices.kv import CacheSize
from dnet_core.slices.weights import open_model
from dnet_core.solve.problem import kv_layer_bytes, workspace_bytes
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.transport.control import Purpose, SessionOrder
from dnet_core.types.generation import SamplingParams
from dnet_core.types.ring import LayerWindow
from tests.tiny_models import write_large_random_model, write_tiny_model

SIZES = (CacheSize(100, 8.0, None), CacheSize(0, 4.5, 64), CacheSize(0, 0.0, None))


@given(
    room=st.integers(-5, 3000),
    wishes=st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(1, 400)), max_size=40),
)
def test_never_more_than_there_is(room: int, wishes: list[tuple[bool, int, int]]) -> None:
    kv = KvRoom("here", 10_000, room, SIZES)
    taken: dict[str, int] = {}
    for leaves, number, tokens in wishes:
        name = str(number)
        if name in taken:
            if leaves:
                kv.give_back(name)
                del taken[name]
            continue
        need = 100 + 8 * tokens + round(4.5 * min(tokens, 64))
        try:
            kv.take(name, tokens)
        except NoRoom:
            assert need <= room
            assert need > room - sum(taken.values())
        except RequestError:
            assert need > room
        else:
            taken[name] = need
        assert kv.taken_bytes == sum(taken.values()) <= kv.room_bytes


GB = 10**9
# Apple M4 Max, 64 GB, macOS 15.1, as `mx.device_info()` tells it.
M4_MAX = {
    "architecture": "applegpu_g16s",
    "max_buffer_length": 38_654_705_664,
    "max_recommended_working_set_size": 51_539_607_552,
    "memory_size": 68_719_476_736,
    "resource_limit": 499_000,
}


@pytest.mark.parametrize(("budget", "wired"), [(40 * GB, 40 * GB), (60 * GB, 51_539_607_552)])
def test_limits_on_metal(budget: int, wired: int) -> None:
    working_set = int(M4_MAX["max_recommended_working_set_size"])
    limits = mlx_limits(budget, 300_000_000, working_set)
    assert limits == MlxLimits(budget, 300_000_000, wired)


def test_limits_are_set_and_taken_back() -> None:
    """By MLX's own functions; a CPU wires nothing, but takes the call."""
    before = set_limits(MlxLimits(3 * GB, 5_000_000, 2 * GB))
    try:
        assert mx.get_memory_limit() == 3 * GB
        freed = mx.zeros((4_000_000,))
        mx.eval(freed)
        del freed
        assert mx.get_cache_memory() <= 5_000_000
    finally:
        again = set_limits(before)
    assert (again.memory_bytes, again.cache_bytes) == (3 * GB, 5_000_000)
    assert mx.get_memory_limit() == before.memory_bytes


def test_there_is_nothing_to_wire_elsewhere() -> None:
    assert mlx_limits(8 * GB, 9 * GB, None) == MlxLimits(8 * GB, 8 * GB, None)


WIDE = {"head_dim": 64}
CASES = {
    "llama": WIDE,
    "gemma3_text": {**WIDE, "sliding_window": 64},
    "mixtral": WIDE,
    "deepseek_v3": {"kv_lora_rank": 64},
    "gpt_oss": {**WIDE, "sliding_window": 64},
    "qwen3_next": WIDE,
}


@pytest.mark.parametrize("chunk", [32, 256])
@pytest.mark.parametrize("architecture", [*CASES, "large"])
def test_a_chunk_is_computed_in_its_workspace(architecture: str, chunk: int, tmp_path: Path) -> None:
    """At the end of a prompt that fills the context, by MLX's own count."""
    context = 512  # what these models have
    directory = tmp_path / "model"
    if architecture == "large":
        write_large_random_model(directory, layers=3, hidden=512, vocab=512)
    else:
        write_tiny_model(architecture, directory, overrides=CASES[architecture])
    model = open_model(directory, "tiny")
    whole = LayerWindow(0, model.num_layers)
    order = SessionOrder("s", context - 1, 1, (), (), (), SamplingParams(), 1, (), Purpose.ANSWER, None)
    session = Session("driver:d", order, model.make_cache())
    peak = held = 0
    for position in range(0, context, chunk):
        tokens = mx.array([[(7 * i) % 90 for i in range(chunk)]])
        session.advance(whole, position, chunk)
        session.make_room(whole, model.slots(whole), 16)
        mx.clear_cache()
        mx.reset_peak_memory()
        (logits,) = model.embed_and_run(whole, tokens, session.cache, position)
        del logits
        mx.eval([cache.state for cache in session.cache])
        mx.clear_cache()
        peak, held = mx.get_peak_memory(), mx.get_active_memory()
    profile = profile_model(read_checkpoint(directory))
    assert peak - held <= workspace_bytes(profile, chunk, context, 16, "cpu")


@pytest.mark.parametrize("architecture", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_counts_at_least_what_the_caches_take(architecture: str, dtype: str, tmp_path: Path) -> None:
    directory = write_tiny_model(architecture, tmp_path / "model", dtype=dtype, overrides=CASES[architecture])
    model, profile = open_model(directory, "tiny"), profile_model(read_checkpoint(directory))
    context, chunk = min(400, profile.context_tokens), 32
    taken = sum(size.of(context) for size in model.cache_sizes(16, chunk))
    planned = profile.activation_scale * sum(
        kv_layer_bytes(layer.kv, context, 16, chunk) for layer in profile.layers
    )
    assert taken <= planned <= 1.4 * taken
