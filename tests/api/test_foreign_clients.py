"""Clients with environments of their own: the npm package `openai`, and LiteLLM. Installed for the test.

They are skipped only where their tools or the package registry are missing.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dnet_core.api.app import Endpoint
from dnet_core.coordinator import Coordinator
from tests.api.conftest import MODEL
from tests.ring_tools import until_idle

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(600)]

SCRIPTS = Path(__file__).parent / "clients"


async def run(*command: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    told, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, told.decode(), errors.decode()


async def talk(*command: str, cwd: Path, **environment: str) -> dict[str, Any]:
    """What a script prints; it must succeed."""
    code, told, errors = await run(*command, cwd=cwd, **environment)
    assert code == 0, errors
    answer: dict[str, Any] = json.loads(told.splitlines()[-1])
    return answer


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm")
async def test_openai_for_node(served: Endpoint, ring: Coordinator, tmp_path: Path) -> None:
    install = ("npm", "install", "--no-audit", "--no-fund", "--prefix", str(tmp_path), "openai@6")
    code, _, errors = await run(*install, cwd=tmp_path)
    if code != 0:
        pytest.skip(f"npm cannot install openai here: {errors.strip().splitlines()[-1]}")
    shutil.copy(SCRIPTS / "openai_client.mjs", tmp_path)
    told = await talk("node", "openai_client.mjs", served.url, MODEL, cwd=tmp_path)
    assert told["models"] == [MODEL]
    assert told["whole"]
    assert told["streamed"] == told["helper"] == told["whole"] == told["response"]
    assert told["completionTokens"] == told["streamedTokens"] == 5
    assert told["finishReasons"] == ["length"]
    assert told["plain"]
    assert len(set(told["vectors"])) == 1
    assert told["error"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}
    await until_idle(ring)


@pytest.mark.skipif(shutil.which("uv") is None, reason="needs uv")
async def test_litellm(served: Endpoint, ring: Coordinator, tmp_path: Path) -> None:
    alone = ("uv", "run", "--quiet", "--no-project", "--with", "litellm<2", "python")
    code, _, errors = await run(*alone, "-c", "import openai", cwd=tmp_path)
    if code != 0:
        pytest.skip(f"uv cannot install litellm here: {errors.strip().splitlines()[-1]}")
    script = str(SCRIPTS / "litellm_client.py")
    told = await talk(*(*alone, script, served.url, MODEL), cwd=tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True")
    assert told["whole"]
    assert told["streamed"] == told["whole"]
    assert told["completion_tokens"] == 5
    assert told["streamed_tokens"][-1] == 5
    assert len(set(told["vectors"])) == 1
    assert told["error"] == 404
    await until_idle(ring)
