"""A model's tokenizer without the model: text to token ids, messages to a prompt, and the ids that end it.

    tokenizer.json                                  text <-> ids, by the `tokenizers` library
    tokenizer_config.json, special_tokens_map.json  which tokens are special
    chat_template.jinja and its older places        the chat template
    generation_config.json, config.json             end-of-sequence ids

`tokenizer.json` is taken as it is: what it encodes is what the model was trained on. Immutable once loaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers

from dnet_core.errors import LoadError, RequestError

if TYPE_CHECKING:
    from dnet_core.generate.chat_template import ChatMessage

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


class Tokenizer:
    """What turns text into token ids and messages into a prompt, for one model."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_texts: Mapping[str, str],
        chat_templates: Mapping[str, str],
        eos_token_ids: Iterable[int],
    ) -> None:
        """Wrap `backend`; `special_texts` maps names such as `bos_token` to the token's text."""
        # Settings of training batches, which a tokenizer.json may carry, would cut or pad a prompt.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._special_texts = dict(special_texts)
        self._chat_templates = dict(chat_templates)
        self.bos_token_id = self._special_id("bos_token")
        eos_token_id = self._special_id("eos_token")
        own_eos = () if eos_token_id is None else (eos_token_id,)
        self.eos_token_ids = tuple(sorted({*eos_token_ids, *own_eos}))
        special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.hidden_token_ids = frozenset(special | set(self.eos_token_ids))

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Read the tokenizer of the model in `model_dir`; takes 0.1 s to 1 s, by the size of the vocabulary.

        A model that has its tokenizer in another format only (sentencepiece, tekken, ...) is converted by
        transformers in a child process on every load, which takes some seconds more.
        Raises LoadError when files are missing, unreadable or inconsistent.
        """
        config = _read_json(model_dir / "tokenizer_config.json")
        special_texts = _special_texts(config, _read_json(model_dir / "special_tokens_map.json"))
        if (path := model_dir / "tokenizer.json").is_file():
            backend = _read_backend(path)
        else:
            backend, converted_texts = _convert_backend(model_dir)
            special_texts = {**converted_texts, **special_texts}
        _add_missing_tokens(backend, config, special_texts)
        return cls(
            backend,
            special_texts=special_texts,
            chat_templates=_read_chat_templates(model_dir, config),
            eos_token_ids=_read_eos_ids(model_dir),
        )

    @property
    def has_chat_template(self) -> bool:
        """Whether the model came with a template; without one, chats are rendered as `User: text` lines."""
        return bool(self._chat_templates)

    @property
    def vocab_size(self) -> int:
        """The number of tokens, added ones included; a model's own table may be padded beyond it."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def decoder_spec(self) -> object:
        """The decoder's own JSON description (None: token texts are joined by spaces)."""
        decoder = self._backend.decoder
        return None if decoder is None else json.loads(decoder.__getstate__())

    def encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        """Return the ids of `text`; special tokens written in it count as such.

        With `add_special_tokens` the model's BOS is put in front, but never a second one.
        """
        try:
            ids = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError("the text is not valid Unicode: it holds half of a surrogate pair") from error
        bos = self.bos_token_id
        if add_special_tokens and bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return tuple(ids)

    def apply_chat_template(self, messages: Sequence[ChatMessage], /, **variables: object) -> str:
        """Render `messages` to prompt text, as transformers does it.

        `variables` reach the template (`tools`, `enable_thinking`, ...); `add_generation_prompt` is True
        unless given. A model without a template gets `User: text` lines (`render_plain`).
        Raises RequestError with the template's message when it refuses the messages.
        """
        # Jinja takes 0.15 s to import: the first screen need not wait for it.
        from dnet_core.generate.chat_template import render, render_plain  # noqa: PLC0415

        variables = {
            **self._special_texts,
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
            **variables,
        }
        if not self._chat_templates:
            return render_plain(messages, add_generation_prompt=bool(variables["add_generation_prompt"]))
        return render(self._pick_template(variables), messages, variables)

    def encode_chat(self, messages: Sequence[ChatMessage], /, **variables: object) -> tuple[int, ...]:
        """Return the ids of the rendered chat. A template writes BOS itself; the plain form gets it here."""
        text = self.apply_chat_template(messages, **variables)
        return self.encode(text, add_special_tokens=not self._chat_templates)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` at once, without special and end-of-sequence tokens."""
        visible = [i for i in ids if i not in self.hidden_token_ids]
        return self._backend.decode(visible, skip_special_tokens=True)

    def token_text(self, token: int) -> str | None:
        """Return the vocabulary's spelling of `token` (not its text), or None for an id it does not have."""
        return self._backend.id_to_token(token)

    def token_id(self, text: str) -> int | None:
        """Return the id of the token that is spelled `text`, or None."""
        return self._backend.token_to_id(text)

    def chat_template(self, *, with_tools: bool) -> str:
        """Return the source of the template that a chat with or without tools is rendered with ("": none)."""
        return self._pick_template({"tools": () if with_tools else None}) if self._chat_templates else ""

    def _special_id(self, name: str) -> int | None:
        text = self._special_texts.get(name)
        return None if text is None else self._backend.token_to_id(text)

    def _pick_template(self, variables: Mapping[str, object]) -> str:
        templates = self._chat_templates
        if variables["tools"] is not None and "tool_use" in templates:
            return templates["tool_use"]
        if "default" not in templates:
            raise RequestError(
                f"none of the model's chat templates is the default one: {', '.join(sorted(templates))}"
            )
        return templates["default"]


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
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


def _read_json(path: Path) -> JsonDict:
    """Return the object in `path`, empty when there is no such file."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path} does not hold a JSON object")
    return value


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


def _read_chat_templates(model_dir: Path, config: JsonDict) -> dict[str, str]:
    """Collect the templates by name; newer places win: .jinja files, the config, chat_template.json."""
    templates = _named_templates(_read_json(model_dir / "chat_template.json").get("chat_template"))
    templates |= _named_templates(config.get("chat_template"))
    files = {path.stem: path for path in sorted((model_dir / "additional_chat_templates").glob("*.jinja"))}
    if (default := model_dir / "chat_template.jinja").is_file():
        files["default"] = default
    for name, path in files.items():
        try:
            templates[name] = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise LoadError(f"{path} cannot be read: {error}") from error
    return templates


def _named_templates(value: object) -> dict[str, str]:
    """Return the templates in a config: one text, or a list of objects with `name` and `template`."""
    if isinstance(value, str):
        return {"default": value}
    entries = [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
    return {
        str(entry["name"]): str(entry["template"])
        for entry in entries
        if {"name", "template"} <= entry.keys()
    }


def _read_eos_ids(model_dir: Path) -> tuple[int, ...]:
    """Return the ids that end a generation: generation_config.json where it has them, else config.json."""
    config = _read_json(model_dir / "config.json")
    text_config = config.get("text_config")  # of models that also see or hear
    sources = [_read_json(model_dir / "generation_config.json"), config]
    sources += [text_config] if isinstance(text_config, dict) else []
    value = next((s["eos_token_id"] for s in sources if s.get("eos_token_id") is not None), [])
    ids = value if isinstance(value, list) else [value]
    if not all(type(i) is int for i in ids):
        raise LoadError(f"{model_dir}: eos_token_id must be a token id or a list of them, not {value!r}")
    return tuple(ids)
