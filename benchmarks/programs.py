"""The installed programs as people run them: `dnet-tui` on a terminal, `dnet-api` over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from fcntl import ioctl
from pathlib import Path

from dnet_core.settings import child_environment

_FOLDER = Path(sys.executable).parent
_ROWS, _COLUMNS = 40, 120


class Terminal:
    """The other end of the terminal: reads what is painted at once, as terminals do, and keeps the last."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._seen = b""
        self._came = asyncio.Event()

    def read(self) -> None:
        with suppress(OSError):  # the program has ended
            self._seen = (self._seen + os.read(self._master, 65536))[-65536:]
        self._came.set()

    def type(self, text: str) -> None:
        self._seen = b""
        os.write(self._master, text.encode())

    async def sees(self, text: str) -> None:
        """Return when `text` has been painted since the last typing. Raises TimeoutError after a minute."""
        async with asyncio.timeout(60):
            while text.encode() not in self._seen:
                self._came.clear()
                await self._came.wait()


@asynccontextmanager
async def terminal(home: Path, *options: str) -> AsyncIterator[Terminal]:
    """`dnet-tui` on a terminal of its own, with its files under `home`; stopped at the end."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
    environment = child_environment(DNET_HOME=str(home), TERM="xterm-256color")
    process = await asyncio.create_subprocess_exec(
        _FOLDER / "dnet-tui", "--no-mdns", *options,
        stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    screen, loop = Terminal(master), asyncio.get_running_loop()
    loop.add_reader(master, screen.read)
    try:
        yield screen
    finally:
        process.terminate()
        await process.wait()  # it paints while it ends: the terminal is read until then
        loop.remove_reader(master)
        os.close(master)


class Api:
    """A `dnet-api` that has loaded its model."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def decode_rate(self, question: str, tokens: int) -> float:
        """Tokens/s of a streamed answer, greedy, between the first and the last that arrive."""
        payload = json.dumps(
            {
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
                "max_tokens": tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(head.encode() + payload)
        times: list[float] = []
        num_tokens = 0
        while (line := (await reader.readline()).strip()) != b"data: [DONE]":
            if b'"usage":{' in line:
                num_tokens = json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"]
            elif b'"content":"' in line and b'"role"' not in line:
                times.append(time.monotonic())
        writer.close()
        await writer.wait_closed()
        return (num_tokens - 1) / (times[-1] - times[0])


@asynccontextmanager
async def api(home: Path, *options: str) -> AsyncIterator[Api]:
    """`dnet-api` with its files under `home` once it has loaded its model; stopped at the end."""
    process = await asyncio.create_subprocess_exec(
        _FOLDER / "dnet-api", "--no-mdns", "--http-port", "0", *options,
        stdout=subprocess.PIPE, env=child_environment(DNET_HOME=str(home)),
    )  # fmt: skip
    assert process.stdout is not None, "it is a pipe"
    try:
        async with asyncio.timeout(60):
            listens = (await process.stdout.readline()).decode()
            ready = (await process.stdout.readline()).decode()
        found = re.search(r"http://\S+:(\d+)", listens)
        assert found is not None and ready.startswith("ready"), f"dnet-api says: {listens} {ready}"
        yield Api(int(found[1]))
    finally:
        process.terminate()
        await process.wait()
