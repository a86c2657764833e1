"""The end of an install that nothing waits for at first: delete the leftovers, write the rest to the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.disk import Sync
from infer_dev_entry.install.model import Progress
from infer_dev_entry.install.store import Store

SWEEP_TIMEOUT_S = 1800.0

_TICK_S = 0.1


class Settling:
    """Empties staging, then begins to sync, in a thread beside the verification. Use it as a context manager.

    In this order, as the disk shall not be asked to take what is deleted a moment later.
    """

    def __init__(self, store: Store, begin_sync: Callable[[], Sync]) -> None:
        self._store = store
        self._begin_sync = begin_sync
        self._sync: Sync | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="settling", daemon=True)

    def __enter__(self) -> Settling:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        """On an error wait for the thread, so that nobody deletes beside it. A signal's exception leaves it behind."""
        if kind is not None and issubclass(kind, Exception):
            self._thread.join(SWEEP_TIMEOUT_S)

    def finish(self, progress: Progress) -> None:
        """Wait until nothing is left in staging, and all that was written before this call is on the disk.

        Raises:
            InstallError: something cannot be deleted, or the disk failed.
        """
        deadline = time.monotonic() + SWEEP_TIMEOUT_S
        while self._thread.is_alive():
            if time.monotonic() > deadline:
                raise InstallError(
                    f"cannot delete {self._store.staging_dir}: not done after {SWEEP_TIMEOUT_S:g} s; check the disk"
                )
            self._thread.join(_TICK_S)
            progress.advance(0)
        if self._error is not None:
            raise self._error
        assert self._sync is not None
        self._sync.finish(progress)

    def _run(self) -> None:
        try:
            self._store.sweep()
            self._sync = self._begin_sync()
        except BaseException as error:
            self._error = error
