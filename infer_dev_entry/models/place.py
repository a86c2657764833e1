"""A model's directory and what lies beside it: the staging directory, the lock file, the one it replaced."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

from infer_dev_entry.errors import ModelError, ModelFilesError
from infer_dev_entry.install.records import sync_dir
from infer_dev_entry.install.store import exchange_paths, explain_os_error
from infer_dev_entry.models.content import is_as_recorded
from infer_dev_entry.models.record import ModelRecord, parse_record, render_record
from infer_dev_entry.models.wish import MARKER_NAME
from infer_dev_entry.regular_file import read_regular

MAX_RECORD_BYTES = 64 * 1024 * 1024
# What staging knows of the files in it; it never reaches the model's place.
JOURNAL_NAME = ".infer-dev-verified.jsonl"


@dataclass(frozen=True, slots=True)
class Place:
    """The paths of one model; all are in one directory, so that renames between them are one step."""

    target: str

    @property
    def parent(self) -> str:
        """The directory that the model's is in."""
        return os.path.dirname(self.target)

    @property
    def staging(self) -> str:
        """Where the model grows, until it is whole."""
        return self._beside("incomplete")

    @property
    def replaced(self) -> str:
        """Where the model before this one waits to be deleted."""
        return self._beside("replaced")

    @property
    def lock(self) -> str:
        """The lock file; it stays, as whoever waits has it open."""
        return self._beside("lock")

    def _beside(self, ending: str) -> str:
        return f"{self.parent.rstrip('/')}/.{os.path.basename(self.target)}.{ending}"

    def record(self) -> ModelRecord | None:
        """Return what the model's directory says of itself."""
        return read_record(self.target)

    def is_foreign(self) -> bool:
        """Say whether something lies there that no record of ours describes."""
        if not os.path.lexists(self.target):
            return False
        if not os.path.isdir(self.target):
            return True
        try:
            return self.record() is None and bool(os.listdir(self.target))
        except OSError:  # ours can be read
            return True

    # -- changes; all with the lock held

    def prepare(self) -> None:
        """Make the staging directory, and delete what a killed run had replaced already.

        Raises:
            ModelError: the filesystem refuses.
        """
        with explained(f"cannot make {self.staging}"):
            mounts = mounts_within(self.target)
            if self.target in mounts:
                raise ModelError(
                    f"cannot publish {self.target}: it is a mount point, which no rename replaces; "
                    "mount the directory above it"
                )
            if mounts:  # it would go with the model that is replaced, and be emptied
                raise ModelError(f"cannot publish {self.target}: {mounts[0]} is mounted in it; mount it elsewhere")
            os.makedirs(self.staging, exist_ok=True)
        self.sweep()

    def recover(self) -> None:
        """Finish what a run was killed in that had all and had not yet put it in place: two renames, or one.

        Raises:
            ModelError: the filesystem refuses.
        """
        if os.path.lexists(self.target):
            return
        record = read_record(self.staging)
        with explained(f"cannot publish {self.target}"):
            if record is not None and is_as_recorded(self.staging, record):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.staging}/{JOURNAL_NAME}")
                os.rename(self.staging, self.target)
            elif os.path.lexists(self.replaced):
                os.rename(self.replaced, self.target)

    def sweep(self) -> None:
        """Delete what was replaced, if the model itself is there; a kill between two renames may have left it alone."""
        if os.path.lexists(self.replaced) and os.path.lexists(self.target):
            shutil.rmtree(self.replaced, ignore_errors=True)

    def tidy(self) -> None:
        """Delete what a run left that was killed after the exchange; the model is there, and is what is wished for."""
        self.sweep()
        if read_record(self.staging) is not None:
            shutil.rmtree(self.staging, ignore_errors=True)

    def publish(self) -> None:
        """Put the staging directory in the model's place, in one step; the model before it is deleted afterwards.

        Whoever has files of that one open keeps them until it closes them.

        Raises:
            ModelError: the filesystem refuses; whatever is in the place is whole.
        """
        with explained(f"cannot publish {self.target}"):
            if self.record() is None:
                os.rename(self.staging, self.target)  # nothing there, or an empty directory
            elif exchange_paths(self.staging, self.target):
                shutil.rmtree(self.replaced, ignore_errors=True)
                os.rename(self.staging, self.replaced)
            else:  # a filesystem without exchange: for a moment there is none
                shutil.rmtree(self.replaced, ignore_errors=True)
                os.rename(self.target, self.replaced)
                os.rename(self.staging, self.target)
            sync_dir(self.parent)
        self.sweep()


def mounts_within(folder: str) -> tuple[str, ...]:
    """Return the mount points at and below a directory.

    The kernel's list, as os.path.ismount does not see a directory that is bound from the same filesystem.
    """
    below = f"{folder.rstrip('/')}/"
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            points = [_unescape(line.split(b" ")[4]) for line in file]  # proc(5)
    except (OSError, IndexError):
        return (folder,) if os.path.ismount(folder) else ()
    return tuple(point for point in points if point == folder or point.startswith(below))


def _unescape(field: bytes) -> str:
    """Decode a path of mountinfo, in which white space and backslashes are octal."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field))


def place_of(target: str) -> Place:
    """Return the place of a model; a link is followed, so that what it leads to is replaced, not the link."""
    return Place(os.path.realpath(target) if os.path.islink(target) else os.path.normpath(target))


def read_record(folder: str) -> ModelRecord | None:
    """Return the record in a directory; None when it has none that can be read and believed."""
    try:
        data, _ = read_regular(f"{folder}/{MARKER_NAME}", MAX_RECORD_BYTES, follow=False)
        return parse_record(data.decode("utf-8"))
    except (OSError, ValueError):
        return None


def write_record(folder: str, record: ModelRecord) -> None:
    """Write the record as a whole, by rename; every file that it names is on the disk already.

    Raises:
        ModelError: it cannot be written.
    """
    path = f"{folder}/{MARKER_NAME}"
    with explained(f"cannot write {path}"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(f"{path}.new", flags, 0o644)
        with open(handle, "w", encoding="utf-8") as file:
            file.write(render_record(record))
            file.flush()
            os.fsync(handle)
        os.replace(f"{path}.new", path)
        sync_dir(folder)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn a refused change of the models' filesystem into an error with its mend."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"{what}: {explain_model_os_error(error)}") from error


def explain_model_os_error(error: OSError) -> str:
    """Return the reason and the mend."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason = error.strerror or str(error)
        return f"{reason}; free space there and run it again: what was downloaded is kept and continued"
    if error.errno == errno.EROFS:
        return f"{error.strerror}; mount the models' directory writable, or name another one with local_dir"
    return explain_os_error(error)


def refuse_foreign(place: Place, why: str) -> ModelFilesError:
    """Return the error for a directory that is not ours to replace."""
    return ModelFilesError(
        f"cannot use {place.target}: infer-dev did not put it there, and {why}; move it away, or name another "
        "directory (local_dir, or the server's model)"
    )
