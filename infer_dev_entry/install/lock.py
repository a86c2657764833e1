"""The install lock: one installer a workspace, also across containers, and a message that says who holds it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.model import Progress
from infer_dev_entry.install.store import explain_os_error

LOCK_NAME = ".install.lock"
# An install of the largest bundle on the slowest disk seen ends well within this.
LOCK_TIMEOUT_S = 7200.0

_POLL_S = 0.2
_NOTE_S = 5.0


class LockRefusedError(InstallError):
    """The workspace does not take a lock file: it is read-only, or another user's."""


@contextlib.contextmanager
def install_lock(project_dir: str, progress: Progress, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock of a project directory, which is made if need be; wait for whoever has it.

    The kernel drops it with the process, however that ends. Tools die with the installer, so none outlives the lock.

    Raises:
        LockRefusedError: the lock file cannot be made.
        InstallError: it was not free in time.
    """
    handle = _open(project_dir)
    try:
        _wait(handle, project_dir, progress, timeout_s)
        sign_lock(handle)
        yield
    finally:
        os.close(handle)


def _open(project_dir: str) -> int:
    path = f"{project_dir}/{LOCK_NAME}"
    try:
        os.makedirs(project_dir, exist_ok=True)
        # The directory is what will be written, so it decides, also where a lock file of another user is there already.
        if not os.access(project_dir, os.W_OK | os.X_OK):
            number = errno.EROFS if os.statvfs(project_dir).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number), project_dir)
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except PermissionError:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise LockRefusedError(f"cannot lock project directory {project_dir}: {explain_os_error(error)}") from error


def _wait(handle: int, project_dir: str, progress: Progress, timeout_s: float) -> None:
    began = time.monotonic()
    noted = began - _NOTE_S
    while not _try(handle, project_dir):
        now = time.monotonic()
        if now - began > timeout_s:
            raise InstallError(
                f"cannot lock project directory {project_dir}: {lock_holder(handle)} has held it for over "
                f"{timeout_s:g} s; end that install, or use another AUTO_INFER_SGLANG_PIXI_PROJECT_DIR"
            )
        if now - noted >= _NOTE_S:
            noted = now
            progress.note(
                f"waiting for another install of {project_dir}: {lock_holder(handle)} ({now - began:.0f} s so far)"
            )
        time.sleep(_POLL_S)


def _try(handle: int, project_dir: str) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise LockRefusedError(
            f"cannot lock project directory {project_dir}: {error.strerror}; its filesystem has no flock"
        ) from error
    return True


def sign_lock(handle: int) -> None:
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
