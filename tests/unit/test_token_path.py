"""docs/token-path.md names code that is there, and few enough files to read in one sitting."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEP = re.compile(r"`(dnet_core/[\w/]+\.py):([\w.]+)`")
STEPS = STEP.findall((ROOT / "docs" / "token-path.md").read_text())
MOST_FILES = 13


@pytest.mark.parametrize(("path", "symbol"), sorted(set(STEPS)))
def test_every_step_names_code_that_is_there(path: str, symbol: str) -> None:
    body: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
    for name in symbol.split("."):
        kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        found = [node for node in body if isinstance(node, kinds) and node.name == name]
        assert found, f"{path} has no {symbol}"
        body = found[0].body


def test_a_token_crosses_few_files() -> None:
    files = {path for path, _ in STEPS}
    assert 10 <= len(files) <= MOST_FILES, sorted(files)
