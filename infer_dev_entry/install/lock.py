"""The install lock: one installer a workspace, also across containers, and a message that says who holds it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from infer_dev_entry.errors import InstallError
from infer_dev_entry.file_lock import NoFlockError, open_lock, take_lock
from infer_dev_entry.install.model import Progress
from infer_dev_entry.install.store import explain_os_error

LOCK_NAME = ".install.lock"
# An install of the largest bundle on the slowest disk seen ends well within this.
LOCK_TIMEOUT_S = 7200.0


class LockRefusedError(InstallError):
    """The workspace does not take a lock file: it is read-only, or another user's."""


@contextlib.contextmanager
def install_lock(project_dir: str, progress: Progress, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock of a project directory, which is made if need be; wait for whoever has it.

    Tools die with the installer, so none outlives the lock.

    Raises:
        LockRefusedError: the lock file cannot be made.
        InstallError: it was not free in time.
    """

    def note(holder: str, waited_s: float) -> None:
        progress.note(f"waiting for another install of {project_dir}: {holder} ({waited_s:.0f} s so far)")

    what = f"cannot lock project directory {project_dir}"
    handle = _open(project_dir)
    try:
        try:
            take_lock(handle, timeout_s, note)
        except TimeoutError as error:
            raise InstallError(
                f"{what}: {error} has held it for over {timeout_s:g} s; end that install, or use another "
                "AUTO_INFER_SGLANG_PIXI_PROJECT_DIR"
            ) from error
        except NoFlockError as error:
            raise LockRefusedError(f"{what}: {error.strerror}") from error
        yield
    finally:
        os.close(handle)


def _open(project_dir: str) -> int:
    try:
        os.makedirs(project_dir, exist_ok=True)
        # The directory is what will be written, so it decides, also where a lock file of another user is there already.
        if not os.access(project_dir, os.W_OK | os.X_OK):
            number = errno.EROFS if os.statvfs(project_dir).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(number, os.strerror(number), project_dir)
        return open_lock(f"{project_dir}/{LOCK_NAME}")
    except OSError as error:
        raise LockRefusedError(f"cannot lock project directory {project_dir}: {explain_os_error(error)}") from error
