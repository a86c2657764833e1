"""A lock file that containers share: the kernel's flock, waiting for whoever has it, and who that is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable

_POLL_S = 0.2
_NOTE_S = 5.0


class NoFlockError(OSError):
    """The filesystem has no flock."""


def open_lock(path: str) -> int:
    """Open a lock file, which is made if need be and stays, as whoever waits has it open; return its descriptor.

    Raises:
        OSError: it cannot be made or opened.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except PermissionError:  # another user's, which can be locked all the same
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def take_lock(handle: int, timeout_s: float, on_wait: Callable[[str, float], None]) -> None:
    """Wait for the lock, and sign it. The kernel drops it with the process, however that ends.

    `on_wait` is told who has it and how many seconds we have waited: at once, and every few seconds.

    Raises:
        TimeoutError: it was not free in time; the message is who has it.
        NoFlockError: it cannot be locked.
    """
    began = time.monotonic()
    noted = began - _NOTE_S
    while not _try(handle):
        now = time.monotonic()
        if now - began > timeout_s:
            raise TimeoutError(lock_holder(handle))
        if now - noted >= _NOTE_S:
            noted = now
            on_wait(lock_holder(handle), now - began)
        time.sleep(_POLL_S)
    _sign(handle)


def _try(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise NoFlockError(error.errno, f"{error.strerror}; its filesystem has no flock") from error
    return True


def _sign(handle: int) -> None:
    """Write who we are for those who wait; pids repeat between containers, so the host's name is there too."""
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since_unix": int(time.time())})
    with contextlib.suppress(OSError):  # a lock file of another user can be locked but not written
        os.ftruncate(handle, 0)
        os.pwrite(handle, text.encode(), 0)


def lock_holder(handle: int) -> str:
    """Return who signed the lock file, for a message."""
    try:
        data = json.loads(os.pread(handle, 1024, 0))
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(int(data["since_unix"])))
        return f"pid {int(data['pid'])} on {str(data['host'])[:64]!r} since {since}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process"
