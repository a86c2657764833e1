"""Make-believe models for the doctor's tests: true headers written by hand, and weights that are holes in the file."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BITS = {"BF16": 16, "F32": 32, "F8_E4M3": 8}
Tensors = Mapping[str, tuple[str, Sequence[int]]]

CONFIG = {
    "architectures": ["Glm4MoeForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 512,
    "head_dim": 64,
    "max_position_embeddings": 8192,
}


def safetensors_header(tensors: Tensors) -> tuple[bytes, int]:
    """Return a header and the bytes of the tensors behind it."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * BITS[dtype] // 8
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    return json.dumps(table).encode(), at


def write_safetensors(path: Path, tensors: Tensors, *, cut: int = 0) -> int:
    """Write a file, `cut` bytes short, and return the bytes of its tensors."""
    header, used = safetensors_header(tensors)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + used - cut)
    return used


def shard_name(number: int, count: int) -> str:
    """Return the name of one shard, counted from 1."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def make_model(
    path: Path, *, shards: int = 2, width: int = 1024, config: Mapping[str, Any] = CONFIG, tokenizer: bool = True
) -> Path:
    """Make a whole model: config, tokenizer, index, and shards of one BF16 tensor of width × 1024 each."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    if tokenizer:
        (path / "tokenizer.json").write_text("{}")
    names = {f"layers.{number}.weight": shard_name(number, shards) for number in range(1, shards + 1)}
    total = sum(write_safetensors(path / file, {name: ("BF16", (width, 1024))}) for name, file in names.items())
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def gguf_text(text: str) -> bytes:
    """Return a GGUF string."""
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_head(
    *, architecture: str = "llama", words: int = 3, tensors: int = 2, tensor_bytes: int = 64, version: int = 3
) -> tuple[bytes, int]:
    """Return a GGUF head and the bytes of the tensors behind it."""
    numbers = {"block_count": 2, "attention.head_count": 4, "attention.head_count_kv": 2, "embedding_length": 64}
    keys = [gguf_text("general.architecture") + struct.pack("<I", 8) + gguf_text(architecture)]
    keys += [gguf_text(f"{architecture}.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items()]
    vocabulary = b"".join(gguf_text(f"word{number}") for number in range(words))
    keys.append(gguf_text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, words) + vocabulary)
    infos = [
        gguf_text(f"blk.{number}.weight") + struct.pack("<IQIQ", 1, tensor_bytes // 4, 0, number * tensor_bytes)
        for number in range(tensors)
    ]
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, len(keys)) + b"".join(keys) + b"".join(infos)
    return head + bytes(-len(head) % 32), tensors * tensor_bytes


def write_gguf(path: Path, *, cut: int = 0, **wishes: Any) -> Path:
    """Write a GGUF file, `cut` bytes short."""
    head, used = gguf_head(**wishes)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + used - cut)
    return path
