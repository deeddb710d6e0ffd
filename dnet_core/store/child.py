"""Helper processes: work that must not run in the head (MLX, a blocking download), told in JSON lines.

    child's stdout, one JSON object per line:
        {"progress": [done_bytes, total_bytes]} *   then one of
        {"result": ...}   {"error": [kind, message parts...]}

A child is ended by killing it; what it leaves behind must be harmless at any moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping
from typing import Any

from dnet_core.errors import DnetError, LoadError, RequestError, UnknownModel, UnsupportedModel

Progress = Callable[[int, int], None]
"""Called with (done_bytes, total_bytes) while a model is brought here."""

_LINE_LIMIT_BYTES = 256 * 1024 * 1024  # one result line carries the headers of a whole model


async def run_child(module: str, args: list[str], environment: Mapping[str, str], progress: Progress) -> Any:
    """Run `python -m module args` to its result; its `progress` lines are passed on.

    Cancelling kills the child. Raises the error that the child reports, and LoadError when it dies silently.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *args,
        stdin=DEVNULL,  # the terminal is the screen's alone
        stdout=PIPE,
        stderr=PIPE,
        env=environment,
        limit=_LINE_LIMIT_BYTES,
    )
    assert process.stdout is not None, "stdout is a pipe"
    assert process.stderr is not None, "stderr is a pipe"
    outcome: dict[str, Any] = {}
    try:
        async with asyncio.TaskGroup() as group:
            last_words = group.create_task(process.stderr.read())
            async for line in process.stdout:
                message = _parse_line(line)
                if "progress" in message:
                    done_bytes, total_bytes = message["progress"]
                    progress(done_bytes, total_bytes)
                else:
                    outcome.update(message)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if "error" in outcome:
        raise _error_from(*outcome["error"])
    if "result" not in outcome:
        words = last_words.result().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(words) if line.strip()), "it said nothing")
        raise LoadError(f"the helper process {module} ended with code {code}: {last}")
    return outcome["result"]


def tell(**message: object) -> None:
    """Child's side: write one line. A reader that is gone ends the child (SIGPIPE's exception)."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def run_and_tell(work: Callable[[], object]) -> int:
    """Child's side: run `work`, tell its result or its typed error; the process's exit code."""
    try:
        tell(result=work())
    except UnknownModel as error:
        tell(error=["UnknownModel", error.model, error.detail])
    except UnsupportedModel as error:
        tell(error=["UnsupportedModel", error.model, error.reason])
    except (RequestError, LoadError) as error:
        tell(error=[type(error).__name__, str(error)])
    except BrokenPipeError:  # the head is gone: nobody waits for this work
        os._exit(1)
    else:
        return 0
    return 1


def _parse_line(line: bytes) -> dict[str, Any]:
    """A library may print to stdout too; what is not one of our messages is dropped."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def _error_from(kind: str, *parts: str) -> DnetError:
    match kind:
        case "UnknownModel":
            return UnknownModel(*parts)
        case "UnsupportedModel":
            return UnsupportedModel(*parts)
        case "RequestError":
            return RequestError(*parts)
        case _:
            return LoadError(*parts)
