"""The hub library at work, in a child process: `python -m dnet_core.store.hub OWNER/NAME REVISION model`.

Only the files that mlx-lm needs are fetched: never code, never pickles.
"""

from __future__ import annotations

import argparse
import base64
import errno
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.hf_api import RepoSibling

# Documented there, but not re-exported for type checkers.
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from dnet_core.errors import LoadError, RequestError, UnknownModel, UnsupportedModel
from dnet_core.store.checkpoint import (
    CONFIG_NAME,
    INDEX_NAME,
    PREFIX_BYTES,
    header_bytes_of,
    parse_index,
)
from dnet_core.store.child import run_and_tell, tell
from dnet_core.store.fetch import HubId

_WEIGHTS = re.compile(r"model[^/]*\.safetensors")
_TOKENIZER = re.compile(r"[^/]+\.(json|jinja|tiktoken)|tokenizer\.model|(merges|vocab)\.txt")
_FIRST_READ_BYTES = 100_000  # holds most safetensors headers, so that one request is enough
_RESUMED_BYTES = 1024 * 1024  # smaller files are fetched anew after an interruption
_REPORT_BYTES = 1024 * 1024  # between two progress lines
_REPORT_S = 1.0  # between two of them while another process fetches a file
# The root of all transport errors: httpx's in hub 1.x, httpx2's in hub 2.x.
TransportError: type[Exception] = HfHubHTTPError.__mro__[1]


def is_wanted(name: str) -> bool:
    """Whether mlx-lm needs the repository file `name`: weights, configs, tokenizer and chat template."""
    return bool(_WEIGHTS.fullmatch(name) or _TOKENIZER.fullmatch(name))


def _download(hub_id: HubId) -> str:
    files = _list_files(hub_id)
    missing = [f for f in files if not isinstance(_cached(hub_id, f.rfilename), str)]
    total_bytes = sum(f.size or 0 for f in files)
    missing_bytes = sum(f.size or 0 for f in missing)
    _check_room(hub_id, missing_bytes)
    constants.DOWNLOAD_CHUNK_SIZE = _REPORT_BYTES  # also what a kill may lose of a partial file
    # A file above this limit is served by the hub's own transfer protocol only.
    constants.HF_HUB_DISABLE_XET = all((f.size or 0) < constants.MAX_HTTP_DOWNLOAD_SIZE for f in missing)
    report = _Report(total_bytes - missing_bytes, total_bytes)
    path = ""
    # Small files first: the config says early whether the model can be used at all.
    for file in sorted(files, key=lambda f: (f.size or 0, f.rfilename)):
        if file in missing and _RESUMED_BYTES <= (file.size or 0) < constants.MAX_HTTP_DOWNLOAD_SIZE:
            _fetch_blob(hub_id, file.rfilename, report)
        path = hf_hub_download(
            hub_id.repository, file.rfilename, revision=hub_id.revision, tqdm_class=report.bar_class()
        )
    report.finish()
    return str(Path(path).parent)


def _fetch_blob(hub_id: HubId, name: str, report: _Report) -> None:
    """Download a large file into the cache's blobs, going on where an earlier fetch stopped.

    The library itself starts every file anew (since 2.x, and leaves what a killed download had). It takes a
    blob that is there as its own: the cache's layout is documented.
    """
    url = hf_hub_url(hub_id.repository, name, revision=hub_id.revision, endpoint=HfApi().endpoint)
    source = get_hf_file_metadata(url)
    if source.etag is None:
        raise LoadError(f"{constants.ENDPOINT} does not say which content {name} of {hub_id} has")
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id.repository, repo_type="model")
    blob = folder / "blobs" / source.etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{source.etag}.dnet.incomplete")
    headers = build_hf_headers()
    if urlsplit(source.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the token is for the hub, not for the store it points to
    with _sole_fetcher(partial, report):
        if blob.exists():
            report.add(blob.stat().st_size)
            return
        with partial.open("ab") as file:
            if source.size is not None and file.tell() > source.size:
                file.truncate(0)
            http_get(
                source.location,
                file,
                resume_size=file.tell(),
                headers=headers,
                expected_size=source.size,
                tqdm_class=report.bar_class(),
            )
        partial.rename(blob)


@contextmanager
def _sole_fetcher(partial: Path, report: _Report) -> Iterator[None]:
    """Let one process at a time fetch into `partial`; those that wait tell how far it has come."""
    lock = FileLock(partial.with_suffix(".lock"))
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_REPORT_S)
        except Timeout:
            report.tell_beside(partial.stat().st_size if partial.exists() else 0)
    try:
        yield
    finally:
        lock.release()


