"""Read what one run of a server has logged: from where its log ended when it started, bounded, across a rotation."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass

from infer_dev_entry.regular_file import open_regular

TAIL_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMark:
    """Where a log ended at some moment. `inode` is 0 when there was no file."""

    inode: int
    offset: int


def mark_log(path: str) -> LogMark:
    """Note the end of a log, before its server starts."""
    try:
        info = os.stat(path)
    except OSError:
        return LogMark(inode=0, offset=0)
    return LogMark(inode=info.st_ino, offset=info.st_size)


def rotated_path(path: str) -> str:
    """Return where supervisord moves a log that has become too long."""
    return f"{path}.1"


def read_run(path: str, mark: LogMark | None, limit_bytes: int = TAIL_BYTES) -> str:
    """Return the last `limit_bytes` of what was logged since `mark` (None: whenever); "" when it cannot be read."""
    inode, data = _read_since(path, mark, limit_bytes)
    if mark is not None and inode not in (0, mark.inode) and len(data) < limit_bytes:
        # Rotated meanwhile: the start of the message may be in the file before.
        _, before = _read_since(rotated_path(path), mark, limit_bytes - len(data))
        data = before + data
    return data.decode("utf-8", "replace")


def _read_since(path: str, mark: LogMark | None, limit_bytes: int) -> tuple[int, bytes]:
    """Return a file's inode (0: there is none to read) and the end of what it has beyond `mark`."""
    with suppress(OSError):
        handle = open_regular(path)
        try:
            info = os.fstat(handle)
            same = mark is not None and mark.inode == info.st_ino and mark.offset <= info.st_size
            start = max(mark.offset if mark and same else 0, info.st_size - limit_bytes)
            return info.st_ino, os.pread(handle, info.st_size - start, start)
        finally:
            os.close(handle)
    return 0, b""
