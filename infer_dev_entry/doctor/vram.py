"""Estimate what a server takes of each GPU's memory: weights by their headers, KV cache by the config. Pure.

SGLang's own arithmetic, which its `mem_fraction_static` means: of the memory that is free when it starts, that fraction
holds weights and KV cache; the rest is for activations and CUDA graphs. Seen on an H200: 0.3 of 140 GiB took 44 GB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infer_dev_entry.doctor.gguf import GgufHead
from infer_dev_entry.doctor.rows import GIB
from infer_dev_entry.doctor.wishes import Wish

CONTEXT_BYTES = 1 * GIB  # CUDA context, NCCL buffers and libraries, gone before SGLang measures what is free
ASSUMED_FRACTION = 0.85  # when the config sets none, SGLang chooses about this by the GPU's size
LLAMA_BUFFER_BYTES = GIB // 2  # CUDA context and llama.cpp's compute buffers

_MAX_LAYERS = 100_000
_MAX_WIDTH = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """Bytes of KV cache that one token takes on one GPU, and how that was reckoned, for people."""

    token_bytes: float
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One GPU's share. `static_bytes` is what weights and KV cache may have; `kv_tokens` None when not known."""

    weights_bytes: float
    static_bytes: float
    kv_tokens: int | None
    fraction: float


def estimate(wish: Wish, tensor_bytes: int, shape: KvShape | None, free_bytes: float) -> Estimate:
    """Estimate a server on GPUs of which the fullest has `free_bytes`."""
    fraction = wish.mem_fraction or ASSUMED_FRACTION
    static = max(0.0, free_bytes - CONTEXT_BYTES) * fraction
    weights = max(0.0, tensor_bytes / (wish.tp * wish.pp) - wish.cpu_offload_gb * GIB)
    room = static - weights
    tokens = int(room / shape.token_bytes) if shape and shape.token_bytes and room > 0 else None
    return Estimate(weights_bytes=weights, static_bytes=static, kv_tokens=tokens, fraction=fraction)


def read_kv_shape(config: Mapping[str, Any], wish: Wish) -> KvShape | None:
    """Work out one token's KV cache from config.json; None where the config does not say."""
    model = _text_model({**config, **wish.model_overrides})
    layers = _number(model, "num_hidden_layers", _MAX_LAYERS)
    width = 1 if wish.kv_cache_dtype.startswith("fp8") else 2
    latent = _number(model, "kv_lora_rank", _MAX_WIDTH)
    stages = wish.pp
    if layers and latent:  # multi-head latent attention: every tensor-parallel rank holds all of it
        rope = _number(model, "qk_rope_head_dim", _MAX_WIDTH)
        return KvShape(
            token_bytes=layers * (latent + rope) * width / stages, words=f"{layers} layers × {latent + rope} latent"
        )
    heads = _number(model, "num_attention_heads", _MAX_WIDTH)
    kv_heads = _number(model, "num_key_value_heads", _MAX_WIDTH) or heads
    hidden = _number(model, "hidden_size", _MAX_WIDTH)
    head_dim = _number(model, "head_dim", _MAX_WIDTH) or (hidden // heads if heads else 0)
    if not (layers and kv_heads and head_dim):
        return None
    share = max(1.0, kv_heads / wish.tp)  # a rank holds at least one head
    words = f"{layers} layers × {kv_heads} KV heads × {head_dim}"
    return KvShape(token_bytes=2 * layers * share * head_dim * width / stages, words=words)


def context_of(config: Mapping[str, Any], wish: Wish) -> int:
    """The longest request: the config's `context_length`, else what the model has; 0 when neither says."""
    model = _text_model({**config, **wish.model_overrides})
    return wish.context_length or _number(model, "max_position_embeddings", 2**40)


def llama_kv_bytes(head: GgufHead, context: int) -> int:
    """Estimate llama.cpp's KV cache (16 bits a value) for a context; 0 when the file does not say."""
    layers, heads = head.number("block_count"), head.number("attention.head_count")
    kv_heads = head.number("attention.head_count_kv") or heads
    width = head.number("attention.key_length") or (head.number("embedding_length") // heads if heads else 0)
    if not all(0 < number < _MAX_WIDTH for number in (layers, kv_heads, width)):
        return 0
    return 2 * 2 * layers * kv_heads * width * (context or head.number("context_length"))


def _text_model(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part: models that also see or hear nest it."""
    for name in ("text_config", "llm_config", "language_config"):
        nested = config.get(name)
        if isinstance(nested, Mapping) and "num_hidden_layers" in nested:
            return nested
    return config


def _number(model: Mapping[str, Any], name: str, most: int) -> int:
    value = model.get(name)
    return value if type(value) is int and 0 < value <= most else 0
