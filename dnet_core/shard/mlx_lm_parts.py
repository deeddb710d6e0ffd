"""mlx-lm as a shard needs it: its models, caches, samplers and loader of weights, which know tokens only.

`import mlx_lm` also imports transformers, for texts: most of a second, at the first load of every shard.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType


def leave_out_texts() -> None:
    """Let mlx_lm's modules be imported without its `__init__` and its tokenizers; for a whole process.

    To be called before anything of mlx_lm is imported.
    """
    assert "mlx_lm" not in sys.modules, "it has imported all of it already"
    spec = importlib.util.find_spec("mlx_lm")
    assert spec is not None, "mlx-lm is a dependency"
    package = importlib.util.module_from_spec(spec)  # not executed
    texts = ModuleType(
        "mlx_lm.tokenizer_utils", "What mlx_lm.utils imports for what a shard never asks of it."
    )
    texts.__dict__.update(TokenizerWrapper=None, load=None)
    sys.modules |= {package.__name__: package, texts.__name__: texts}
