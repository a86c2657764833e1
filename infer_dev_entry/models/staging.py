"""The staging directory: which files are in it whole, which are begun, and what may be taken from the model before."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterable, Mapping

from infer_dev_entry.errors import ModelError
from infer_dev_entry.install.records import sync_dir
from infer_dev_entry.models.content import lies_as_kept
from infer_dev_entry.models.listing import RemoteFile
from infer_dev_entry.models.place import JOURNAL_NAME, Place, explained, read_record
from infer_dev_entry.models.record import KeptFile, ModelRecord
from infer_dev_entry.models.wish import MARKER_NAME, OWN_PREFIX
from infer_dev_entry.regular_file import read_regular

PARTS_NAME = ".infer-dev-parts"
_MAX_JOURNAL_BYTES = 64 * 1024 * 1024


class Staging:
    """One staging directory, with the lock held. Methods that several threads call say so."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._folder = place.staging
        self._kept: dict[str, KeptFile] = {}
        self._writing = threading.Lock()

    def part(self, file: RemoteFile) -> str:
        """Return the path of a file that is not whole yet; its name holds for that content alone."""
        key = f"{file.path}\0{file.size}\0{file.algorithm}\0{file.digest}"
        return f"{self._folder}/{PARTS_NAME}/{hashlib.sha256(key.encode()).hexdigest()[:40]}"

    def open(self, files: Iterable[RemoteFile], before: ModelRecord | None) -> tuple[RemoteFile, ...]:
        """Keep what earlier runs left of these files, link what the model before has of them, and return what lacks.

        Everything else in the directory is deleted.

        Raises:
            ModelError: the filesystem refuses.
        """
        with explained(f"cannot use {self._folder}"):
            known = self._known()
            os.makedirs(f"{self._folder}/{PARTS_NAME}", exist_ok=True)
            wanted = {file.path: file for file in files}
            self._kept = {path: kept for path, kept in known.items() if wanted.get(path) == kept.remote}
            self._write_journal()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._folder}/{MARKER_NAME}")
            unknown = {path: file for path, file in wanted.items() if path not in known}
            self._clear({os.path.basename(self.part(file)) for file in wanted.values()}, unknown)
            lacking = [file for path, file in wanted.items() if path not in self._kept]
            if before is not None:
                lacking = [file for file in lacking if not self._take_over(file, before)]
            self._write_journal()
        return tuple(lacking)

    def begun_bytes(self, files: Iterable[RemoteFile]) -> int:
        """Return how much of these files is in parts of earlier runs."""
        total = 0
        for file in files:
            with contextlib.suppress(OSError):
                size = os.lstat(self.part(file)).st_size
                total += size if file.digest and size <= file.size else 0
        return total

    def settle(self, file: RemoteFile, mtime_ns: int) -> None:
        """Move a part whose digest is right to its name, and note it. Called by several threads.

        Raises:
            OSError: the filesystem refuses.
        """
        final = f"{self._folder}/{file.path}"
        os.makedirs(os.path.dirname(final), exist_ok=True)
        kept = KeptFile(remote=file, mtime_ns=mtime_ns)
        with self._writing:
            self._kept[file.path] = kept
            with open(f"{self._folder}/{JOURNAL_NAME}", "a", encoding="utf-8") as journal:
                journal.write(_render_line(kept))
        os.replace(self.part(file), final)  # after its line, which says nothing while the file is not there

    def close(self) -> tuple[KeptFile, ...]:
        """Remove the parts, have all names on the disk, and return what is there.

        Raises:
            ModelError: the filesystem refuses.
        """
        with explained(f"cannot finish {self._folder}"):
            shutil.rmtree(f"{self._folder}/{PARTS_NAME}")
            for folder, _, _ in os.walk(self._folder):
                sync_dir(folder)
            for kept in self._kept.values():
                if not lies_as_kept(self._folder, kept):
                    raise ModelError(
                        f"cannot finish {self._folder}: {kept.remote.path} is not there as it was written; end what "
                        "else writes there, or use a filesystem that tells upper from lower case"
                    )
        return tuple(self._kept[path] for path in sorted(self._kept))

    def carry_over(self, before: ModelRecord) -> tuple[str, ...]:
        """Link here what somebody added to the model before, and return what had to give way to a new file.

        Raises:
            ModelError: the filesystem refuses.
        """
        old = self._place.target
        known = {kept.remote.path for kept in before.files}
        hidden = []
        with explained(f"cannot keep what was added to {old}"):
            for folder, names, files in os.walk(old):
                links = [name for name in names if os.path.islink(f"{folder}/{name}")]
                for name in (*files, *links):
                    path = os.path.relpath(f"{folder}/{name}", old)
                    if path in known or path.startswith(OWN_PREFIX):
                        continue
                    if not _add(f"{old}/{path}", f"{self._folder}/{path}"):
                        hidden.append(path)
        return tuple(sorted(hidden))

    def forget(self) -> None:
        """Remove the journal, once the record has taken its place.

        Raises:
            ModelError: the filesystem refuses.
        """
        with explained(f"cannot finish {self._folder}"):
            os.unlink(f"{self._folder}/{JOURNAL_NAME}")

    def _known(self) -> Mapping[str, KeptFile]:
        """What the journal says, or the record of a run that was killed with all files there, and is still so."""
        record = read_record(self._folder)
        found = {kept.remote.path: kept for kept in record.files} if record is not None else {}
        for kept in _read_journal(f"{self._folder}/{JOURNAL_NAME}"):
            found[kept.remote.path] = kept
        return {path: kept for path, kept in found.items() if lies_as_kept(self._folder, kept)}

    def _clear(self, parts: set[str], unknown: Mapping[str, RemoteFile]) -> None:
        """Delete all but the kept files and these parts; a link or device goes as well.

        A wanted file that is `unknown` to the journal (its line was lost with the power) becomes a part again, to be
        proved.
        """
        for folder, names, files in os.walk(self._folder, topdown=False):
            within = os.path.relpath(folder, self._folder)
            for name in files:
                path = os.path.normpath(f"{within}/{name}")
                if path in self._kept or path == JOURNAL_NAME or (within == PARTS_NAME and name in parts):
                    continue
                if path in unknown and _is_regular(f"{folder}/{name}", unknown[path].size):
                    os.replace(f"{folder}/{name}", self.part(unknown[path]))
                else:
                    os.unlink(f"{folder}/{name}")
            for name in names:
                self._clear_folder(f"{folder}/{name}")

    def _clear_folder(self, path: str) -> None:
        if os.path.islink(path):
            os.unlink(path)
        elif path != f"{self._folder}/{PARTS_NAME}":
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(path)

    def _take_over(self, file: RemoteFile, before: ModelRecord) -> bool:
        """Link a file of the same content out of the model that is in place; two names cost no space."""
        alike = [
            kept
            for kept in before.files
            if file.digest and (kept.remote.size, kept.remote.digest) == (file.size, file.digest)
        ]
        for kept in alike:
            if not lies_as_kept(self._place.target, kept):
                continue
            final = f"{self._folder}/{file.path}"
            try:
                os.makedirs(os.path.dirname(final), exist_ok=True)
                os.link(f"{self._place.target}/{kept.remote.path}", final)
            except OSError:  # a filesystem without links
                continue
            self._kept[file.path] = KeptFile(remote=file, mtime_ns=kept.mtime_ns)
            return True
        return False

    def _write_journal(self) -> None:
        """Write it anew as a whole, so that a kill leaves the old one or the new one."""
        path = f"{self._folder}/{JOURNAL_NAME}"
        with open(f"{path}.new", "w", encoding="utf-8") as journal:
            journal.writelines(_render_line(kept) for kept in self._kept.values())
            journal.flush()
            os.fsync(journal.fileno())
        os.replace(f"{path}.new", path)


