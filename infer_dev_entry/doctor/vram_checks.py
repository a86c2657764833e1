"""Judge the estimate of GPU memory: do the servers that are to start fit on their GPUs, one after the other? Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infer_dev_entry.config.facts import Gpu
from infer_dev_entry.doctor.found_model import ModelFiles
from infer_dev_entry.doctor.gpu_checks import GpuFacts, uses
from infer_dev_entry.doctor.rows import Row, fail, ok, size, skip, warn
from infer_dev_entry.doctor.vram import (
    CONTEXT_BYTES,
    LLAMA_BUFFER_BYTES,
    Estimate,
    context_of,
    estimate,
    llama_kv_bytes,
    read_kv_shape,
)
from infer_dev_entry.doctor.wishes import Wish

FEWEST_TOKENS = 2048
LLAMA_CONTEXT = 4096  # what our launcher takes when the config sets no ctx_size
LIVE_STATES = ("starting", "loading", "ready", "unhealthy", "draining")


def check_vram(
    wishes: Sequence[Wish],
    models: Mapping[str, ModelFiles],
    facts: GpuFacts,
    states: Mapping[str, str],
) -> list[Row]:
    """Judge every server that takes GPU memory, in start order: what one takes is gone for the next."""
    free = {gpu.index: facts.free_bytes.get(gpu.index, gpu.memory_bytes) for gpu in facts.gpus}
    return [
        _check_server(wish, models, facts.gpus, free, states.get(wish.name, ""))
        for wish in wishes
        if wish.gpus and facts.gpus
    ]


def _check_server(
    wish: Wish, models: Mapping[str, ModelFiles], gpus: Sequence[Gpu], free: dict[int, int], state: str
) -> Row:
    check = f"GPU memory of {wish.name}"
    if state in LIVE_STATES:
        return ok(check, "it serves, so it fits") if state == "ready" else skip(check, f"it is {state}: not measured")
    chosen = [gpu for gpu in gpus if uses(wish, gpu)][: wish.gpus if wish.gpu_ids is None else None]
    if not chosen or any(gpu.mig_uuids for gpu in chosen):
        return skip(check, "its GPUs cannot be measured (MIG slices, or none of this machine)")
    if any(gpu.lost for gpu in chosen):
        return skip(check, "one of its GPUs is lost")
    model = models.get(wish.model)
    if model is None or model.problem or any(fault.certain for fault in model.faults):
        return skip(check, "the model's files are not known or not whole")
    left = min(free[gpu.index] for gpu in chosen)
    if not wish.is_sglang:
        row, taken = _check_llama(check, wish, model, left, len(chosen))
    else:
        row, taken = _check_sglang(check, wish, model, models.get(wish.draft_model), left)
    for gpu in chosen:
        free[gpu.index] = max(0, free[gpu.index] - int(taken))
    return row


def _check_llama(check: str, wish: Wish, model: ModelFiles, left: int, count: int) -> tuple[Row, float]:
    if model.head is None:
        return skip(check, "the model's head was not read"), 0.0
    kv = llama_kv_bytes(model.head, wish.context_length or LLAMA_CONTEXT)
    needed = (model.file_bytes + kv) / count + LLAMA_BUFFER_BYTES
    seen = (
        f"estimate: {size(model.file_bytes)} of weights, {size(kv)} of KV cache, {size(LLAMA_BUFFER_BYTES)} of buffers "
        f"on {count} GPU(s), {size(left)} free"
    )
    if needed > left:
        return warn(check, seen, "lower n_gpu_layers or ctx_size, or use a smaller quantisation"), left
    return ok(check, seen), needed


def _check_sglang(check: str, wish: Wish, model: ModelFiles, draft: ModelFiles | None, left: int) -> tuple[Row, float]:
    weights = model.tensor_bytes + (draft.tensor_bytes if draft else 0)
    if not weights:
        return skip(check, "no weights whose size is known"), 0.0
    config = model.config or {}
    shape = read_kv_shape(config, wish)
    guess = estimate(wish, weights, shape, left)
    ways = f" / {wish.tp * wish.pp}" if wish.tp * wish.pp > 1 else ""
    fraction = f"{guess.fraction:g}" if wish.mem_fraction else f"{guess.fraction:g} assumed"
    seen = (
        f"estimate a GPU: {size(weights)} of weights{ways} = {size(guess.weights_bytes)}; mem_fraction_static "
        f"({fraction}) of {size(left)} free less {size(CONTEXT_BYTES)} for CUDA = {size(guess.static_bytes)}"
    )
    taken = guess.static_bytes + CONTEXT_BYTES
    if guess.weights_bytes >= guess.static_bytes:
        return _too_large(check, seen, wish, config), taken
    if guess.kv_tokens is None:
        return ok(check, f"{seen}; room for KV cache {size(guess.static_bytes - guess.weights_bytes)}"), taken
    words = f"{seen}; KV cache ({shape.words if shape else ''}): room for about {guess.kv_tokens} tokens"
    return _judge_tokens(check, words, wish, guess, context_of(config, wish)), taken


def _too_large(check: str, seen: str, wish: Wish, config: Mapping[str, object]) -> Row:
    mend = "raise tp_size or mem_fraction_static, free the GPU, or use a quantised model"
    if wish.quantization and "quantization_config" not in config:
        return warn(check, f"{seen}; the weights do not fit unless quantising them at the start shrinks them", mend)
    return fail(check, f"{seen}; the weights do not fit", mend)


def _judge_tokens(check: str, words: str, wish: Wish, guess: Estimate, context: int) -> Row:
    tokens = guess.kv_tokens or 0
    if tokens < FEWEST_TOKENS or (wish.context_length and tokens < wish.context_length):
        mend = 'raise mem_fraction_static or tp_size, lower context_length, or set kv_cache_dtype = "fp8_e5m2"'
        return warn(check, f"{words}, fewer than one request of {context or FEWEST_TOKENS}", mend)
    return ok(check, f"{words}; a request has up to {context}" if context else words)
