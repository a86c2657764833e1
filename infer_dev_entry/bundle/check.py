"""Hold every file of a bundle to its records where it lies: one pass that hashes all of it and unpacks nothing."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

from infer_dev_entry.bundle.contents import Contents, find_root, naming
from infer_dev_entry.bundle.directory import digest_of, hash_directory, list_directory
from infer_dev_entry.bundle.layout import ROOT_MARKS, find_faults, parse_layout
from infer_dev_entry.bundle.metadata import MAX_METADATA_BYTES, is_metadata
from infer_dev_entry.bundle.model import BundleInfo
from infer_dev_entry.bundle.source import Source
from infer_dev_entry.bundle.tar import DIRECTORY, FILE, HARD_LINK, ChunkReader, Member, read_members
from infer_dev_entry.bundle.unpack import parse_digest
from infer_dev_entry.errors import BundleError
from infer_dev_entry.install.model import Progress

_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedBundle:
    """What a bundle turned out to be. `faults` are whole lines, () when every file is what its record says."""

    info: BundleInfo
    digest: str
    size_bytes: int
    file_count: int
    faults: tuple[str, ...]


def check_bundle(path: str, progress: Progress, *, expected_sha256: str = "") -> CheckedBundle:
    """Hash a bundle and all its files.

    Raises:
        BundleError: it cannot be read as a bundle at all; what its records find wrong is in `faults` instead.
    """
    with naming(path):
        expected = parse_digest(expected_sha256)
        found = _Files()
        size_bytes = found.read_directory(path, progress) if os.path.isdir(path) else found.read_file(path, progress)
        layout = parse_layout(found.texts, found.digests)
        faults = find_faults(layout, found.digests, found.sizes)
        if expected and found.digest != expected:
            faults = (f"the bundle's sha256 is {found.digest}, expected was {expected}", *faults)
        return CheckedBundle(
            info=layout.info,
            digest=found.digest,
            size_bytes=size_bytes,
            file_count=len(found.digests),
            faults=faults,
        )


class _Files:
    """The files of a bundle: path → sha256, path → size, and the texts of those that describe it."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self.sizes: dict[str, int] = {}
        self.texts: dict[str, bytes] = {}
        self.digest = ""
        self._contents = Contents()
        self._kept_bytes = 0

    def read_directory(self, path: str, progress: Progress) -> int:
        """Read an unpacked bundle and return its size in bytes."""
        entries = list_directory(path)
        progress.stage("hash", sum(entry.size for entry in entries))
        self.digests = hash_directory(path, entries, progress.advance)
        self.sizes = {entry.path: entry.size for entry in entries}
        self.digest = digest_of(self.digests)
        for name in filter(is_metadata, self.digests):
            with open(os.path.join(path, name), "rb") as file:
                self._keep(name, file.read(MAX_METADATA_BYTES + 1))
        return sum(self.sizes.values())

    def read_file(self, path: str, progress: Progress) -> int:
        """Read an archive and return its size in bytes."""
        with Source(path, on_read=progress.advance) as source:
            progress.stage("hash", source.size_bytes)
            reader = source.open_tar()
            for member in read_members(reader):
                self._read_member(member, reader)
            for link, target in self._contents.links():
                self.digests[link], self.sizes[link] = self.digests[target], self.sizes[target]
            self.digest = source.finish()
            self._strip_root()
            return source.size_bytes

    def _strip_root(self) -> None:
        """Take the one top folder off, if somebody packed the bundle's folder rather than its contents."""
        prefix = find_root(self.digests, ROOT_MARKS)
        self.digests = {path.removeprefix(prefix): digest for path, digest in self.digests.items()}
        self.sizes = {path.removeprefix(prefix): size for path, size in self.sizes.items()}
        texts = {path.removeprefix(prefix): text for path, text in self.texts.items()}
        self.texts = {path: text for path, text in texts.items() if is_metadata(path)}

    def _read_member(self, member: Member, reader: ChunkReader) -> None:
        if member.kind == DIRECTORY:
            self._contents.add_directory(member.name)
        elif member.kind == HARD_LINK:
            self._contents.add_link(member.name, member.link)
        elif member.kind == FILE:
            path = self._contents.add_file(member.name)
            self.sizes[path] = member.size
            self.digests[path] = self._hash_member(path, member, reader)
        else:
            self._contents.add_symlink(member.name, member.link)

    def _hash_member(self, path: str, member: Member, reader: ChunkReader) -> str:
        if is_metadata(path) or is_metadata(path.partition("/")[2]):
            text = reader.read_exactly(min(member.size, MAX_METADATA_BYTES + 1))
            self._keep(path, text)
            return hashlib.sha256(text).hexdigest()
        sha256, left = hashlib.sha256(), member.size
        while left and (piece := reader.read_some(min(left, _READ_BYTES))):
            sha256.update(piece)
            left -= len(piece)
        if left:
            raise BundleError("it is truncated; copy it anew")
        return sha256.hexdigest()

    def _keep(self, path: str, text: bytes) -> None:
        self._kept_bytes += len(text)
        if len(text) > MAX_METADATA_BYTES or self._kept_bytes > 2 * MAX_METADATA_BYTES:
            raise BundleError(f"{path}: the metadata is larger than {MAX_METADATA_BYTES} bytes; build it again")
        self.texts[path] = text
