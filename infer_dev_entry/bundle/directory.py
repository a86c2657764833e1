"""Hash a bundle that is a directory, in place: nothing is copied, nothing may lead out of it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

from infer_dev_entry.bundle.contents import Contents, render_name
from infer_dev_entry.errors import BundleError

_PIECE_BYTES = 1 << 20
# hashlib releases the interpreter's lock; beyond four threads the disk is the limit.
_MAX_THREADS = 4
_REPORT_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file of the directory: its path relative to it, and what must not change while it is read."""

    path: str
    size: int
    mtime_ns: int
    inode: int


def list_directory(root: str) -> tuple[Entry, ...]:
    """Return every file below `root`, sorted by path.

    Raises:
        BundleError: it cannot be read, holds a special file, or a link that leads out of it or to a folder.
    """
    contents = Contents()
    try:
        real_root = os.path.realpath(root, strict=True)
        entries = [_make_entry(contents, real_root, path, entry) for path, entry in _walk(root, "", contents)]
    except OSError as error:
        raise _unreadable(error) from error
    return tuple(sorted(entries, key=lambda entry: entry.path))


def hash_directory(root: str, entries: Iterable[Entry], on_read: Callable[[int], None] | None = None) -> dict[str, str]:
    """Return path → sha256 of the files that `list_directory` found.

    Raises:
        BundleError: one cannot be read, or anything changed since the list was made.
    """
    listed = tuple(entries)
    job = _Job(root)
    pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), "bundle-sha256")
    try:
        futures = [pool.submit(job.hash_file, entry) for entry in listed]
        for future in futures:
            while wait((future,), _REPORT_S).not_done:
                job.report(on_read)
        digests = {entry.path: future.result() for entry, future in zip(listed, futures, strict=True)}
        job.report(on_read)
    finally:
        job.stop()
        pool.shutdown(cancel_futures=True)
    if list_directory(root) != listed:
        raise BundleError("it changed while it was read; wait until it is copied completely, then try again")
    return digests


def digest_of(digests: dict[str, str]) -> str:
    """Return the one digest of a directory: the sha256 of its sorted `path\\0sha256\\n` lines."""
    lines = "".join(f"{path}\0{digests[path]}\n" for path in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def _walk(root: str, folder: str, contents: Contents) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield (relative path, entry) of everything that is no folder; recursion ends where names are too deep."""
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, contents.add_directory(path), contents)
            else:
                yield path, entry


def _make_entry(contents: Contents, real_root: str, name: str, entry: os.DirEntry[str]) -> Entry:
    path = contents.add_file(name)
    found = entry.stat(follow_symlinks=True)
    if entry.is_symlink() and not os.path.realpath(entry.path).startswith(real_root + "/"):
        raise BundleError(f"its member {render_name(path)} is a link that leads out of it; copy the file itself there")
    if not stat.S_ISREG(found.st_mode):
        raise BundleError(f"its member {render_name(path)} is neither a file nor a folder; remove it")
    return Entry(path=path, size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino)


class _Job:
    """What the threads share: the root, what they have read since the last report, and whether to stop."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._read: deque[int] = deque()
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def report(self, on_read: Callable[[int], None] | None) -> None:
        total = 0
        while self._read:
            total += self._read.popleft()
        if total and on_read is not None:
            on_read(total)

    def hash_file(self, entry: Entry) -> str:
        sha256 = hashlib.sha256()
        try:
            with open(os.path.join(self._root, entry.path), "rb", buffering=0, opener=_open_quickly) as file:
                # No further than its size: a file that grows without end must not hold us.
                left = entry.size
                while left and not self._stopped and (piece := file.read(min(left, _PIECE_BYTES))):
                    sha256.update(piece)
                    self._read.append(len(piece))
                    left -= len(piece)
        except OSError as error:
            raise _unreadable(error) from error
        return sha256.hexdigest()


def _open_quickly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO that took the file's place would wait for a writer


def _unreadable(error: OSError) -> BundleError:
    name = f"{render_name(os.fsdecode(error.filename))} in it" if error.filename else "it"
    return BundleError(f"{name} cannot be read: {error.strerror}; check its permissions and the mount")
