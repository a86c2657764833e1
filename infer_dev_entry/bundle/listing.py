"""A quick look into a bundle: what it is and holds, without unpacking or hashing its packages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from infer_dev_entry.bundle.contents import Contents, find_root, naming
from infer_dev_entry.bundle.directory import list_directory
from infer_dev_entry.bundle.layout import ROOT_MARKS, parse_layout
from infer_dev_entry.bundle.metadata import MAX_METADATA_BYTES, is_metadata
from infer_dev_entry.bundle.model import BundleInfo
from infer_dev_entry.bundle.source import Source
from infer_dev_entry.bundle.tar import DIRECTORY, FILE, HARD_LINK, ChunkReader, Member, read_members
from infer_dev_entry.errors import BundleError

DIRECTORY_BUNDLE = "directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A bundle from outside. `container` is "tar", "tar.gz", "tar.zst", "sh" or "directory"; `files` are (path, bytes).

    A package of `info` whose size no record tells has its real one.
    """

    container: str
    size_bytes: int
    info: BundleInfo
    files: tuple[tuple[str, int], ...]


def read_listing(path: str) -> Listing:
    """Read what a bundle says and lists; only an uncompressed tar and a directory are spared a full read.

    Raises:
        BundleError: it is missing, damaged, hostile, of a wrong version, or changes meanwhile.
    """
    with naming(path):
        return _list_directory(path) if os.path.isdir(path) else _list_archive(path)


def read_info(path: str) -> BundleInfo:
    """Read what a bundle says of itself; see `read_listing`."""
    return read_listing(path).info


def _list_archive(path: str) -> Listing:
    with Source(path, hashing=False) as source:
        look = _Look()
        look.read(source.open_tar())
        source.finish()
        prefix = find_root(look.sizes, ROOT_MARKS)
        sizes = {name.removeprefix(prefix): size for name, size in look.sizes.items()}
        texts = {name.removeprefix(prefix): text for name, text in look.texts.items()}
        texts = {name: text for name, text in texts.items() if is_metadata(name)}
        return _make_listing(source.container, source.size_bytes, texts, sizes)


def _list_directory(path: str) -> Listing:
    sizes = {entry.path: entry.size for entry in list_directory(path)}
    texts = {name: _read_text(os.path.join(path, name)) for name in sizes if is_metadata(name)}
    return _make_listing(DIRECTORY_BUNDLE, sum(sizes.values()), texts, sizes)


def _make_listing(container: str, size_bytes: int, texts: Mapping[str, bytes], sizes: Mapping[str, int]) -> Listing:
    info = parse_layout(texts, dict.fromkeys(sizes, "")).info
    packages = tuple(replace(package, size=package.size or sizes.get(package.path, 0)) for package in info.packages)
    return Listing(
        container=container,
        size_bytes=size_bytes,
        info=replace(info, packages=packages),
        files=tuple(sorted(sizes.items())),
    )


class _Look:
    """Goes over an archive's members and keeps the texts that may be metadata, at its root or one folder below."""

    def __init__(self) -> None:
        self._contents = Contents()
        self._kept_bytes = 0
        self.sizes: dict[str, int] = {}
        self.texts: dict[str, bytes] = {}

    def read(self, reader: ChunkReader) -> None:
        for member in read_members(reader):
            self._read_member(member, reader)
        for path, file in self._contents.links():
            self.sizes[path] = self.sizes[file]
            if file in self.texts:
                self.texts[path] = self.texts[file]

    def _read_member(self, member: Member, reader: ChunkReader) -> None:
        if member.kind == DIRECTORY:
            self._contents.add_directory(member.name)
        elif member.kind == HARD_LINK:
            self._contents.add_link(member.name, member.link)
        elif member.kind == FILE:
            path = self._contents.add_file(member.name)
            self.sizes[path] = member.size
            if is_metadata(path) or is_metadata(path.partition("/")[2]):
                self._keep(path, member, reader)
        else:
            self._contents.add_symlink(member.name, member.link)

    def _keep(self, path: str, member: Member, reader: ChunkReader) -> None:
        self._kept_bytes += member.size
        if self._kept_bytes > 2 * MAX_METADATA_BYTES:
            raise BundleError(f"its metadata is larger than {2 * MAX_METADATA_BYTES} bytes; build it again")
        text = reader.read_exactly(member.size)
        if len(text) < member.size:
            raise BundleError("it is truncated; copy it anew")
        self.texts[path] = text


def _read_text(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    if len(text) > MAX_METADATA_BYTES:
        raise BundleError(f"{path} is larger than {MAX_METADATA_BYTES} bytes; build the bundle again")
    return text
