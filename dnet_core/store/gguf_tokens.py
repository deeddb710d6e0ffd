"""The tokenizer inside a GGUF file, written as the files that `transformers` and `tokenizers` read.

GGUF stores a byte-level BPE as tokens, merges and the *name* of the rule that splits text before merging;
the rules themselves are in llama.cpp, so each one is written out here and others are refused.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dnet_core.errors import LoadError, UnsupportedModel
from dnet_core.store.gguf_header import GGUFHeader

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_REGEX_SPLITS = {"llama-bpe": _LLAMA3_SPLIT, "llama-v3": _LLAMA3_SPLIT, "llama3": _LLAMA3_SPLIT}
_REGEX_SPLITS |= {"qwen2": _QWEN2_SPLIT, "deepseek-r1-qwen": _QWEN2_SPLIT}
_NORMALIZED = {"qwen2"}  # Qwen's own tokenizers apply NFC; DeepSeek's copy does not
_GPT2_SPLITS = ("smollm", "gpt-2", "gpt2")
_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
# Models end an answer with the turn's end or the text's end; metadata name only one of them.
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")


def write_tokenizer(header: GGUFHeader, directory: Path) -> list[int]:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json; return all end ids.

    Raises UnsupportedModel for a tokenizer that is no byte-level BPE with a known split, LoadError for
    metadata that contradict themselves.
    """
    if (kind := header.text("tokenizer.ggml.model")) != "gpt2":
        raise UnsupportedModel(
            header.path.name,
            f"its tokenizer is of kind '{kind}'; only byte-level BPE ('gpt2') can be imported",
        )
    tokens = header.texts("tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens):
        raise LoadError(f"{header.path}: tokenizer.ggml.tokens names a token twice")
    tokenizer = _build(header, tokens)
    tokenizer.save(str(directory / "tokenizer.json"))
    end_ids = _end_ids(header, tokens)
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(header, tokens, end_ids))
    _write_json(directory / "generation_config.json", {"eos_token_id": end_ids})
    return end_ids


def _build(header: GGUFHeader, tokens: list[str]) -> Tokenizer:
    split = header.text("tokenizer.ggml.pre")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for merge in header.texts("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left + right not in vocabulary or left not in vocabulary or right not in vocabulary:
            raise LoadError(
                f"{header.path}: the merge {merge!r} in tokenizer.ggml.merges does not fit its tokens"
            )
        merges.append((left, right))
    # Llama 3 takes a word that is a token as it is, before any merge.
    whole_words = _REGEX_SPLITS.get(split) == _LLAMA3_SPLIT
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole_words))
    tokenizer.pre_tokenizer = _pre_tokenizer(header, split)
    tokenizer.decoder = decoders.ByteLevel()
    if split in _NORMALIZED:
        tokenizer.normalizer = normalizers.NFC()
    kinds = header.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise LoadError(f"{header.path}: tokenizer.ggml.token_type does not fit its tokens")
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            # In id order, so that ids stay as they are in the vocabulary.
            tokenizer.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)])
    if header.metadata.get("tokenizer.ggml.add_bos_token") is True:
        bos = _token_id(header, "bos", tokens)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=f"{tokens[bos]} $A $B", special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def _pre_tokenizer(header: GGUFHeader, split: str) -> pre_tokenizers.PreTokenizer:
    if split in _REGEX_SPLITS:
        by_regex = pre_tokenizers.Split(Regex(_REGEX_SPLITS[split]), behavior="isolated")
        return pre_tokenizers.Sequence(
            [by_regex, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    if split not in _GPT2_SPLITS:
        known = ", ".join([*_GPT2_SPLITS, *_REGEX_SPLITS])
        raise UnsupportedModel(
            header.path.name, f"its tokenizer splits text by the rule '{split}'; known rules are {known}"
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if split == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    return byte_level


def _token_id(header: GGUFHeader, name: str, tokens: list[str]) -> int:
    value = int(header.number(f"tokenizer.ggml.{name}_token_id"))
    if not 0 <= value < len(tokens):
        raise LoadError(
            f"{header.path}: tokenizer.ggml.{name}_token_id is {value}, but there are {len(tokens)} tokens"
        )
    return value


def _end_ids(header: GGUFHeader, tokens: list[str]) -> list[int]:
    """All ids that end an answer; the one that metadata name comes first."""
    kinds = header.metadata["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list), "checked when the tokenizer was built"
    found = [_token_id(header, "eos", tokens)]
    if "tokenizer.ggml.eot_token_id" in header.metadata:
        found.append(_token_id(header, "eot", tokens))
    found += [i for i, token in enumerate(tokens) if token in _END_TOKENS and kinds[i] == _CONTROL]
    return list(dict.fromkeys(found))


def _tokenizer_config(header: GGUFHeader, tokens: list[str], end_ids: list[int]) -> dict[str, object]:
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": header.metadata.get("tokenizer.ggml.add_bos_token") is True,
        "add_prefix_space": False,
        "eos_token": tokens[end_ids[0]],
        "model_max_length": header.count(f"{header.text('general.architecture')}.context_length"),
    }
    for name, key in (("bos", "bos_token"), ("padding", "pad_token"), ("unknown", "unk_token")):
        if f"tokenizer.ggml.{name}_token_id" in header.metadata:
            config[key] = tokens[_token_id(header, name, tokens)]
    if "tokenizer.chat_template" in header.metadata:
        config["chat_template"] = header.text("tokenizer.chat_template")
    return config


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
