"""How much a wheel takes once it is installed: the sizes in its zip's directory, and nothing else of it is read.

`zipfile` makes an object of each entry, which for the 40,000 files of a CUDA stack takes a quarter of a second.
"""

from __future__ import annotations

import os
import struct

# The directory of the largest wheel seen, 15,000 files, has 2 MB. Not to be taken into memory unseen.
MAX_DIRECTORY_BYTES = 64 * 1024 * 1024

_BLOCK = 4096
_MAX_COMMENT_BYTES = 0xFFFF
_UNKNOWN = 0xFFFFFFFF  # the number stands in the extra field, in 64 bits
_ZIP64_FIELD = 1

# APPNOTE.TXT 4.3.16: signature; the directory's size; the comment's length.
_END = struct.Struct("<4s8xI4xH")
# 4.3.14: signature; the directory's size.
_END64 = struct.Struct("<4s36xQ8x")
_LOCATOR_BYTES = 20
# 4.3.12: signature; size once unpacked; lengths of name, extra field and comment.
_ENTRY = struct.Struct("<4s20xI3H12x")
_FIELD = struct.Struct("<2H")
_SIZE64 = struct.Struct("<Q")


def read_installed_bytes(path: str) -> int:
    """Return the bytes of a wheel's files, each in whole blocks.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no zip file, or a damaged one.
    """
    with open(path, "rb") as file:
        file_size = os.fstat(file.fileno()).st_size
        tail_at = max(0, file_size - _END.size - _MAX_COMMENT_BYTES)
        file.seek(tail_at)
        size, end = find_directory(file.read())
        if not 0 <= size <= min(tail_at + end, MAX_DIRECTORY_BYTES):
            raise ValueError("its directory is larger than the file, or than any that is known")
        file.seek(tail_at + end - size)
        return sum_sizes(file.read(size))


def find_directory(tail: bytes) -> tuple[int, int]:
    """Return the size of a zip's directory, and where it ends in `tail`, the last bytes of the file.

    Raises:
        ValueError: there is none.
    """
    at = _find_end(tail)
    at64 = at - _LOCATOR_BYTES - _END64.size
    if at64 >= 0 and tail[at - _LOCATOR_BYTES :].startswith(b"PK\6\7"):
        signature, size = _END64.unpack_from(tail, at64)
        if signature != b"PK\6\6":
            raise ValueError("its zip64 end is missing")
        return size, at64
    return _END.unpack_from(tail, at)[1], at


def _find_end(tail: bytes) -> int:
    last = len(tail) - _END.size
    at = tail.rfind(b"PK\5\6", 0, last + 4) if last >= 0 else -1
    if at < 0 or at + _END.size + _END.unpack_from(tail, at)[2] > len(tail):
        raise ValueError("it has no zip directory")
    return at


def sum_sizes(directory: bytes) -> int:
    """Return what the entries of a zip's directory take in whole blocks.

    Raises:
        ValueError: it is damaged.
    """
    total = at = 0
    end = len(directory) - _ENTRY.size
    unpack = _ENTRY.unpack_from
    while at <= end:
        signature, size, name, extra, comment = unpack(directory, at)
        if signature != b"PK\1\2":
            raise ValueError("its zip directory is damaged")
        at += _ENTRY.size + name
        if size == _UNKNOWN:
            size = _find_size64(directory[at : at + extra])
        at += extra + comment
        total += -(-size // _BLOCK) * _BLOCK
    if at != len(directory):
        raise ValueError("its zip directory is damaged")
    return total


def _find_size64(extra: bytes) -> int:
    """Return the size in the zip64 part of an entry's extra field, where it comes first."""
    at = 0
    while at + _FIELD.size <= len(extra):
        kind, length = _FIELD.unpack_from(extra, at)
        at += _FIELD.size
        if kind == _ZIP64_FIELD and length >= _SIZE64.size and at + length <= len(extra):
            return int(_SIZE64.unpack_from(extra, at)[0])
        at += length
    return _UNKNOWN  # a file of just that size
