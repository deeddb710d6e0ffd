"""The microbench on this machine's MLX: figures that agree with one another, in bounded time, or an error."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from dnet_core.errors import ProfileError
from dnet_core.profile.cache import ProfileCache
from dnet_core.profile.device import profile_from_json, profile_to_json, request_for
from dnet_core.profile.measure import profile_device
from dnet_core.profile.microbench import measure_arithmetic
from dnet_core.profile.mlx_facts import mlx_facts
from dnet_core.profile.model import profile_model
from dnet_core.shard.mlx_thread import MlxThread
from dnet_core.store.checkpoint import read_checkpoint
from dnet_core.types.profiles import LayerShape, ProfileRequest, Quantization, WeightFormat
from tests.tiny_models import write_large_random_model

SHAPE = LayerShape(hidden=512, intermediate=1024, num_heads=8, num_kv_heads=2, head_dim=64)
F32 = WeightFormat("f32")
Q8 = WeightFormat("f32", Quantization(8, 64, "affine"))
Q4 = WeightFormat("f32", Quantization(4, 32, "affine"))
MXFP4 = WeightFormat("f32", Quantization(4, 32, "mxfp4"))


def request(*formats: WeightFormat, shape: LayerShape = SHAPE, chunk_tokens: int = 32) -> ProfileRequest:
    return ProfileRequest(shape, formats, chunk_tokens, 4096)


def test_every_figure_is_there_for_every_format() -> None:
    figures = measure_arithmetic("here", request(F32, Q8, Q4), budget_s=0.6)
    assert figures.memory_bytes_per_s > 1e8
    assert 1e-6 < figures.layer_overhead_s < 0.1
    assert [speed.weight_format for speed in figures.speeds] == ["f32", "q8", "q4"]
    for speed, bytes_per_weight in zip(figures.speeds, (4, 1 + 8 / 64, 0.5 + 8 / 32), strict=True):
        # One matrix product, seen as bytes and as two FLOPs a weight.
        ratio = speed.decode_flops_per_s / speed.decode_bytes_per_s
        assert ratio == pytest.approx(2 / bytes_per_weight, rel=0.02)
        assert speed.prefill_flops_per_s > 1e6
        assert 2 <= speed.prefill_chunk_tokens <= 32


@pytest.mark.parametrize(
    "weight_format",
    [WeightFormat("bf16"), WeightFormat("f16", Quantization(4, 64, "affine")), MXFP4],
    ids=["bf16", "f16-q4", "mxfp4"],
)
def test_a_slow_format_on_a_large_model_keeps_to_the_time(weight_format: WeightFormat) -> None:
    large = LayerShape(hidden=8192, intermediate=28672, num_heads=64, num_kv_heads=8, head_dim=128)
    asked = request(weight_format, shape=large, chunk_tokens=512)
    began = time.process_time()
    figures = measure_arithmetic("here", asked, budget_s=1.0, clock=time.process_time)
    # Time of the processor, so that others on it do not count. Making weights may take a while more.
    assert time.process_time() - began < 6
    assert figures.speeds[0].decode_flops_per_s > 1e6


@pytest.mark.parametrize("width", [64, 96, 100, 576])
def test_odd_widths(width: int) -> None:
    shape = LayerShape(hidden=width, intermediate=width + 4, num_heads=3, num_kv_heads=1, head_dim=20)
    figures = measure_arithmetic("here", request(Q4, shape=shape, chunk_tokens=7), budget_s=0.05)
    assert figures.speeds[0].prefill_chunk_tokens == 7


def test_what_mlx_cannot_do_is_an_error_of_the_device() -> None:
    impossible = WeightFormat("f32", Quantization(7, 64, "affine"))
    with pytest.raises(ProfileError, match="mini: the speed of its matrices could not be measured") as caught:
        measure_arithmetic("mini", request(impossible), budget_s=0.05)
    assert caught.value.device == "mini"


def test_a_clock_that_stands_is_an_error() -> None:
    with pytest.raises(ProfileError, match="clock did not advance"):
        measure_arithmetic("mini", request(F32), budget_s=0.05, clock=lambda: 1.0)


def test_the_memory_is_given_back() -> None:
    mx.clear_cache()
    before = mx.get_active_memory()
    measure_arithmetic("here", request(F32), budget_s=0.05)
    assert mx.get_active_memory() <= before + (1 << 20)
    assert mx.get_cache_memory() <= 1 << 20


def test_mlx_says_where_it_runs() -> None:
    facts = mlx_facts()
    assert facts.backend in ("cpu", "metal", "cuda")
    assert (facts.backend == "metal") == (facts.recommended_working_set_bytes is not None)


async def test_a_profile_is_measured_on_the_compute_thread_and_then_cached(tmp_path: Path) -> None:
    cache = ProfileCache(tmp_path / "profiles")
    asked = ProfileRequest(SHAPE, (F32,), 32, 1 << 20)

    with MlxThread() as thread:

        async def profile(peer: str, *, fresh: bool = False) -> tuple[object, float]:
            measured = await thread.call(
                lambda: profile_device(
                    peer, asked, store=tmp_path / "store", cache=cache, fresh=fresh, budget_s=0.3
                )
            )
            assert profile_from_json(profile_to_json(measured), "file") == measured
            assert measured.peer == peer
            return measured.speeds, measured.measured_at_unix_s

        first = await profile("a")
        assert await profile("b") == first
        assert await profile("a", fresh=True) != first


@pytest.mark.parametrize("quantize", [None, "q4"])
def test_the_figures_predict_what_mlx_lm_measures(tmp_path: Path, quantize: str | None) -> None:
    """Decode of a whole random llama, within loose bounds: other processes share the caches."""
    directory = write_large_random_model(tmp_path / "model", layers=6, hidden=512, quantize=quantize)
    checkpoint = read_checkpoint(directory)
    profile = profile_model(checkpoint)
    asked = request_for(profile, checkpoint.config, 64)
    # Processor time is not disturbed by other processes, but it does not count a GPU's.
    clock = time.process_time if mlx_facts().backend == "cpu" else time.perf_counter
    ratios: list[float] = []
    for _ in range(3):
        figures = measure_arithmetic("here", asked, clock=clock)
        speed = figures.speeds[0]
        weights = sum(layer.active_weight_bytes for layer in profile.layers) + profile.head_bytes
        predicted = weights / speed.decode_bytes_per_s + profile.num_layers * figures.layer_overhead_s
        ratios.append(predicted / _decode_s(directory, clock))
    assert 0.6 < sorted(ratios)[1] < 1.6, ratios


def _decode_s(directory: Path, clock: Callable[[], float]) -> float:
    """The median seconds per token of mlx-lm's own model, after a short prompt."""
    model, _ = load_model(directory)
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([[1, 2, 3, 4]]), cache=cache))
    token = mx.array([[5]])
    times: list[float] = []
    for _ in range(15):
        start = clock()
        token = mx.argmax(model(token, cache=cache)[:, -1:], axis=-1)
        mx.eval(token)
        times.append(clock() - start)
    return median(times)