def _headers(hub_id: HubId) -> dict[str, Any]:
    files = {f.rfilename: f for f in _list_files(hub_id)}
    texts = {
        name: _read(hub_id, name, None)
        for name in (CONFIG_NAME, INDEX_NAME, "generation_config.json")
        if name in files
    }
    if INDEX_NAME in texts:
        names = sorted(set(parse_index(texts[INDEX_NAME], f"{hub_id}: {INDEX_NAME}").values()))
    else:
        names = sorted(name for name in files if _WEIGHTS.fullmatch(name))
    headers = {}
    for name in names:
        if name not in files:
            raise LoadError(
                f"{hub_id}: {INDEX_NAME} names {name}, which the repository lacks: tell its owner"
            )
        file_bytes = files[name].size or 0
        start = _read(hub_id, name, (0, min(_FIRST_READ_BYTES, file_bytes)))
        stop = PREFIX_BYTES + header_bytes_of(start, file_bytes, f"{hub_id}: {name}")
        if len(start) < stop:
            start += _read(hub_id, name, (len(start), stop))
        headers[name] = (file_bytes, base64.b64encode(start[PREFIX_BYTES:stop]).decode())
    return {"texts": {name: base64.b64encode(t).decode() for name, t in texts.items()}, "headers": headers}


def _list_files(hub_id: HubId) -> list[RepoSibling]:
    info = HfApi().model_info(hub_id.repository, revision=hub_id.revision, files_metadata=True, timeout=30)
    files = [f for f in info.siblings or [] if is_wanted(f.rfilename)]
    names = {f.rfilename for f in files}
    if CONFIG_NAME not in names or not any(_WEIGHTS.fullmatch(name) for name in names):
        raise UnsupportedModel(
            str(hub_id),
            "its repository has no config.json with model*.safetensors beside it: look for an MLX version",
        )
    return files


def _read(hub_id: HubId, name: str, span: tuple[int, int] | None) -> bytes:
    """The bytes `[start, stop)` of a repository file, or all of it."""
    url = hf_hub_url(hub_id.repository, name, revision=hub_id.revision, endpoint=HfApi().endpoint)
    headers = build_hf_headers()
    if span is not None:
        headers["range"] = f"bytes={span[0]}-{span[1] - 1}"
    start, stop = span or (0, None)
    session, content = get_session(), b""
    with session.stream("GET", url, headers=headers, timeout=30, follow_redirects=True) as response:
        if response.is_error:
            response.read()  # what it says goes into the error
        hf_raise_for_status(response)
        # A server without ranges sends all from the first byte: gigabytes, of which only these are read.
        skipped = start if response.status_code == HTTPStatus.PARTIAL_CONTENT else 0
        for piece in response.iter_bytes():
            content += piece
            if stop is not None and skipped + len(content) >= stop:
                break
    return content[start - skipped : None if stop is None else stop - skipped]


def _cached(hub_id: HubId, name: str) -> object:
    return try_to_load_from_cache(hub_id.repository, name, revision=hub_id.revision)


