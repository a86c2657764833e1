"""Fetch files of a commit into staging, several at once: resumed where they were cut, and proved before they count."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence

from infer_dev_entry.errors import ModelError
from infer_dev_entry.models.content import GrowingFile, digest_matches
from infer_dev_entry.models.hub import Hub, HubError
from infer_dev_entry.models.listing import RemoteFile
from infer_dev_entry.models.place import explain_model_os_error
from infer_dev_entry.models.retry import PROGRESS_BYTES, Patience
from infer_dev_entry.models.staging import Staging
from infer_dev_entry.models.wish import ModelWish

WORKERS = 8
MAX_MISMATCHES = 2  # of one file, each fetched from its first byte
_TICK_S = 0.1
_JOIN_S = 1.0


class _StoppedError(Exception):
    """Another file failed, or the process is told to end."""


class _WrongContentError(Exception):
    """The bytes are not those that the hub lists; the message is a clause."""


class Fetcher:
    """Fetches the files of one commit."""

    def __init__(self, hub: Hub, wish: ModelWish, commit: str, staging: Staging) -> None:
        self._hub = hub
        self._wish = wish
        self._commit = commit
        self._staging = staging
        self._stop = threading.Event()
        self._jobs: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        self._errors: list[BaseException] = []
        self._notes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._came = 0  # bytes, fetched or read of an earlier run's; takes back what turned out wrong
        self._counting = threading.Lock()

    def fetch(self, files: Sequence[RemoteFile], advance: Callable[[int], None], note: Callable[[str], None]) -> None:
        """Fetch all files, the largest first. Both callbacks are called by this thread alone.

        Raises:
            ModelError: a file cannot be fetched; what came of all of them is kept.
        """
        for file in sorted(files, key=lambda file: -file.size):
            self._jobs.put(file)
        workers = [
            threading.Thread(target=self._work, name=f"fetch-{number}", daemon=True)
            for number in range(min(WORKERS, len(files)))
        ]
        for worker in workers:
            worker.start()
        told = 0
        try:
            while any(worker.is_alive() for worker in workers) and not self._errors:
                time.sleep(_TICK_S)  # a signal's exception comes out here
                told = self._tell(told, advance, note)
        finally:
            self._stop.set()
            deadline = time.monotonic() + _JOIN_S
            for worker in workers:
                worker.join(max(0.0, deadline - time.monotonic()))
        self._tell(told, advance, note)
        if self._errors:
            raise self._errors[0]

    def _tell(self, told: int, advance: Callable[[int], None], note: Callable[[str], None]) -> int:
        while not self._notes.empty():
            note(self._notes.get())
        came = self._came
        advance(came - told)
        return came

    def _count(self, amount: int) -> None:
        with self._counting:
            self._came += amount

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self._fetch_one(self._jobs.get_nowait())
        except (queue.Empty, _StoppedError):
            return
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()

    def _fetch_one(self, file: RemoteFile) -> None:
        try:
            for left in reversed(range(MAX_MISMATCHES)):
                try:
                    mtime_ns = self._grow(file)
                    break
                except _WrongContentError as error:
                    if not left:
                        raise ModelError(
                            f"cannot download {file.path} of {self._wish.shown}: {error}; the hub, a proxy or a mirror "
                            "changes it: try again later, or with another endpoint"
                        ) from error
                    self._notes.put(f"{file.path}: {error}; fetching it again")
            self._staging.settle(file, mtime_ns)
        except OSError as error:
            raise ModelError(
                f"cannot write {file.path} of {self._wish.shown}: {explain_model_os_error(error)}"
            ) from error

    def _grow(self, file: RemoteFile) -> int:
        """Fetch what lacks of one file, and return its mtime when its content is proved.

        Raises:
            ModelError: the hub fails too often in a row.
        """
        part = GrowingFile(self._staging.part(file), file, self._count_or_stop)
        patience = Patience(self._wish, file.path)
        try:
            while part.size < file.size:
                before = part.size
                try:
                    self._read_stream(part, file)
                except HubError as trouble:
                    self._pause(trouble, patience, file, part, before)
            if not digest_matches(file, part.digest()):
                raise _WrongContentError(f"its {file.algorithm} is {part.digest()}, and the hub lists {file.digest}")
            return part.sync()
        except _WrongContentError:
            self._count(-part.size)
            part.restart()
            raise
        finally:
            part.close()

    def _count_or_stop(self, amount: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
        self._count(amount)

    def _read_stream(self, part: GrowingFile, file: RemoteFile) -> None:
        with self._hub.open_file(self._wish, self._commit, file.path, part.size) as stream:
            if stream.total is not None and stream.total != file.size:
                raise _WrongContentError(f"the hub sends {stream.total} bytes, and lists {file.size}")
            if stream.offset != part.size:
                self._begin_again(part, stream.offset)
            for piece in stream.pieces:
                if part.size + len(piece) > file.size:
                    raise _WrongContentError(f"the hub sends more than the {file.size} bytes that it lists")
                self._count_or_stop(len(piece))
                part.write(piece)
        if part.size < file.size:
            raise HubError("connection", f"the answer ended after {part.size} of {file.size} bytes")

    def _begin_again(self, part: GrowingFile, offset: int) -> None:
        """A hub, or a proxy, that does not heed ranges sends all from the first byte."""
        self._count(-part.size)
        part.restart()
        if offset:
            raise HubError("range", "another part came than was asked for")

    def _pause(self, trouble: HubError, patience: Patience, file: RemoteFile, part: GrowingFile, before: int) -> None:
        if trouble.kind == "range":
            self._count(-part.size)
            part.restart()
        elif part.size - before >= PROGRESS_BYTES:
            patience.progressed()
        wait_s = patience.wait_s(trouble)
        self._notes.put(f"{file.path}: {trouble}; going on at byte {part.size} in {wait_s:.1f} s")
        if self._stop.wait(wait_s):
            raise _StoppedError
