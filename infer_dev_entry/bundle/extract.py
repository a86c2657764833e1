"""Write a bundle's members into an empty directory, each hashed on its way; nothing outside that directory is touched.

Only folders and plain files are ever made there: links become further names of the file that they mean.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import shutil
from collections.abc import Callable

from infer_dev_entry.bundle.contents import Contents, render_name
from infer_dev_entry.bundle.hashing import BackgroundHash
from infer_dev_entry.bundle.tar import DIRECTORY, FILE, HARD_LINK, ChunkReader, Member, read_members
from infer_dev_entry.errors import BundleError, InstallError

PIECE_BYTES = 1 << 20
# Below that, a full disk shows in the write itself.
_CHECKED_BYTES = 1 << 20
# To hand a piece to another thread costs about as much as to hash so many bytes.
_HASHED_HERE_BYTES = 64 * 1024


class Extractor:
    """Extracts one archive into the directory `target`. `digests` maps path → sha256 of what was written."""

    def __init__(self, target: str, about_bytes: int) -> None:
        """`about_bytes` is what the members will take, as far as one can know.

        Raises:
            InstallError: `target` cannot be opened, or has no room for so much.
        """
        self._target = target
        self._about_bytes = about_bytes
        self._contents = Contents()
        self._made = {""}
        self.digests: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        try:
            self._root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._require_space(about_bytes)
            self._hash = BackgroundHash("member-sha256")
        except BaseException:
            os.close(self._root)
            raise

    def __enter__(self) -> Extractor:
        return self

    def __exit__(self, *_error: object) -> None:
        self._hash.abandon()
        os.close(self._root)

    def extract(self, reader: ChunkReader) -> None:
        """Extract every member.

        Raises:
            BundleError: the archive is damaged or hostile.
            InstallError: the disk is full, or cannot be written.
        """
        try:
            for member in read_members(reader):
                self._extract_member(member, reader)
            self._take_digests()
            for path, file in self._contents.links():
                self._make_link(path, file)
        except OSError as error:
            raise self._failed(error) from error

    def _extract_member(self, member: Member, reader: ChunkReader) -> None:
        if member.kind == DIRECTORY:
            self._make_directory(self._contents.add_directory(member.name))
        elif member.kind == FILE:
            self._write_file(self._contents.add_file(member.name), member, reader)
        elif member.kind == HARD_LINK:
            self._contents.add_link(member.name, member.link)
        else:
            self._contents.add_symlink(member.name, member.link)

    def _make_directory(self, path: str) -> None:
        missing = []
        while path not in self._made:
            missing.append(path)
            path = posixpath.dirname(path)
        for folder in reversed(missing):
            os.mkdir(folder, 0o755, dir_fd=self._root)
            self._made.add(folder)

    def _write_file(self, path: str, member: Member, reader: ChunkReader) -> None:
        if member.size >= _CHECKED_BYTES:
            self._require_space(member.size)
        self._make_directory(posixpath.dirname(path))
        # Modes are ours: no setuid, nothing that others can write, nothing that its owner cannot read.
        fd = self._create(path, 0o755 if member.executable else 0o644)
        try:
            self._copy_data(path, fd, member, reader)
            self.sizes[path] = member.size
        finally:
            os.close(fd)

    def _copy_data(self, path: str, fd: int, member: Member, reader: ChunkReader) -> None:
        """Copy a member's data into `fd`; its digest is there at once, or comes with `_take_digests`."""
        if member.size < _HASHED_HERE_BYTES:
            sha256 = hashlib.sha256()
            _copy_pieces(reader, fd, member, sha256.update)
            self.digests[path] = sha256.hexdigest()
        else:
            self.digests[path] = ""  # its place in the order
            _copy_pieces(reader, fd, member, self._hash.update)
            self._hash.end(path)

    def _take_digests(self) -> None:
        found = self._hash.finish()
        self.digests = {path: digest or found[path] for path, digest in self.digests.items()}

    def _create(self, path: str, mode: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, mode, dir_fd=self._root)

    def _make_link(self, path: str, file: str) -> None:
        self._make_directory(posixpath.dirname(path))
        try:
            os.link(file, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS):
                raise
            self._copy_file(file, path)  # a file system without hard links
        self.digests[path] = self.digests[file]
        self.sizes[path] = self.sizes[file]

    def _copy_file(self, file: str, path: str) -> None:
        self._require_space(self.sizes[file])
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            open(os.open(file, flags, dir_fd=self._root), "rb") as source,
            open(self._create(path, os.fstat(source.fileno()).st_mode & 0o777), "wb") as target,
        ):
            shutil.copyfileobj(source, target, PIECE_BYTES)

    def _require_space(self, need_bytes: int) -> None:
        found = os.statvfs(self._root)
        free = found.f_bavail * found.f_frsize
        if found.f_blocks and free < need_bytes:  # some network file systems tell nothing: no blocks at all
            raise InstallError(
                f"cannot unpack into {self._target}: {_gigabytes(need_bytes)} more are needed and {_gigabytes(free)} "
                "are free; free space there or set AUTO_INFER_SGLANG_PIXI_PROJECT_DIR"
            )

    def _failed(self, error: OSError) -> InstallError:
        reason, mend = error.strerror or str(error), "make it writable"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            done = _gigabytes(sum(self.sizes.values()))
            reason, mend = f"{reason} after {done} of about {_gigabytes(self._about_bytes)}", "free space there"
        return InstallError(
            f"cannot unpack into {self._target}: {reason}; {mend} or set AUTO_INFER_SGLANG_PIXI_PROJECT_DIR"
        )


def _copy_pieces(reader: ChunkReader, fd: int, member: Member, hash_piece: Callable[[memoryview], None]) -> None:
    left = member.size
    while left:
        piece = reader.read_some(min(left, PIECE_BYTES))
        if not piece:
            raise BundleError(f"it is truncated within its member {render_name(member.name)}; copy it anew")
        left -= len(piece)
        hash_piece(piece)
        while piece:
            piece = piece[os.write(fd, piece) :]


def _gigabytes(size: int) -> str:
    return f"{size / 1000**3:.2f} GB" if size >= 10**7 else f"{size / 1000**2:.2f} MB"
