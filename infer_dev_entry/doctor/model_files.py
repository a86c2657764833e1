"""Read what lies in a model's directory: names, sizes and headers, never weights; all bounded in size and time."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from infer_dev_entry.doctor import gguf, safetensors
from infer_dev_entry.doctor.found_model import Fault, ModelFiles
from infer_dev_entry.doctor.gguf import GgufError, GgufHead
from infer_dev_entry.doctor.safetensors import HeaderError

INDEX_NAME = "model.safetensors.index.json"
MAX_ENTRIES = 10_000
MAX_JSON_BYTES = 16 * 1024 * 1024
GGUF_WINDOWS = (4 * 1024 * 1024, 16 * 1024 * 1024, 64 * 1024 * 1024)
HEADERS_BYTES = 128 * 1024 * 1024  # of all shards together
_LFS_BEGIN = b"version https://git-lfs.github.com/spec/"
_POINTER = "is a Git LFS pointer, not the file"
_SMALL = (".json", ".model", ".tiktoken")


@dataclass(slots=True)
class _Found:
    faults: list[Fault] = field(default_factory=list)
    headers_bytes: int = 0


class _FileError(Exception):
    """A file cannot be read as what it should be; the message is a clause."""


def read_model(path: str, *, limit_s: float) -> ModelFiles:
    """Read a model's directory, or its one GGUF file. Never raises: a fault is part of what was found."""
    deadline = time.monotonic() + limit_s
    try:
        info = os.stat(path)
        if not stat.S_ISDIR(info.st_mode):
            return _read_gguf(path)
        with os.scandir(path) as entries:
            names = sorted(entry.name for _, entry in zip(range(MAX_ENTRIES), entries, strict=False))
    except OSError as error:
        return ModelFiles(path=path, problem=error.strerror or str(error))
    return _read_directory(path, names, deadline)


def _read_directory(path: str, names: list[str], deadline: float) -> ModelFiles:
    found = _Found()
    broken = {name: why for name in names if name.endswith(_SMALL) and (why := _small_problem(f"{path}/{name}"))}
    found.faults += [Fault(text=f"{name}: {why}", mend=_mend_of(why)) for name, why in broken.items()]
    readable = set(names) - set(broken)
    config = _read_json(path, "config.json", found) if "config.json" in readable else None
    index = _read_index(path, found) if INDEX_NAME in readable else None
    lying = [name for name in names if name.endswith(".safetensors")]
    shards = list(index) if index else lying
    tensor_bytes = 0
    for number, name in enumerate(shards):
        if time.monotonic() > deadline:
            late = f"{len(shards) - number} of {len(shards)} shards were not looked at: the disk is slow"
            found.faults.append(Fault(text=late, certain=False))
            break
        expected = index.get(name, frozenset()) if index else frozenset()
        tensor_bytes += _read_shard(path, name, expected, found)
    return ModelFiles(
        path=path,
        config=config,
        faults=tuple(found.faults),
        names=tuple(names),
        is_directory=True,
        shards=len(shards),
        has_index=index is not None,
        tensor_bytes=tensor_bytes,
    )


def _read_index(path: str, found: _Found) -> Mapping[str, frozenset[str]] | None:
    try:
        return safetensors.parse_index(_read_small(f"{path}/{INDEX_NAME}", safetensors.MAX_INDEX_BYTES))
    except (_FileError, HeaderError) as error:
        found.faults.append(Fault(text=f"{INDEX_NAME}: {error}", mend="download it again"))
        return None


def _read_shard(path: str, name: str, expected: frozenset[str], found: _Found) -> int:
    """Check one shard by its header and return the bytes of its tensors; 0 with a fault."""
    try:
        header = _read_header(f"{path}/{name}", found)
    except (_FileError, HeaderError) as error:
        found.faults.append(Fault(text=f"{name}: {error}", mend=_mend_of(str(error))))
        return 0
    if header is None:
        found.faults.append(Fault(text=f"{name}: its header is too long to be looked into", certain=False))
        return 0
    lacking = sorted(expected - header.names)
    if lacking:
        text = f"{name}: lacks {len(lacking)} tensors that the index names, such as {lacking[0][:80]}"
        found.faults.append(Fault(text=text, mend="index and shards are of different downloads; download both again"))
    return header.tensor_bytes


