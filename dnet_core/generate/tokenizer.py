"""A model's tokenizer without the model: text to token ids, messages to a prompt, and the ids that end it.

    tokenizer.json and its companions         text <-> ids: store/tokenizer_files.py
    chat_template.jinja and its older places  the chat template

`tokenizer.json` is taken as it is: what it encodes is what the model was trained on. Immutable once loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers

from dnet_core.errors import LoadError, RequestError
from dnet_core.store.tokenizer_files import JsonDict, is_control, read_json, read_tokenizer_files

if TYPE_CHECKING:
    from dnet_core.generate.chat_template import ChatMessage


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
        """Wrap `backend`; `special_texts` maps names such as `bos_token` to the token's text.

        `control_tokens` are those that a grammar names (`is_control`).
        """
        self._backend = backend
        self._special_texts = dict(special_texts)
        self._chat_templates = dict(chat_templates)
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_ids = tuple(eos_token_ids)
        added = backend.get_added_tokens_decoder()
        special = {i for i, token in added.items() if token.special}
        self.hidden_token_ids = frozenset(special | set(self.eos_token_ids))
        self.control_tokens = {i: token.content for i, token in added.items() if is_control(token)}

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Read the tokenizer of the model in `model_dir`; takes 0.1 s to 1 s, by the size of the vocabulary.

        A model that has its tokenizer in another format only (sentencepiece, tekken, ...) is converted by
        transformers in a child process on every load, which takes some seconds more.
        Raises LoadError when files are missing, unreadable or inconsistent.
        """
        files = read_tokenizer_files(model_dir)
        return cls(
            files.backend,
            special_texts=files.special_texts,
            chat_templates=_read_chat_templates(model_dir, files.config),
            eos_token_ids=files.eos_token_ids,
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


def _read_chat_templates(model_dir: Path, config: JsonDict) -> dict[str, str]:
    """Collect the templates by name; newer places win: .jinja files, the config, chat_template.json."""
    templates = _named_templates(read_json(model_dir / "chat_template.json").get("chat_template"))
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
