"""Read what /proc shows of a process to its own user alone, also as the root of a container.

A container's root has no CAP_SYS_PTRACE, so another user's `environ` and `fd` are closed to it. The kernel compares
filesystem ids there (ptrace(2), PTRACE_MODE_FSCREDS), and those root may borrow; its real and effective ids stay.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from infer_dev_entry.settings import MARK_VARIABLE

T = TypeVar("T")

PROC = Path("/proc")
_MARK = MARK_VARIABLE.encode()
_MAX_ANCESTORS = 64

_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


def read_as_owner(process: Path, read: Callable[[], T]) -> T:
    """Return what `read` returns, once more with the ids of the process's owner when we as root are refused.

    Raises:
        OSError: the process is gone, or closed to its owner as well.
    """
    try:
        return read()
    except PermissionError:
        owner = process.stat()
        if os.geteuid() != 0 or owner.st_uid == 0:
            raise
    with _filesystem_ids(owner.st_uid, owner.st_gid):
        return read()


def read_mark(process: Path) -> str:
    """Return the mark `<fleet>/<server>` in a process's environment; "" when there is none, or none can be read.

    A process that rewrote its title (setproctitle) has lost its environment; see `marks_above`.
    """
    with contextlib.suppress(OSError):
        for item in read_as_owner(process, (process / "environ").read_bytes).split(b"\0"):
            name, _, value = item.partition(b"=")
            if name == _MARK:
                return value.decode(errors="replace")
    return ""


def marks_above(pid: int, proc: Path = PROC) -> Iterator[str]:
    """Yield the marks of a process and of those above it, as far as they have one."""
    for _ in range(_MAX_ANCESTORS):
        if pid <= 1:
            return
        process = proc / str(pid)
        if mark := read_mark(process):
            yield mark
        pid = _read_parent(process)


def _read_parent(process: Path) -> int:
    """Return the parent's pid, or 0 when the process is gone."""
    try:
        return int((process / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def read_links(process: Path) -> list[str]:
    """Return what the open files of a process are.

    Raises:
        OSError: the process is gone, or closed to us.
    """
    return read_as_owner(process, lambda: list(_links(process)))


def _links(process: Path) -> Iterator[str]:
    for entry in os.scandir(process / "fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield os.readlink(entry)


@contextlib.contextmanager
def _filesystem_ids(uid: int, gid: int) -> Iterator[None]:
    """Have these filesystem ids in this thread alone: never await in here.

    The change makes a process undumpable (proc(5)), which would close our own /proc entries to `docker exec`.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    dumpable = libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    old_gid = libc.setfsgid(gid)
    old_uid = libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(old_uid)
        libc.setfsgid(old_gid)
        if dumpable == 1:  # 2 cannot be set by hand (prctl(2))
            libc.prctl(_PR_SET_DUMPABLE, dumpable, 0, 0, 0)