def _check_room(hub_id: HubId, needed_bytes: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(cache).free
    if free_bytes < needed_bytes:
        raise LoadError(
            f"{hub_id} needs {needed_bytes:,} more bytes in {cache}, which has {free_bytes:,} free:"
            " make room, or set HF_HOME to a larger disk"
        )


class _Report:
    """Sums the bytes of all files and tells them, one line per `_REPORT_BYTES`."""

    def __init__(self, done_bytes: int, total_bytes: int) -> None:
        self._done_bytes = done_bytes
        self._told_bytes = -_REPORT_BYTES
        self._total_bytes = total_bytes

    def add(self, num_bytes: int) -> None:
        self._done_bytes += num_bytes
        if abs(self._done_bytes - self._told_bytes) >= _REPORT_BYTES:
            self._tell()

    def tell_beside(self, num_bytes: int) -> None:
        """Tell what was added, and `num_bytes` that another process has of the next file."""
        tell(progress=[min(self._done_bytes + num_bytes, self._total_bytes), self._total_bytes])

    def finish(self) -> None:
        self._done_bytes = self._total_bytes
        if self._told_bytes != self._total_bytes:
            self._tell()

    def _tell(self) -> None:
        self._told_bytes = self._done_bytes
        tell(progress=[self._done_bytes, self._total_bytes])

    def bar_class(self) -> type[_Bar]:
        """What the hub library takes for a progress bar (its `tqdm_class`)."""
        return type("Bar", (_Bar,), {"add": staticmethod(self.add)})


class _Bar:
    """The part of tqdm's interface that the hub library uses; it draws nothing."""

    add: Callable[[int], None]

    def __init__(self, *_args: object, initial: int = 0, **_options: object) -> None:
        self.add(initial)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def update(self, n: float | None = 1) -> None:
        self.add(int(n or 0))

    def close(self) -> None:
        """Nothing was drawn."""


def _typed_errors(hub_id: HubId, work: Callable[[HubId], object]) -> object:
    """Run `work`; what the hub library raises becomes the error that says what to do."""
    login = "accept its licence on the hub's web page and set HF_TOKEN to a token of your account"
    try:
        return work(hub_id)
    except GatedRepoError as error:
        raise RequestError(f"{hub_id} is gated: {login}") from error
    except RevisionNotFoundError as error:
        raise UnknownModel(str(hub_id), f"the hub has no revision '{hub_id.revision}' of it") from error
    except RepositoryNotFoundError as error:
        raise UnknownModel(
            str(hub_id), "the hub has no such model, or it is private: check the name, or set HF_TOKEN"
        ) from error
    except EntryNotFoundError as error:
        raise LoadError(f"{hub_id} changed while it was fetched ({error}): try again") from error
    except HFValidationError as error:
        raise UnknownModel(str(hub_id), str(error)) from error
    except OfflineModeIsEnabled as error:
        raise LoadError(f"{hub_id} is not here, and HF_HUB_OFFLINE forbids to fetch it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise RequestError(f"the hub refuses {hub_id} ({status}): {login}") from error
        raise LoadError(f"the hub failed for {hub_id} ({status}): try again later") from error
    except TransportError as error:
        raise LoadError(
            f"{constants.ENDPOINT} cannot be reached for {hub_id}: check the network"
            f" ({type(error).__name__}: {error})"
        ) from error
    except ValueError as error:
        raise LoadError(
            f"{constants.ENDPOINT} answers for {hub_id} as no hub does ({error}): does this network want you"
            " to log in first?"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise LoadError(
                f"the disk of {constants.HF_HUB_CACHE} filled up while fetching {hub_id}"
            ) from error
        raise LoadError(f"{hub_id} cannot be fetched: {error}") from error


_WORKS: dict[str, Callable[[HubId], object]] = {
    "model": _download,
    "headers": _headers,
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Fetch a model from the hub into the library's cache.")
    parser.add_argument("repository")
    parser.add_argument("revision")
    parser.add_argument("what", choices=_WORKS, help="the headers of the weight files go to stdout")
    options = parser.parse_args()
    hub_id = HubId(options.repository, options.revision)
    return run_and_tell(lambda: _typed_errors(hub_id, _WORKS[options.what]))


if __name__ == "__main__":
    sys.exit(main())
