"""The files of a model's tokenizer: which tokens there are, which are special, which end an answer.

    tokenizer.json                                  text <-> ids, by the `tokenizers` library
    tokenizer_config.json, special_tokens_map.json  which tokens are special
    generation_config.json, config.json             end-of-sequence ids

The head makes prompts of them, and the tail of a ring the masks of grammars: both read them here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from dnet_core.errors import LoadError

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
OTHER_FORMATS = ("tokenizer.model", "tekken.json", "tiktoken.model", "vocab.json")
CONVERT_TIMEOUT_S = 120.0
CONVERT = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True, trust_remote_code=False)
print(json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.special_tokens_map]))
"""

JsonDict = dict[str, object]


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the files say: `config` is tokenizer_config.json, `special_texts` maps `eos_token` and the like to
    texts, `eos_token_ids` are all ids that end an answer.
    """

    backend: tokenizers.Tokenizer
    config: JsonDict
    special_texts: dict[str, str]
    eos_token_ids: tuple[int, ...]


def read_tokenizer_files(model_dir: Path) -> TokenizerFiles:
    """Read the tokenizer of the model in `model_dir`; takes 0.1 s to 1 s, by the size of the vocabulary.

    A model that has its tokenizer in another format only (sentencepiece, tekken, ...) is converted by
    transformers in a child process on every load, which takes some seconds more.
    Raises LoadError when files are missing, unreadable or inconsistent.
    """
    config = read_json(model_dir / "tokenizer_config.json")
    special_texts = _special_texts(config, read_json(model_dir / "special_tokens_map.json"))
    if (path := model_dir / "tokenizer.json").is_file():
        backend = _read_backend(path)
    else:
        backend, converted_texts = _convert_backend(model_dir)
        special_texts = {**converted_texts, **special_texts}
    _add_missing_tokens(backend, config, special_texts)
    # Settings of training batches, which a tokenizer.json may carry, would cut or pad a prompt.
    backend.no_truncation()
    backend.no_padding()
    eos_text = special_texts.get("eos_token")
    eos_token_id = None if eos_text is None else backend.token_to_id(eos_text)
    own_eos = () if eos_token_id is None else (eos_token_id,)
    eos_token_ids = tuple(sorted({*_read_eos_ids(model_dir), *own_eos}))
    return TokenizerFiles(backend, config, special_texts, eos_token_ids)


def is_control(token: tokenizers.AddedToken) -> bool:
    """Whether grammars name this token instead of spelling it: llguidance's own rule for tokenizer.json."""
    return token.special or (token.content.startswith("<") and token.content.endswith(">"))


def read_json(path: Path) -> JsonDict:
    """Return the object in `path`, empty when there is no such file. Raises LoadError."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path} does not hold a JSON object")
    return value


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise LoadError(f"{path} is not a tokenizer: {error}; fetch the model again") from error


def _convert_backend(model_dir: Path) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """Have transformers build the tokenizer and name its special tokens.

    In a child, so that this process never imports it.
    """
    found = [name for name in OTHER_FORMATS if (model_dir / name).is_file()]
    if not found:
        raise LoadError(f"{model_dir} has no tokenizer.json, nor {', '.join(OTHER_FORMATS)}: add one of them")
    command = [sys.executable, "-c", CONVERT, str(model_dir)]
    advice = f"{found[0]} of {model_dir} could not be converted: add a tokenizer.json to the model"
    try:
        done = subprocess.run(command, capture_output=True, timeout=CONVERT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"{advice} (no result within {CONVERT_TIMEOUT_S:g} s)") from error
    if done.returncode != 0:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise LoadError(f"{advice} ({last_line})")
    backend, special_texts = json.loads(done.stdout.splitlines()[-1])
    return tokenizers.Tokenizer.from_str(backend), special_texts


def _special_texts(config: JsonDict, special_tokens_map: JsonDict) -> dict[str, str]:
    # A config that lists its added tokens is complete; the separate map is of older models.
    source = config if "added_tokens_decoder" in config else {**config, **special_tokens_map}
    texts = {name: _token_text(source.get(name)) for name in SPECIAL_NAMES}
    return {name: text for name, text in texts.items() if text is not None}


def _token_text(value: object) -> str | None:
    """Return the text of a token that is written as a string or as an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _add_missing_tokens(
    backend: tokenizers.Tokenizer, config: JsonDict, special_texts: Mapping[str, str]
) -> None:
    """Make special what the config calls special, where tokenizer.json does not know it."""
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    added: list[tokenizers.AddedToken] = []
    listed = config.get("added_tokens_decoder")
    for entry in _sorted_by_id(listed) if isinstance(listed, dict) else []:
        text = _token_text(entry)
        if isinstance(entry, dict) and text is not None and text not in known:
            flags = {
                name: flag for name, flag in entry.items() if name in TOKEN_FLAGS and flag in (True, False)
            }
            added.append(tokenizers.AddedToken(text, **flags))
    named = {token.content for token in added} | known
    added += [
        tokenizers.AddedToken(text, special=True, normalized=False)
        for text in dict.fromkeys(special_texts.values())
        if text not in named
    ]
    backend.add_tokens(added)


def _sorted_by_id(listed: JsonDict) -> list[object]:
    return [entry for _, entry in sorted(listed.items(), key=lambda item: int(item[0]))]


def _read_eos_ids(model_dir: Path) -> tuple[int, ...]:
    """Return the ids that end a generation: generation_config.json where it has them, else config.json."""
    config = read_json(model_dir / "config.json")
    text_config = config.get("text_config")  # of models that also see or hear
    sources = [read_json(model_dir / "generation_config.json"), config]
    sources += [text_config] if isinstance(text_config, dict) else []
    value = next((s["eos_token_id"] for s in sources if s.get("eos_token_id") is not None), [])
    ids = value if isinstance(value, list) else [value]
    if not all(type(i) is int for i in ids):
        raise LoadError(f"{model_dir}: eos_token_id must be a token id or a list of them, not {value!r}")
    return tuple(ids)
