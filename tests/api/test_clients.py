"""Other people's programs against the endpoint: curl, and the commands of the help text."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from dnet_core.api.app import Endpoint
from tests.api.conftest import MODEL

pytestmark = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]

BODY = {"messages": [{"role": "user", "content": "the fox"}], "max_tokens": 3, "temperature": 0}


async def curl(*arguments: str, sent: bytes = b"") -> str:
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--max-time", "30", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    told, _ = await process.communicate(sent)
    assert process.returncode == 0
    return told.decode()


@pytest.mark.parametrize(
    "headers",
    [
        ("content-type: application/json",),
        ("content-type: application/json", "transfer-encoding: chunked"),
        ("content-type: application/json", "expect: 100-continue"),
        (),  # curl then calls it a form
    ],
)
async def test_curl(headers: tuple[str, ...], served: Endpoint) -> None:
    options = [word for header in headers for word in ("-H", header)]
    told = await curl(
        f"{served.url}/chat/completions", *options, "--data-binary", "@-", sent=json.dumps(BODY).encode()
    )
    answer = json.loads(told)
    assert answer["model"] == MODEL
    assert answer["usage"]["completion_tokens"] == 3


async def test_curl_reads_a_stream(served: Endpoint) -> None:
    sent = json.dumps({**BODY, "stream": True}).encode()
    told = await curl("-N", "-i", f"{served.url}/chat/completions", "--data-binary", "@-", sent=sent)
    head, _, body = told.replace("\r\n", "\n").partition("\n\n")
    assert "content-type: text/event-stream" in head
    events = body.strip().split("\n\n")
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"


async def test_two_requests_on_one_connection(served: Endpoint) -> None:
    url = f"{served.url}/chat/completions"
    sent = json.dumps(BODY)
    told = await curl(url, "-d", sent, "--next", "--silent", url, "-d", sent)
    assert told.count('"object":"chat.completion"') == 2
