"""GGUF files written byte by byte, so that the importer is tested against the format and not against MLX."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny_models import CHAT_TEMPLATE, make_tokenizer

F32, F16, Q4_0, Q4_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16 = 0, 1, 2, 3, 8, 12, 13, 14, 30
Tensor = tuple[int, tuple[int, ...], bytes]  # type, shape (rows first), data


def write_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write version 3. Metadata values are bool, int (u32), float (f32), str, or lists of str or int."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _text(key) + _value(value)
    data = b""
    for name, (kind, shape, content) in tensors.items():
        head += _text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", n) for n in reversed(shape)) + struct.pack("<IQ", kind, len(data))
        data += content + b"\0" * (-len(content) % 32)
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
        case _:
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def tokenizer_metadata(pre: str = "gpt-2") -> dict[str, Any]:
    """The tiny models' tokenizer as GGUF stores one."""
    import json

    model = json.loads(make_tokenizer().to_str())["model"]
    special = {t["content"] for t in json.loads(make_tokenizer().to_str())["added_tokens"]}
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": model["vocab"]["<|begin|>"],
        "tokenizer.ggml.eos_token_id": model["vocab"]["<|end|>"],
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def model_metadata(architecture: str, config: dict[str, Any]) -> dict[str, Any]:
    """`config.json` of a tiny model as GGUF stores it."""
    return {
        "general.architecture": architecture,
        f"{architecture}.block_count": config["num_hidden_layers"],
        f"{architecture}.context_length": config["max_position_embeddings"],
        f"{architecture}.embedding_length": config["hidden_size"],
        f"{architecture}.feed_forward_length": config["intermediate_size"],
        f"{architecture}.attention.head_count": config["num_attention_heads"],
        f"{architecture}.attention.head_count_kv": config["num_key_value_heads"],
        f"{architecture}.attention.key_length": config["head_dim"],
        f"{architecture}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{architecture}.rope.freq_base": float(config["rope_theta"]),
    }


def pair_rows(array: np.ndarray, heads: int) -> np.ndarray:
    """The order in which llama.cpp's converter puts Llama's q and k rows: rotated pairs side by side."""
    return (
        array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        .swapaxes(1, 2)
        .reshape(array.shape)
    )


def as_floats(array: np.ndarray, kind: int = F32) -> Tensor:
    return kind, array.shape, array.astype(np.float32 if kind == F32 else np.float16).tobytes()


def as_q4_0(array: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Blocks of 32: a half-precision scale, then 16 bytes, low nibbles first. Also what they stand for."""
    blocks = array.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 7).astype(np.float16)
    codes = np.clip(np.round(blocks / scales.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    packed = codes[:, :16] | (codes[:, 16:] << 4)
    data = np.concatenate([scales.view(np.uint8), packed], axis=1).tobytes()
    meant = scales.astype(np.float32) * (codes.astype(np.float32) - 8)
    return (Q4_0, array.shape, data), meant.reshape(array.shape)


def as_q8_0(array: np.ndarray) -> tuple[Tensor, np.ndarray]:
    """Blocks of 32: a half-precision scale, then 32 signed bytes. Also what they stand for."""
    blocks = array.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    codes = np.round(blocks / scales.astype(np.float32)).astype(np.int8)
    data = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=1).tobytes()
    return (Q8_0, array.shape, data), (scales.astype(np.float32) * codes).reshape(array.shape)


# K-quants: a block of 256 weights with its own scales; here is what the bytes of one mean.


def mean_q4_k(block: np.ndarray) -> np.ndarray:
    """d, dmin, eight scales and minima of six bits in 12 bytes, codes[128] of four bits."""
    d, minimum = block[:4].view(np.float16).astype(np.float32)
    packed, codes = block[4:16].astype(int), block[16:144].astype(int)
    parts = []
    for i in range(8):
        if i < 4:
            scale, low = packed[i] & 63, packed[i + 4] & 63
        else:
            scale = (packed[i + 4] & 15) | (packed[i - 4] >> 6 << 4)
            low = (packed[i + 4] >> 4) | (packed[i] >> 6 << 4)
        chunk = codes[i // 2 * 32 : i // 2 * 32 + 32]
        parts.append(d * scale * (chunk >> 4 if i % 2 else chunk & 15) - minimum * low)
    return np.concatenate(parts)


def mean_q6_k(block: np.ndarray) -> np.ndarray:
    """low[128] (four bits), high[64] (two bits), signed scales[16], d."""
    low, high = block[:128].astype(int), block[128:192].astype(int)
    scales = block[192:208].view(np.int8).astype(int)
    d = block[208:210].view(np.float16).astype(np.float32)[0]
    parts = []
    for half in range(2):
        for quarter in range(4):
            start = half * 64 + quarter % 2 * 32
            nibbles = low[start : start + 32] >> (4 if quarter > 1 else 0) & 15
            codes = nibbles | (high[half * 32 : half * 32 + 32] >> 2 * quarter & 3) << 4
            scale = np.repeat(scales[half * 8 + quarter * 2 : half * 8 + quarter * 2 + 2], 16)
            parts.append(d * scale * (codes - 32))
    return np.concatenate(parts)


K_QUANTS = {Q4_K: (144, mean_q4_k), Q6_K: (210, mean_q6_k)}


def as_k_quant(kind: int, shape: tuple[int, int], seed: int) -> tuple[Tensor, np.ndarray]:
    """Random blocks of a K-quant with lawful scales (random bytes may be no number). Also what they mean."""
    num_bytes, meaning = K_QUANTS[kind]
    count = shape[0] * shape[1] // 256
    blocks = np.random.default_rng(seed).integers(0, 256, (count, num_bytes), dtype=np.uint8)
    halves, at = (2, 0) if kind == Q4_K else (1, 208)
    scales = np.linspace(0.0001, 0.001, count * halves, dtype=np.float16)
    blocks[:, at : at + 2 * halves] = scales.view(np.uint8).reshape(count, -1)
    return (kind, shape, blocks.tobytes()), np.stack([meaning(block) for block in blocks]).reshape(shape)


def as_q4_1(array: np.ndarray) -> Tensor:
    """Blocks of 32: a half-precision scale and minimum, then 16 bytes of nibbles."""
    blocks = array.reshape(-1, 32)
    minima = blocks.min(axis=1, keepdims=True).astype(np.float16)
    scales = ((blocks.max(axis=1, keepdims=True) - minima) / 15).astype(np.float16)
    codes = np.clip(np.round((blocks - minima) / scales), 0, 15).astype(np.uint8)
    packed = codes[:, :16] | (codes[:, 16:] << 4)
    data = np.concatenate([scales.view(np.uint8), minima.view(np.uint8), packed], axis=1)
    return Q4_1, array.shape, data.tobytes()


def as_bf16(array: np.ndarray) -> Tensor:
    """The upper halves of float32, cut off."""
    return BF16, array.shape, (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
