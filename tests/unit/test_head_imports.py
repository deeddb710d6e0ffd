"""The head tokenizes, plans, drives and draws without MLX: it starts fast, and shards keep the memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("mlx", "mlx_lm", "transformers", "torch")


@pytest.mark.parametrize(
    "module", ["dnet_core.coordinator", "dnet_core.main", "dnet_tui.launch", "dnet_tui.main"]
)
def test_importing_the_head_loads_no_mlx(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_options_are_read_without_grpc_or_textual() -> None:
    """`dnet-tui --help` and wrong options answer at once."""
    code = (
        "import sys, dnet_tui.main; print([m for m in ('grpc', 'textual', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_shard_answers_before_it_has_imported_what_models_need() -> None:
    code = (
        "import sys, dnet_core.shard.main;"
        " print([m for m in ('mlx_lm', 'transformers', 'llguidance', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_shard_imports_every_model_and_nothing_that_knows_texts() -> None:
    """All modules of mlx-lm but `olmo`, which wants a package that nobody has."""
    code = (
        "import sys; from dnet_core.shard.mlx_lm_parts import leave_out_texts; leave_out_texts();"
        " import importlib, pkgutil, dnet_core.shard.slot, dnet_core.profile.measure, mlx_lm.models;"
        " names = [m.name for m in pkgutil.iter_modules(mlx_lm.models.__path__) if m.name != 'olmo'];"
        " modules = [importlib.import_module(f'mlx_lm.models.{name}') for name in names];"
        " print(len(modules) > 100, [m for m in ('transformers', 'mlx_lm.generate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True []"
