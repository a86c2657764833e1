"""A sha256 in a thread of its own, beside the reading and writing of what is hashed; hashlib releases the lock."""

from __future__ import annotations

import hashlib
import queue
import threading

# A piece keeps the chunk alive that it was cut from: so many chunks are held at most.
_QUEUED_PIECES = 4


class BackgroundHash:
    """Hashes one thing after another: feed its pieces, then give it a name.

    The queue is bounded, so that a reader who is faster waits. An error in the thread comes out at the next call here,
    and never leaves the other side waiting: the thread goes on emptying its queue.
    """

    def __init__(self, name: str) -> None:
        """`name` is the thread's, for those who look at a stuck process."""
        self._queue: queue.Queue[bytes | memoryview | str | None] = queue.Queue(maxsize=_QUEUED_PIECES)
        self._sha256 = hashlib.sha256()
        self._digests: dict[str, str] = {}
        self._error: BaseException | None = None
        self._abandoned = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def update(self, piece: bytes | memoryview) -> None:
        """Hash more; the piece may not change from now on."""
        self._require_health()
        self._queue.put(piece)

    def end(self, key: str) -> None:
        """File the digest of all since the last end under `key`."""
        self._require_health()
        self._queue.put(key)

    def finish(self) -> dict[str, str]:
        """Wait for what was fed, and return key → digest."""
        self._close()
        self._require_health()
        return self._digests

    def abandon(self) -> None:
        """End the thread without hashing what still waits; nothing happens after `finish`."""
        self._abandoned = True
        self._close()

    def _close(self) -> None:
        if not self._closed:
            self._queue.put(None)  # once more, after a signal's exception in here, does no harm
            self._thread.join()
            self._closed = True

    def _require_health(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._abandoned or self._error is not None:
                continue
            try:
                self._take(item)
            except BaseException as error:
                self._error = error

    def _take(self, item: bytes | memoryview | str) -> None:
        if isinstance(item, str):
            self._digests[item] = self._sha256.hexdigest()
            self._sha256 = hashlib.sha256()
        else:
            self._sha256.update(item)
