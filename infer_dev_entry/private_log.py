"""Logs that hold keys, closed to other users: PID 1 makes such a file, and supervisord keeps it closed when it rotates.

SGLang prints its keys at each start. supervisord has no mode for its logs: it opens every file anew as 0644.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Any


def close_log(path: str, gid: int | None) -> str:
    """Make a log, or one that is there, readable for us alone, and for the servers' group where they run as `gid`.

    It stays ours: in a sticky directory such as /tmp, root may not append to another's file (fs.protected_regular in
    sysctl/fs(5)). Returns why the log is still open to others, or "".
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o600)
    except OSError as error:
        return error.strerror or str(error)
    try:
        info = os.fstat(handle)
        # Whoever may write to the directory may have put a link to another file of ours there.
        if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1 or info.st_uid != os.geteuid():
            return "it is no file of ours"
        os.fchmod(handle, 0o600)
        if gid is not None:
            os.fchown(handle, -1, gid)
            os.fchmod(handle, 0o640)
    except OSError as error:
        return error.strerror or str(error)
    finally:
        os.close(handle)
    return ""


def log_file_problem(path: str) -> str | None:
    """Say why a path that is there cannot be a log file, or None.

    To open a FIFO that nobody reads is to wait, and supervisord would do so for all its servers: anybody may make one
    in /tmp. Those in /dev and /proc are standard streams.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if stat.S_ISDIR(mode):
        return "is a directory"
    return "is a FIFO" if stat.S_ISFIFO(mode) and not path.startswith(("/dev/", "/proc/")) else None


class ClosedLogs:
    """Opens files as `open` does; one that was found closed to others stays so, with its group, when it is made anew.

    Takes the place of `open` in supervisor.loggers, which opens a log at each start, rotation and clearing.
    """

    def __init__(self, open_file: Callable[..., IO[Any]] = open) -> None:
        self._open = open_file
        self._closed: dict[str, os.stat_result] = {}

    def __call__(self, path: str, mode: str) -> IO[Any]:
        """Open a file.

        Raises:
            OSError: as `open`, or it is a FIFO.
        """
        problem = log_file_problem(path)
        if problem:
            raise OSError(errno.EINVAL, problem, path)
        with suppress(OSError):
            info = os.stat(path)
            if stat.S_ISREG(info.st_mode) and not info.st_mode & stat.S_IRWXO:
                self._closed[path] = info
        known = self._closed.get(path)
        if known is None:
            return self._open(path, mode)
        before = os.umask(0o077)
        try:
            file = self._open(path, mode)
        finally:
            os.umask(before)
        with suppress(OSError):
            os.fchown(file.fileno(), -1, known.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(known.st_mode))
        return file
