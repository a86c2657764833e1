"""The names inside a bundle: which are safe, which clash, and what its links point to. Pure.

Errors of the pure modules of this package give reason and mend; `unpack` puts `cannot use bundle PATH: ` before them.
"""

from __future__ import annotations

import contextlib
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator

from infer_dev_entry.errors import BundleError

# A bundle holds one file a package; the largest seen had 600. The limits bound memory and inodes, not real bundles.
MAX_MEMBERS = 100_000
MAX_NAME_BYTES = 4096
MAX_COMPONENT_BYTES = 255
MAX_DEPTH = 32
MAX_ALL_NAMES_BYTES = 32 * 1024 * 1024
_MAX_LINKS_IN_A_ROW = 40


def parse_member_path(name: str) -> str:
    """Return the relative path that a member's name means, without `.` and doubled or trailing slashes; "" is the root.

    Raises:
        BundleError: it is absolute, climbs, is too long or too deep, or holds characters that cannot be printed.
    """
    if not name or not name.isprintable():
        raise _refused(name, "its name is empty or holds characters that cannot be printed")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise _refused(name, f"its name is longer than {MAX_NAME_BYTES} bytes")
    if name.startswith("/"):
        raise _refused(name, "its name is absolute")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _refused(name, "its name climbs with ..")
    if len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_COMPONENT_BYTES for part in parts):
        raise _refused(name, f"it lies deeper than {MAX_DEPTH} folders, or a part is over {MAX_COMPONENT_BYTES} bytes")
    return "/".join(parts)


def render_name(name: str) -> str:
    """Quote a foreign name for a one-line message, cut to a readable length; nothing in it can move the cursor."""
    return repr(name if len(name) <= 100 else name[:60] + "…" + name[-39:])


class Contents:
    """Collects the members of one bundle in their order and refuses those that clash or lead outside."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._directories: set[str] = {""}
        self._keys: set[str] = set()
        self._links: dict[str, str] = {}
        self._names_bytes = 0

    def add_file(self, name: str) -> str:
        """Return the path of a new file; its folders count as added too, see `add_directory`.

        Raises:
            BundleError: the name is unsafe, is there already, or differs from another in case or unicode form alone.
        """
        path = parse_member_path(name)
        key = unicodedata.normalize("NFC", path.casefold())
        if not path or path in self._directories:
            raise _refused(name, "it is a file where another member is a folder")
        if key in self._keys:
            raise _refused(name, "it is there twice, or differs from another name in case or unicode form alone")
        self.add_directory(posixpath.dirname(path))
        self._keys.add(key)
        self._files.add(path)
        self._count(path)
        return path

    def add_directory(self, name: str) -> str:
        """Return the path of a folder and take its parents as added.

        Raises:
            BundleError: the name is unsafe, or a file has it.
        """
        path = parse_member_path(name) if name else ""
        parent = path
        while parent not in self._directories:
            if parent in self._files:
                raise _refused(name, "it is a folder where another member is a file")
            self._directories.add(parent)
            self._count(parent)
            parent = posixpath.dirname(parent)
        return path

    def add_link(self, name: str, target: str) -> str:
        """Return the path of a link to `target`, a name relative to the root; what it means shows in `links`.

        Raises:
            BundleError: either name is unsafe or clashes.
        """
        path = self.add_file(name)
        try:
            self._links[path] = parse_member_path(target)
        except BundleError as error:
            raise _refused(name, f"it links to {render_name(target)}, which is no name inside the bundle") from error
        self._count(target)
        return path

    def add_symlink(self, name: str, target: str) -> str:
        """Return the path of a symbolic link, whose `target` is relative to its own folder; see `add_link`."""
        joined = posixpath.normpath(posixpath.join(posixpath.dirname(parse_member_path(name)), target))
        if target.startswith("/") or joined == ".." or joined.startswith("../"):
            raise _refused(name, f"it links to {render_name(target)}, outside the bundle")
        return self.add_link(name, joined)

    def links(self) -> tuple[tuple[str, str], ...]:
        """Return (link, file) pairs, once all members are known.

        Raises:
            BundleError: a link leads to no plain file of the bundle.
        """
        return tuple((path, self._resolve(path)) for path in self._links)

    def _resolve(self, path: str) -> str:
        target = path
        for _ in range(_MAX_LINKS_IN_A_ROW):
            target = self._links[target]
            if target not in self._links:
                break
        if target not in self._files or target in self._links:
            raise _refused(path, f"it links to {render_name(target)}, which is no plain file of the bundle")
        return target

    def _count(self, path: str) -> None:
        self._names_bytes += len(path)
        if len(self._files) + len(self._directories) > MAX_MEMBERS or self._names_bytes > MAX_ALL_NAMES_BYTES:
            raise BundleError(
                f"it has more than {MAX_MEMBERS} members or {MAX_ALL_NAMES_BYTES} bytes of names; "
                "a bundle holds one file a package: is this an unpacked environment?"
            )


def find_root(paths: Iterable[str], marks: tuple[str, ...]) -> str:
    """Return the folder, "" or one top folder with its slash, in which one of the files `marks` lies.

    People pack a folder as often as its contents; both are the same bundle.
    """
    listed = tuple(paths)
    if any(path in marks for path in listed):
        return ""
    tops = {path.partition("/")[0] for path in listed}
    if len(tops) != 1:
        return ""
    prefix = tops.pop() + "/"
    return prefix if any(path.removeprefix(prefix) in marks for path in listed) else ""


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Put the bundle's path before the reason that the code inside gives."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"cannot use bundle {path}: {error}") from error


def _refused(name: str, reason: str) -> BundleError:
    return BundleError(f"its member {render_name(name)} is refused: {reason}; get it anew from where it was built")