def _read_header(path: str, found: _Found) -> safetensors.Header | None:
    with _open_regular(path) as (descriptor, file_bytes):
        prefix = os.pread(descriptor, len(_LFS_BEGIN), 0)
        if prefix == _LFS_BEGIN:
            raise _FileError(_POINTER)
        length = safetensors.parse_length(prefix, file_bytes)
        found.headers_bytes += length
        if length > safetensors.READ_HEADER_BYTES or found.headers_bytes > HEADERS_BYTES:
            return None
        text = os.pread(descriptor, length, safetensors.LENGTH_BYTES)
    return safetensors.parse_header(text, file_bytes)


def _read_gguf(path: str) -> ModelFiles:
    name = os.path.basename(path)
    try:
        with _open_regular(path) as (descriptor, file_bytes):
            if os.pread(descriptor, len(_LFS_BEGIN), 0) == _LFS_BEGIN:
                raise _FileError(_POINTER)
            head = _read_head(descriptor, file_bytes)
    except (_FileError, GgufError) as error:
        fault = Fault(text=f"{name}: {error}", mend=_mend_of(str(error)))
        return ModelFiles(path=path, faults=(fault,))
    if head is None:
        late = Fault(text=f"{name}: its head is longer than {GGUF_WINDOWS[-1]} bytes", certain=False)
        return ModelFiles(path=path, faults=(late,), file_bytes=file_bytes)
    return ModelFiles(path=path, head=head, file_bytes=file_bytes, faults=_split_faults(path))


def _read_head(descriptor: int, file_bytes: int) -> GgufHead | None:
    """Parse the head from as few bytes as it takes; None where that is too many. No memory map: a disk's error in one
    is a SIGBUS."""
    for window in GGUF_WINDOWS:
        try:
            return gguf.parse_gguf(os.pread(descriptor, window, 0), file_bytes)
        except gguf.ShortError:
            if window >= file_bytes:
                raise
    return None


def _split_faults(path: str) -> tuple[Fault, ...]:
    """Name the parts of a split GGUF (`…-00001-of-00003.gguf`) that are not there; llama.cpp opens them by itself."""
    stem, of, last = path.removesuffix(".gguf").rpartition("-of-")
    head, dash, first = stem.rpartition("-")
    if not (of and dash and len(last) == len(first) == 5 and last.isdecimal() and first.isdecimal()):
        return ()
    parts = [f"{head}-{number:05d}-of-{last}.gguf" for number in range(1, min(int(last), MAX_ENTRIES) + 1)]
    missing = [os.path.basename(part) for part in parts if not os.path.isfile(part)]
    if not missing:
        return ()
    return (Fault(text=f"{len(missing)} of {int(last)} parts are missing, such as {missing[0]}", mend="download them"),)


def _read_json(path: str, name: str, found: _Found) -> Mapping[str, Any] | None:
    try:
        data = json.loads(_read_small(f"{path}/{name}", MAX_JSON_BYTES))
        if isinstance(data, dict):
            return data
        reason = "is no JSON object"
    except _FileError as error:
        reason = str(error)
    except (ValueError, RecursionError):
        reason = "is no JSON"
    found.faults.append(Fault(text=f"{name}: {reason}", mend="download it again"))
    return None


def _small_problem(path: str) -> str:
    """Say why a JSON file or vocabulary cannot be what its name says, from its first bytes; "" when it may be."""
    try:
        with _open_regular(path) as (descriptor, file_bytes):
            if not file_bytes:
                return "is empty"
            return _POINTER if os.pread(descriptor, len(_LFS_BEGIN), 0) == _LFS_BEGIN else ""
    except _FileError as error:
        return str(error)


def _mend_of(clause: str) -> str:
    return "run git lfs pull in that directory" if clause == _POINTER else "download it again"


def _read_small(path: str, limit_bytes: int) -> bytes:
    with _open_regular(path) as (descriptor, file_bytes):
        if file_bytes > limit_bytes:
            raise _FileError(f"is {file_bytes} bytes large, and more than {limit_bytes} are not read")
        return os.pread(descriptor, file_bytes, 0)


@contextlib.contextmanager
def _open_regular(path: str) -> Iterator[tuple[int, int]]:
    """Open a file that is one: a FIFO or device in its place must not hang the reader. Links are followed, as
    model caches consist of them.

    Raises:
        _FileError: it is missing, unreadable or something else.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: opening a device can act
            raise _FileError("is no regular file")
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        link = " (a link that leads nowhere)" if os.path.islink(path) and not os.path.exists(path) else ""
        raise _FileError(f"cannot be read: {getattr(error, 'strerror', None) or error}{link}") from error
    try:
        yield descriptor, os.fstat(descriptor).st_size
    except OSError as error:
        raise _FileError(f"cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)
