"""The content of model files: digests, a file that grows piece by piece, and whether files are still what they were."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from typing import Any

from infer_dev_entry.models.listing import GIT_SHA1, RemoteFile
from infer_dev_entry.models.record import KeptFile, ModelRecord
from infer_dev_entry.regular_file import open_regular

_READ_BYTES = 4 * 1024 * 1024


def new_hash(file: RemoteFile) -> Any:
    """Return the hash object that makes the digest of that file's kind."""
    if file.algorithm == GIT_SHA1:  # git's name of a blob: a header, then the content
        return hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    return hashlib.sha256()


def digest_matches(file: RemoteFile, digest: str) -> bool:
    """Say whether the digest is the listed one; where the hub lists none, the size has to do."""
    return not file.digest or digest == file.digest


class GrowingFile:
    """A file that is written from its end on, and hashed as it grows; what lies there already is read once."""

    def __init__(self, path: str, file: RemoteFile, advance: Callable[[int], None]) -> None:
        """Open or make it. `advance` is told what is read of an earlier run's.

        Raises:
            OSError: it cannot be opened or read.
        """
        self._file = file
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._handle = os.open(path, flags, 0o644)
        self.size = 0
        self._hash = new_hash(file)
        try:
            self._take_up(advance)
        except BaseException:
            os.close(self._handle)
            raise

    def _take_up(self, advance: Callable[[int], None]) -> None:
        there = os.fstat(self._handle).st_size
        if there > self._file.size or not self._file.digest:  # without a digest nothing proves that it is the same file
            self.restart()
        while piece := os.read(self._handle, _READ_BYTES):
            self._hash.update(piece)
            self.size += len(piece)
            advance(len(piece))

    def write(self, piece: bytes) -> None:
        """Append.

        Raises:
            OSError: the disk is full, or fails.
        """
        view = memoryview(piece)
        while view:
            written = os.write(self._handle, view)
            self._hash.update(view[:written])
            self.size += written
            view = view[written:]

    def restart(self) -> None:
        """Begin anew with an empty file."""
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        self.size = 0
        self._hash = new_hash(self._file)

    def digest(self) -> str:
        """Return the digest of all that is in it, in hex."""
        return str(self._hash.hexdigest())

    def sync(self) -> int:
        """Have it on the disk, and return its mtime in nanoseconds."""
        os.fsync(self._handle)
        return os.fstat(self._handle).st_mtime_ns

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def hash_file(path: str, file: RemoteFile, advance: Callable[[int], None]) -> str:
    """Return the digest of a file's content.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    handle = open_regular(path)
    try:
        hashed = new_hash(file)
        while piece := os.read(handle, _READ_BYTES):
            hashed.update(piece)
            advance(len(piece))
        return str(hashed.hexdigest())
    finally:
        os.close(handle)


def lies_as_kept(folder: str, kept: KeptFile, *, follow: bool = False) -> bool:
    """Say whether a file has the size and mtime that it had when its digest was checked; `follow` allows links."""
    try:
        seen = os.stat(f"{folder}/{kept.remote.path}", follow_symlinks=follow)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(seen.st_mode) and seen.st_size == kept.remote.size and seen.st_mtime_ns == kept.mtime_ns


def is_as_recorded(folder: str, record: ModelRecord) -> bool:
    """Say whether every file of a record lies there as it did; one stat a file, nothing is read.

    A directory that was taken over may hold links: a snapshot of huggingface_hub's cache has no other files.
    """
    return all(lies_as_kept(folder, kept, follow=True) for kept in record.files)


def file_fault(folder: str, file: RemoteFile, advance: Callable[[int], None]) -> str:
    """Read one file whole and say what is wrong with it, or ""."""
    path = f"{folder}/{file.path}"
    try:
        size = os.stat(path).st_size
        if size != file.size:
            advance(file.size)
            return f"{file.path}: has {size} bytes, and should have {file.size}"
        digest = hash_file(path, file, advance)
    except (OSError, ValueError) as error:
        return f"{file.path}: {getattr(error, 'strerror', None) or error}"
    if not digest_matches(file, digest):
        return f"{file.path}: its {file.algorithm} is {digest}, and should be {file.digest}"
    return ""