def _add(source: str, final: str) -> bool:
    """Give a file a second name, or copy it; False when something else has that name, or a part of it."""
    try:
        os.makedirs(os.path.dirname(final), exist_ok=True)
        try:
            os.link(source, final, follow_symlinks=False)
        except FileExistsError:
            return False
        except OSError:  # a filesystem without links
            shutil.copy2(source, final, follow_symlinks=False)
    except (FileExistsError, NotADirectoryError, shutil.SpecialFileError):
        return False
    return True


def _is_regular(path: str, size: int) -> bool:
    seen = os.lstat(path)
    # One with a second name is a link into the model that is in place, and that may not be written to.
    return stat.S_ISREG(seen.st_mode) and seen.st_size == size and seen.st_nlink == 1


def _render_line(kept: KeptFile) -> str:
    remote = kept.remote
    return json.dumps([remote.path, remote.size, remote.algorithm, remote.digest, kept.mtime_ns]) + "\n"


def _read_journal(path: str) -> list[KeptFile]:
    """Read the journal; a line that is cut off or no line of ours says nothing."""
    found = []
    try:
        data, _ = read_regular(path, _MAX_JOURNAL_BYTES, follow=False)
    except OSError:
        return []
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            name, size, algorithm, digest, mtime_ns = json.loads(line)
            remote = RemoteFile(path=str(name), size=int(size), algorithm=str(algorithm), digest=str(digest))
            found.append(KeptFile(remote=remote, mtime_ns=int(mtime_ns)))
        except (ValueError, TypeError, RecursionError):
            continue
    return found
