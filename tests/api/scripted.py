"""Models that say what a test wants: every token has exactly one that follows it.

Attention and MLP add nothing, so the hidden state is the embedding of the last token, a unit vector of its
own, and the head maps it to the next token of the script. Tokenizer, template, ring and sampling are the real
ones.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer

from tests.tiny_configs import VOCAB_SIZE
from tests.tiny_models import EOS, write_tiny_model

HIDDEN = 64


def write_scripted_model(
    directory: Path, template: str, scripts: Mapping[str, Sequence[str]], special: Collection[str] = ()
) -> Path:
    """Write a model that, after the token that is a key of `scripts`, says its pieces and ends.

    No piece may occur twice. Those in `special` are special tokens.
    """
    pieces = [text for first, rest in scripts.items() for text in (first, *rest)]
    assert len(set(pieces)) == len(pieces), "every token has one that follows it"
    assert len(pieces) <= HIDDEN
    overrides = {"vocab_size": VOCAB_SIZE + HIDDEN, "hidden_size": HIDDEN, "tie_word_embeddings": False}
    write_tiny_model("llama", directory, overrides=overrides)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(text, special=text in special, normalized=False) for text in pieces])
    tokenizer.save(str(directory / "tokenizer.json"))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    ids: dict[str, int] = tokenizer.get_vocab()
    follows = {
        ids[a]: ids[b]
        for first, rest in scripts.items()
        for a, b in zip((first, *rest), (*rest, EOS), strict=True)
    }
    _write_weights(directory / "model.safetensors", follows)
    return directory


def _write_weights(path: Path, follows: Mapping[int, int]) -> None:
    weights = mx.load(str(path))
    assert isinstance(weights, dict)
    embedding = mx.zeros((VOCAB_SIZE + HIDDEN, HIDDEN))
    head = mx.zeros((VOCAB_SIZE + HIDDEN, HIDDEN))
    for place, (token, following) in enumerate(follows.items()):
        embedding[token, place] = 1.0
        head[following, place] = 10.0
    for name, value in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name] = mx.zeros_like(value)
    weights["model.embed_tokens.weight"] = embedding
    weights["lm_head.weight"] = head
    mx.eval(weights)
    mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})
