"""The lock of one model's directory: one download at a time, also across containers."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from infer_dev_entry.errors import ModelError
from infer_dev_entry.file_lock import NoFlockError, open_lock, take_lock
from infer_dev_entry.models.place import Place, explained
from infer_dev_entry.models.progress import ModelProgress

# Another container's download of the same: as long as the boot stage itself may take.
LOCK_TIMEOUT_S = 24 * 3600.0


@contextlib.contextmanager
def model_lock(place: Place, progress: ModelProgress) -> Iterator[None]:
    """Hold the lock of one model's directory; wait for whoever has it, also in another container, and say so.

    Raises:
        ModelError: the lock file cannot be made, or was not free in time.
    """
    what = f"cannot lock {place.target}"
    with explained(what):
        os.makedirs(place.parent, exist_ok=True)
        handle = _open(place.lock)
    if handle is None:
        yield
        return
    try:
        try:
            take_lock(handle, LOCK_TIMEOUT_S, lambda holder, _: progress.note(_describe(place, holder)))
        except TimeoutError as error:
            raise ModelError(
                f"{what}: {error} has downloaded it for over {LOCK_TIMEOUT_S:g} s; end that download, or use another "
                "directory"
            ) from error
        except NoFlockError as error:
            raise ModelError(f"{what}: {error.strerror}") from error
        yield
    finally:
        os.close(handle)


def _describe(place: Place, holder: str) -> str:
    return f"waiting for another download of {place.target}: {holder}"


def _open(path: str) -> int | None:
    """Open the lock file; None on a read-only volume without one, where nothing can be changed under us from here."""
    try:
        return open_lock(path)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
