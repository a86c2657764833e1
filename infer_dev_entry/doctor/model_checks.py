"""Judge a model's files: is everything there that the server will open, and whole? Pure."""

from __future__ import annotations

from collections.abc import Sequence

from infer_dev_entry.doctor.found_model import Fault, ModelFiles
from infer_dev_entry.doctor.rows import Row, fail, ok, size, skip, warn
from infer_dev_entry.doctor.wishes import Wish
from infer_dev_entry.foreign_text import shown

# One of these names holds a vocabulary that transformers or SGLang can read; merges.txt goes with vocab.json.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tekken.json", "tiktoken.model", "spiece.model", "vocab.json", "vocab.txt",
    "sentencepiece.bpe.model", "qwen.tiktoken", "tokenization.py",
)  # fmt: skip
OLD_WEIGHTS = (".bin", ".pt", ".pth")
_SHOWN_FAULTS = 3
COPY_MEND = "download the model again into that directory, all of its files"


def check_model(wish: Wish, files: ModelFiles | None, tokenizer: ModelFiles | None) -> list[Row]:
    """Judge one server's model; `files` is None when the path is none of this disk's."""
    check = f"model of {wish.name}"
    if files is None:
        return [skip(check, _elsewhere(wish))]
    if files.problem:
        return [
            fail(check, f"cannot read {files.path}: {files.problem}", "correct the path, or mount the models there")
        ]
    if not files.is_directory:
        return [_check_gguf(check, wish, files)]
    if not wish.is_sglang:
        return [fail(check, f"{files.path} is a directory, and llama.cpp reads one GGUF file", "name the .gguf file")]
    return [_check_config(check, files), *_check_tokenizer(wish, files, tokenizer), _check_weights(wish, files)]


def _elsewhere(wish: Wish) -> str:
    if wish.model_package:
        return f"{wish.model_package}: weights from a package, which the server unpacks and checks itself"
    if wish.model:
        return f"{shown(wish.model)} is no path: the server fetches it itself"
    return "the config's command line names no model"


def _check_gguf(check: str, wish: Wish, files: ModelFiles) -> Row:
    certain = [fault for fault in files.faults if fault.certain]
    if certain or files.head is None:
        return _fault_row(check, files.faults, f"{files.path}: ")
    head = files.head
    quantum = f"{head.architecture or 'no architecture named'}, {head.tensors} tensors, {size(files.file_bytes)}"
    if not head.architecture:
        return fail(check, f"{files.path}: {quantum}", "it is no model that llama.cpp knows; download it again")
    if wish.is_sglang and wish.load_format not in ("auto", "gguf"):
        return warn(check, f"{files.path}: {quantum}, but load_format is {shown(wish.load_format)}", "remove it")
    return ok(check, f"{files.path}: {quantum}")


def _check_config(check: str, files: ModelFiles) -> Row:
    faults = [fault for fault in files.faults if fault.text.startswith("config.json:")]
    if faults:
        return _fault_row(check, faults, f"{files.path}: ")
    if files.config is None:
        return fail(check, f"{files.path} has no config.json", COPY_MEND)
    names = files.config.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        mend = "it is no model for SGLang, or a part of one (an adapter?); name the directory of the whole model"
        return fail(check, f"{files.path}/config.json names no architectures", mend)
    return ok(check, f"{files.path}: {', '.join(names)[:80]}")


def _check_tokenizer(wish: Wish, files: ModelFiles, tokenizer: ModelFiles | None) -> list[Row]:
    check = f"tokenizer of {wish.name}"
    if not wish.needs_tokenizer:
        return [skip(check, "skip_tokenizer_init is set")]
    if wish.tokenizer and tokenizer is None:
        return [skip(check, f"{shown(wish.tokenizer)} is no path: the server fetches it itself")]
    where = tokenizer or files
    if where.problem:
        return [fail(check, f"cannot read {where.path}: {where.problem}", "correct tokenizer_path")]
    there = [name for name in where.names if name in TOKENIZER_FILES or name.endswith(".tiktoken")]
    faults = [fault for fault in where.faults if fault.text.partition(":")[0] in (*there, "tokenizer_config.json")]
    if faults:
        return [_fault_row(check, faults, f"{where.path}: ")]
    if not there:
        return [fail(check, f"{where.path} has none of {', '.join(TOKENIZER_FILES[:3])}, …", COPY_MEND)]
    return [ok(check, ", ".join(there[:4]))]


def _check_weights(wish: Wish, files: ModelFiles) -> Row:
    check = f"weights of {wish.name}"
    if wish.load_format == "dummy":
        return skip(check, "load_format is dummy: made up at the start")
    of_others = ("config.json:", "tokenizer", *(f"{name}:" for name in TOKENIZER_FILES))
    faults = [fault for fault in files.faults if not fault.text.startswith(of_others)]
    if faults:
        return _fault_row(check, faults, f"{files.path}: ")
    if files.shards:
        index = "as the index says" if files.has_index else "without an index"
        return ok(check, f"{files.shards} safetensors, {index}, {size(files.tensor_bytes)} of tensors, sizes right")
    others = [name for name in files.names if name.endswith(OLD_WEIGHTS) or name.endswith(".gguf")]
    if others:
        return warn(check, f"no safetensors but {', '.join(others[:3])}: sizes cannot be checked", "prefer safetensors")
    return fail(check, f"{files.path} has no weights (*.safetensors)", COPY_MEND)


def _fault_row(check: str, faults: Sequence[Fault], before: str) -> Row:
    """One row for all faults of a kind: the first few by name, with the first one's mend."""
    faults = sorted(faults, key=lambda fault: not fault.certain)
    more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
    text = before + "; ".join(fault.text for fault in faults[:_SHOWN_FAULTS]) + more
    judge = fail if faults[0].certain else warn
    return judge(check, text, faults[0].mend)
