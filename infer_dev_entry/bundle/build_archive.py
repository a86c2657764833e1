"""Write a bundle as a deterministic tar or a directory; a reader sees all of it or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Protocol

from infer_dev_entry.bundle.model import SIDECAR_NAME
from infer_dev_entry.errors import BuildError
from infer_dev_entry.install.model import Progress

COPY_BYTES = 1024 * 1024
# Header and padding of a member, and what a file system keeps back; added to the sum of the sizes.
_SPARE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file of a bundle to be: its path there, and its text, or the file it comes from and that file's sha256."""

    path: str
    text: str = ""
    file: str = ""
    sha256: str = ""

    @property
    def digest(self) -> str:
        """The sha256 of what will be written."""
        return self.sha256 or hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        """The size of what will be written."""
        return os.stat(self.file).st_size if self.file else len(self.text.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltBundle:
    """A bundle that was built: where, its sha256 (see `UnpackedBundle.digest`), its size."""

    path: str
    digest: str
    size_bytes: int


class Writer(Protocol):
    """What a tar needs of the stream that it is written to."""

    def write(self, data: bytes, /) -> int:
        """Write all of it."""


class HashingWriter:
    """A write-only stream that hashes and counts what passes through."""

    def __init__(self, out: Writer) -> None:
        self._out = out
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes, /) -> int:
        """Write all of it."""
        self._hash.update(data)
        self.size_bytes += len(data)
        return self._out.write(data)

    def hexdigest(self) -> str:
        """The sha256 of everything written so far."""
        return self._hash.hexdigest()


class HashingReader:
    """A read-only stream that hashes what passes through and reports it."""

    def __init__(self, source: IO[bytes], progress: Progress) -> None:
        self._source = source
        self._progress = progress
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        data = self._source.read(size)
        self._hash.update(data)
        self._progress.advance(len(data))
        return data

    def hexdigest(self) -> str:
        """The sha256 of everything read so far."""
        return self._hash.hexdigest()


def write_archive(output: str, sources: Sequence[Source], progress: Progress) -> BuiltBundle:
    """Write the tar `output`; every file is hashed on its way in.

    Raises:
        BuildError: it cannot be written, there is no room, or a file has not the hash it should.
    """
    need = sum(source.size_bytes for source in sources)
    progress.stage(f"write {os.path.basename(output)}", need)
    with new_file(output, need) as raw:
        out = HashingWriter(raw)
        # Streaming mode: nothing is rewritten, so that the digest is known when the last byte is.
        with open_writer(out) as tar:
            for source in sources:
                _add(tar, source, progress)
    return BuiltBundle(path=output, digest=out.hexdigest(), size_bytes=out.size_bytes)


def open_writer(out: Writer) -> tarfile.TarFile:
    """Return a tar that is written in one pass."""
    tar = tarfile.TarFile.open(  # type: ignore[call-overload]
        fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=COPY_BYTES
    )
    tar.copybufsize = COPY_BYTES  # 16 KiB otherwise
    assert isinstance(tar, tarfile.TarFile)
    return tar


def _add(tar: tarfile.TarFile, source: Source, progress: Progress) -> None:
    member = tar_member(source.path, source.size_bytes)
    if not source.file:
        tar.addfile(member, BytesIO(source.text.encode()))
        progress.advance(member.size)
        return
    with open(source.file, "rb") as file:
        reader = HashingReader(file, progress)
        tar.addfile(member, reader)
    if reader.hexdigest() != source.sha256:
        raise damaged(source)


def tar_member(path: str, size_bytes: int) -> tarfile.TarInfo:
    """Return the header of a plain file that says nothing of the host: no time, no user, mode 0644."""
    member = tarfile.TarInfo(path)
    member.size = size_bytes
    member.mode = 0o644
    return member


def damaged(source: Source) -> BuildError:
    """Remove a cached file that changed since it was checked, so that a rerun mends it, and return the error."""
    with contextlib.suppress(OSError):
        os.unlink(source.file)
    return BuildError(
        f"cannot use {source.file}: its sha256 is not {source.sha256}; it was removed from the cache, build again"
    )


def write_directory(output: str, sources: Sequence[Source], progress: Progress) -> BuiltBundle:
    """Write the directory `output`, by hard links where the cache allows.

    An old bundle in its place is replaced; any other directory is left alone.

    Raises:
        BuildError: it cannot be written, or something else is in its place.
    """
    fresh = f"{output}.{os.getpid()}.partial"
    progress.stage(f"write {os.path.basename(output)}", sum(source.size_bytes for source in sources))
    try:
        for source in sources:
            _place(fresh, source, progress)
        replace_directory(fresh, output)
    except OSError as error:
        raise write_error(output, error) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    lines = sorted(f"{source.path}\0{source.digest}\n" for source in sources)
    return BuiltBundle(
        path=output,
        digest=hashlib.sha256("".join(lines).encode()).hexdigest(),
        size_bytes=sum(source.size_bytes for source in sources),
    )


def replace_directory(fresh: str, output: str) -> None:
    """Rename the complete directory `fresh` to `output`, in place of an old bundle if there is one.

    Raises:
        BuildError: something else is there.
    """
    if os.path.lexists(output):
        if not _replaceable(output):
            raise BuildError(f"cannot write {output}: it exists and is no bundle; remove it or choose another -o")
        shutil.rmtree(output)
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    shutil.move(fresh, output)


def _replaceable(path: str) -> bool:
    return os.path.isdir(path) and (not os.listdir(path) or os.path.isfile(os.path.join(path, SIDECAR_NAME)))


def _place(folder: str, source: Source, progress: Progress) -> None:
    target = os.path.join(folder, source.path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if not source.file:
        with open(target, "w", encoding="utf-8", newline="") as file:
            file.write(source.text)
        return
    try:
        os.link(source.file, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source.file, target)
    progress.advance(os.stat(target).st_size)


@contextlib.contextmanager
def new_file(output: str, need_bytes: int) -> Iterator[IO[bytes]]:
    """Open a file that becomes `output` when the block ends well, and nothing otherwise.

    Raises:
        BuildError: it cannot be written, or fewer than `need_bytes` and a little are free.
    """
    fresh = f"{output}.{os.getpid()}.partial"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
        check_space(os.path.dirname(os.path.abspath(output)), need_bytes)
        with open(fresh, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, output)
    except OSError as error:
        raise write_error(output, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)


def check_space(folder: str, need_bytes: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        BuildError: the file system has too little room.
    """
    free = shutil.disk_usage(folder).free
    if free < need_bytes + _SPARE_BYTES:
        raise BuildError(
            f"cannot write to {folder}: {(need_bytes + _SPARE_BYTES) / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are "
            "free; free space or choose another place"
        )


def write_error(path: str, error: OSError) -> BuildError:
    """Return the error for a file that cannot be written."""
    return BuildError(f"cannot write {error.filename or path}: {error.strerror}; choose another place or free space")
