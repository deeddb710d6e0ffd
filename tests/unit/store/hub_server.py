"""A hub of one machine: the few routes that the hub library uses, over real HTTP.

GET  /api/models?search=WORDS                          what is there
GET  /api/models/OWNER/NAME/revision/REV?blobs=true    files with sizes
HEAD /OWNER/NAME/resolve/REV/FILE                      size, ETag, commit
GET  ...                                               content, with ranges
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from huggingface_hub import constants

from tests.tiny_models import write_tiny_model

COMMIT = "c0ffee" + "0" * 34
_API = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/?]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


@dataclass
class Hub:
    """What the server offers, how it misbehaves, and what it was asked."""

    url: str = ""
    repositories: dict[str, Path] = field(default_factory=dict)
    described: dict[str, dict[str, object]] = field(default_factory=dict)  # what a search tells of them
    gated: set[str] = field(default_factory=set)  # need the token
    token: str = "let-me-in"
    broken_status: int | None = None  # answers everything so
    ignores_ranges: bool = False
    is_login_page: bool = False  # as the network of a hotel answers, whatever is asked
    stall_after_bytes: int | None = None  # of a content, then silence until `resume` is set
    resume: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range

    def contents(self) -> list[tuple[str, str | None]]:
        """Name and range of every file content that was asked for."""
        return [
            (p.rsplit("/", 1)[-1], r)
            for method, p, r in self.requests
            if method == "GET" and "/resolve/" in p
        ]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve a hub on a free loopback port until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            """Requests are recorded in `hub.requests` instead."""

        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def _serve(self) -> None:
            hub.requests.append((self.command, self.path, self.headers.get("Range")))
            if hub.is_login_page:
                return self._send(b"<html>Welcome</html>", "text/html")
            if self.path.startswith("/api/models?"):
                return self._send_found()
            api, file = _API.match(self.path), _FILE.match(self.path)
            match = api or file
            if hub.broken_status is not None:
                return self._refuse(hub.broken_status, None)
            if match is None or match[1] not in hub.repositories:
                return self._refuse(404 if match is None else 401, "RepoNotFound")
            if match[1] in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._refuse(403, "GatedRepo")
            if match[2] not in ("main", COMMIT):
                return self._refuse(404, "RevisionNotFound")
            folder = hub.repositories[match[1]]
            if api:
                return self._send_listing(match[1], folder)
            assert file is not None
            if not (folder / file[3]).is_file():
                return self._refuse(404, "EntryNotFound")
            return self._send_file(folder / file[3])

        def _send_found(self) -> None:
            if hub.broken_status is not None:
                return self._refuse(hub.broken_status, None)
            asked = parse_qs(urlsplit(self.path).query)
            words = asked.get("search", [""])[0].lower()
            found = [
                {"id": name, "gated": "manual" if name in hub.gated else False, **hub.described.get(name, {})}
                for name in hub.repositories
                if words in name.lower()
            ]
            return self._send_json(found)

        def _refuse(self, status: int, code: str | None) -> None:
            self.send_response(status)
            if code is not None:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send_listing(self, repository: str, folder: Path) -> None:
            files = sorted(f for f in folder.rglob("*") if f.is_file())
            siblings = [{"rfilename": str(f.relative_to(folder)), "size": f.stat().st_size} for f in files]
            self._send_json({"id": repository, "sha": COMMIT, "siblings": siblings})

        def _send_json(self, value: object) -> None:
            self._send(json.dumps(value).encode(), "application/json")

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _send_file(self, path: Path) -> None:
            content = path.read_bytes()
            start, stop = 0, len(content)
            asked = "" if hub.ignores_ranges else self.headers.get("Range", "")
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
            if span:
                start, stop = int(span[1]), min(int(span[2] or stop) + 1, stop) if span[2] else stop
            self.send_response(206 if span else 200)
            if span:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(stop - start))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "HEAD":
                return
            limit = hub.stall_after_bytes
            if limit is not None and stop - start > limit:
                self.wfile.write(content[start : start + limit])
                self.wfile.flush()
                hub.resume.wait(60)
                start += limit
            try:
                self.wfile.write(content[start:stop])
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client was cancelled

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.resume.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hub_of_one_model(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve `tiny/llama`; cache and home are in `folder`, for this process and those that it starts."""
    cache = folder / "hf" / "hub"
    origin = write_tiny_model("llama", folder / "origin", num_files=2)
    (origin / "modeling_llama.py").write_text("raise SystemExit")
    (origin / "pytorch_model.bin").write_bytes(b"pickle")
    (origin / "consolidated.safetensors").write_bytes(b"other")
    (origin / "README.md").write_text("words")
    with running_hub() as hub:
        hub.repositories["tiny/llama"] = origin
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
            patch.delenv(name, raising=False)
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(folder / "hf"))
        patch.setenv("DNET_HOME", str(folder / "dnet"))
        # The head's copy of the library has read its environment already.
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield hub


def in_one_large_file(hub: Hub) -> None:
    """Make `tiny/llama` a few MB in one file, which a fetch can take up where it stopped."""
    folder = hub.repositories["tiny/llama"]
    write_tiny_model("llama", folder, overrides={"hidden_size": 512, "intermediate_size": 1024})
    for file in folder.glob("model*of-00002*"):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
