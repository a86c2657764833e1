"""Open files in places that others may write to: a FIFO or device in a file's place must not hang its reader."""

from __future__ import annotations

import errno
import os
import stat


def open_regular(path: str, *, follow: bool = True) -> int:
    """Open a regular file for reading and return its descriptor; `follow` allows a link in its place.

    Raises:
        OSError: it cannot be opened, or is something else.
        ValueError: the path holds a NUL.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    handle = os.open(path, flags if follow else flags | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a file", path)
    return handle


def read_regular(path: str, limit: int, *, follow: bool = True) -> tuple[bytes, os.stat_result]:
    """Return at most `limit` bytes from the beginning of a regular file, and what it was then.

    Raises:
        OSError: it cannot be read, or is something else.
        ValueError: the path holds a NUL.
    """
    with open(open_regular(path, follow=follow), "rb") as file:
        return file.read(limit), os.fstat(file.fileno())
