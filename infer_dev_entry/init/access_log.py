"""The log of requests that a gateway writes itself: made for its user, and rotated by us, as supervisord rotates ours.

It cannot go to the gateway's stdout: that is a pipe of root's supervisord, which another user may write but not open.
"""

from __future__ import annotations

import contextlib
import os
import stat

from infer_dev_entry.init.owner import Owner


class AccessLog:
    """Makes and rotates a log; blocks on its file system."""

    def __init__(self, owner: Owner | None) -> None:
        self._owner = owner

    def make(self, path: str) -> None:
        """Make the log where there is none, for the gateway's user to write.

        Raises:
            OSError: it cannot be made, or is no file.
        """
        if not path:
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        handle = os.open(path, flags, 0o640)
        try:
            info = os.fstat(handle)
            if not stat.S_ISREG(info.st_mode):
                raise OSError(f"{path} is not a file")
            if self._owner is not None and info.st_uid == os.geteuid():
                os.fchown(handle, self._owner.uid, self._owner.gid)
        finally:
            os.close(handle)

    def rotate(self, path: str, max_bytes: int, backups: int) -> bool:
        """Rotate a log of `max_bytes` or more (0: never); True when the gateway must open it anew."""
        if not path or not max_bytes:
            return False
        try:
            if os.stat(path).st_size < max_bytes:
                return False
        except FileNotFoundError:  # somebody has moved it; nginx still writes to where it went
            self.make(path)
            return True
        for number in range(backups - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{path}.{number}", f"{path}.{number + 1}")
        if backups:
            os.replace(path, f"{path}.1")
        else:
            os.unlink(path)
        self.make(path)
        return True
