"""Read the header of a safetensors file and the index of a sharded model, both foreign text. Pure.

A file is 8 bytes of header length (little endian), a JSON header, and the tensors' bytes without holes. So header and
file size alone tell a file that was cut short; no weight is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
READ_HEADER_BYTES = 16 * 1024 * 1024  # a real one has about 100 bytes a tensor; more is not looked into
MAX_INDEX_BYTES = 32 * 1024 * 1024

_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8,
    "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The tensors of one file: their names and the bytes that they take."""

    names: frozenset[str]
    tensor_bytes: int


class HeaderError(ValueError):
    """A header or index cannot be what it should be; the message is a clause such as `the header is no JSON`."""


def parse_length(prefix: bytes, file_bytes: int) -> int:
    """Return the header's length from the first eight bytes.

    Raises:
        HeaderError: there are no eight bytes, or the claim does not fit the file.
    """
    if len(prefix) < LENGTH_BYTES:
        raise HeaderError(f"it has only {file_bytes} bytes")
    length = int.from_bytes(prefix[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"it claims a header of {length} bytes, and the format allows {MAX_HEADER_BYTES}")
    if length + LENGTH_BYTES > file_bytes:
        raise HeaderError(f"it ends inside its header: {file_bytes} of at least {length + LENGTH_BYTES} bytes are here")
    return length


def parse_header(text: bytes, file_bytes: int) -> Header:
    """Return the tensors, once the header agrees with itself and with the file's size.

    Raises:
        HeaderError: it does not.
    """
    table = _parse_table(text, "the header")
    spans = {name: _parse_span(name, entry) for name, entry in table.items() if name != "__metadata__"}
    used = sum(end - start for start, end in spans.values())
    last = max((end for _, end in spans.values()), default=0)
    whole = LENGTH_BYTES + len(text) + last
    if file_bytes < whole:
        raise HeaderError(f"it is cut short: {file_bytes} of {whole} bytes are here")
    if file_bytes > whole:
        raise HeaderError(f"it has {file_bytes - whole} bytes more than its tensors")
    if used != last:
        raise HeaderError("its tensors overlap or leave holes")
    return Header(names=frozenset(spans), tensor_bytes=used)


def _parse_span(name: str, entry: object) -> tuple[int, int]:
    try:
        dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]  # type: ignore[index]
        numbers = [*shape, start, end]
    except (TypeError, KeyError, ValueError):
        raise HeaderError(f"tensor {name[:80]!r} lacks dtype, shape or data_offsets") from None
    # bool is an int to Python, and a million dimensions would make the product below take minutes.
    if len(shape) > 64 or not all(type(number) is int and 0 <= number < 2**63 for number in numbers) or start > end:
        raise HeaderError(f"tensor {name[:80]!r} has an impossible shape or data_offsets")
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None  # newer kinds come; their size is taken on trust
    if bits is not None and math.prod(shape) * bits != (end - start) * 8:
        raise HeaderError(f"tensor {name[:80]!r} is {end - start} bytes, which its shape and dtype are not")
    return start, end


def parse_index(text: bytes) -> Mapping[str, frozenset[str]]:
    """Return file name → the tensors that model.safetensors.index.json says are in it.

    Raises:
        HeaderError: it is no such index, or names a file elsewhere.
    """
    weight_map = _parse_table(text, "the index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise HeaderError("the index has no weight_map")
    files: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not is_plain_name(name):
            raise HeaderError(f"the index names {str(name)[:80]!r}, which is no file of this directory")
        files.setdefault(name, set()).add(tensor)
    return {name: frozenset(tensors) for name, tensors in sorted(files.items())}


def is_plain_name(name: object) -> bool:
    """Say whether this names a file right in a directory."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _parse_table(text: bytes, what: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: also a number of too many digits, and bytes that are not UTF-8
        raise HeaderError(f"{what} is no JSON") from None
    if not isinstance(data, dict):
        raise HeaderError(f"{what} is no JSON object")
    return data
