"""Read a bundle's file once, from start to end: hashed, counted, and refused when it changes meanwhile."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator

from infer_dev_entry.bundle.decode import CHUNK_BYTES, DECODERS, TAR, detect_container
from infer_dev_entry.bundle.hashing import BackgroundHash
from infer_dev_entry.bundle.tar import ChunkReader
from infer_dev_entry.errors import BundleError

# A few hundred bytes of gzip or zstd can say terabytes; wheels and conda packages are compressed and stay near 1.
MAX_RATIO = 200
MIN_BOMB_BYTES = 10 * 1000**3
_QUICK_CHUNK_BYTES = 64 * 1024
_DIGEST = "archive"


class Source:
    """A bundle's file, open for one pass. Use it as a context manager; `size_bytes` is the file's."""

    def __init__(self, path: str, *, on_read: Callable[[int], None] | None = None, hashing: bool = True) -> None:
        """`on_read` is told of every chunk's size.

        Raises:
            BundleError: there is no such file, or it is not one that can be read as a bundle.
        """
        self._path = path
        self._on_read = on_read
        self._read_bytes = 0
        self._fd = _open_file(path)
        try:
            self._before = os.fstat(self._fd)
            self.size_bytes = self._before.st_size
            self.container = detect_container(_read_at_start(self._fd))
        except BaseException:
            os.close(self._fd)
            raise
        self._digest = BackgroundHash("bundle-sha256") if hashing else None

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._digest is not None:
            self._digest.abandon()
        os.close(self._fd)

    def open_tar(self) -> ChunkReader:
        """Return the stream of the tar inside. Without hashing, skipping data of an uncompressed tar costs nothing."""
        if self._digest is None and self.container == TAR:
            return ChunkReader(self._read_chunks(_QUICK_CHUNK_BYTES), seek=self._seek)
        chunks = DECODERS[self.container](self._read_chunks(CHUNK_BYTES))
        return ChunkReader(self._limit_growth(chunks))

    def read_all(self) -> None:
        """Take the whole file, for its digest."""
        for _ in self._read_chunks(CHUNK_BYTES):
            pass

    def finish(self) -> str:
        """Return the file's sha256 ("" without hashing), once everything was read.

        Raises:
            BundleError: the file changed while it was read.
        """
        try:
            after = (os.fstat(self._fd), os.stat(self._path))
        except OSError as error:
            raise _unreadable(error) from error
        unread = self._digest is not None and self._read_bytes != self.size_bytes
        if unread or any(_identity(found) != _identity(self._before) for found in after):
            raise BundleError("it changed while it was read; wait until it is copied completely, then try again")
        if self._digest is None:
            return ""
        self._digest.end(_DIGEST)
        return self._digest.finish()[_DIGEST]

    def _read_chunks(self, size: int) -> Iterator[bytes]:
        while chunk := self._read(size):
            self._read_bytes += len(chunk)
            if self._digest is not None:
                self._digest.update(chunk)
            if self._on_read is not None:
                self._on_read(len(chunk))
            yield chunk

    def _read(self, size: int) -> bytes:
        try:
            return os.read(self._fd, size)
        except OSError as error:
            raise _unreadable(error) from error

    def _seek(self, size: int) -> None:
        os.lseek(self._fd, size, os.SEEK_CUR)

    def _limit_growth(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        produced = 0
        for chunk in chunks:
            produced += len(chunk)
            if produced > max(MIN_BOMB_BYTES, MAX_RATIO * self._read_bytes):
                raise BundleError(
                    f"it unpacks to more than {MAX_RATIO} times its size, as only a decompression bomb does; "
                    "get it anew from where it was built"
                )
            yield chunk


def _open_file(path: str) -> int:
    try:
        # Non-blocking, as a FIFO would wait for a writer.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _unreadable(error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BundleError("it is neither a file nor a directory; give the path of a bundle")
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return fd


def _read_at_start(fd: int) -> bytes:
    try:
        return os.pread(fd, 512, 0)
    except OSError as error:
        raise _unreadable(error) from error


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unreadable(error: Exception) -> BundleError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return BundleError(
        f"it cannot be read: {reason}; check AUTO_INFER_SGLANG_BUNDLE_PATH, the mount and its permissions"
    )
