"""A search on the hub, in a child process: `python -m dnet_core.store.hub_search WORDS`.

Only models with safetensors for text; the most downloaded first. Result: a list of
{"id", "bytes" | null, "bits" | null, "layers" | null, "gated"}.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import ModelInfo

# Documented there, but not re-exported for type checkers.
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

from dnet_core.errors import LoadError
from dnet_core.store.child import run_and_tell
from dnet_core.store.hub import TransportError

LIMIT = 40
_DTYPE_BITS = {
    **dict.fromkeys(("F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 8),
}  # all others have 16


def search(words: str) -> list[dict[str, Any]]:
    """The models whose name has all `words`. Raises LoadError when the hub does not answer."""
    try:
        return [_described(info) for info in _found(words)]
    except OfflineModeIsEnabled as error:
        raise LoadError("HF_HUB_OFFLINE forbids to search the hub") from error
    except HfHubHTTPError as error:
        raise LoadError(
            f"the hub failed to search ({error.response.status_code}): try again later"
        ) from error
    except ValueError as error:
        raise LoadError(
            f"{constants.ENDPOINT} answers as no hub does: does this network want you to log in first?"
        ) from error
    except TransportError as error:
        raise LoadError(
            f"{constants.ENDPOINT} cannot be reached: check the network ({type(error).__name__})"
        ) from error


def _found(words: str) -> Iterable[ModelInfo]:
    hub = HfApi()
    # A search is tried again for half a minute. That nobody is there is said at once, that nobody answers
    # after as long as the hub may take for the facts of a file (10 s, or what HF_HUB_ETAG_TIMEOUT says).
    get_session().head(hub.endpoint, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    return hub.list_models(
        search=words,
        filter=["safetensors"],
        pipeline_tag="text-generation",
        sort="downloads",
        limit=LIMIT,
        expand=["safetensors", "config", "gated", "downloads"],
    )


def _described(info: ModelInfo) -> dict[str, Any]:
    config = info.config if isinstance(info.config, dict) else {}
    settings = config.get("quantization_config") or config.get("quantization")
    layers = config.get("num_hidden_layers")
    size = None
    if info.safetensors is not None:
        counts = info.safetensors.parameters
        size = sum(count * _DTYPE_BITS.get(dtype, 16) // 8 for dtype, count in counts.items())
    return {
        "id": info.id,
        "bytes": size,
        "bits": settings.get("bits") if isinstance(settings, dict) else None,
        "layers": layers if isinstance(layers, int) else None,
        "gated": bool(info.gated),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Search the hub for models.")
    parser.add_argument("words")
    words = parser.parse_args().words
    return run_and_tell(lambda: search(words))


if __name__ == "__main__":
    sys.exit(main())
