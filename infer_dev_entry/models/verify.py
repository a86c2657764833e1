"""Hash a model's files against its record, and say which is bad."""

from __future__ import annotations

import os
from dataclasses import replace

from infer_dev_entry.errors import ModelError, ModelFilesError
from infer_dev_entry.models.content import file_fault, is_as_recorded
from infer_dev_entry.models.place import Place, write_record
from infer_dev_entry.models.progress import ModelProgress
from infer_dev_entry.models.record import KeptFile, ModelRecord
from infer_dev_entry.models.wish import MARKER_NAME, ModelWish

_BAD = 0  # no file's mtime


def check_files(place: Place, record: ModelRecord, progress: ModelProgress) -> tuple[str, ...]:
    """Read every file of the record whole, and return a clause for each that is not what it says.

    The record learns of it, where it can be written: a bad file counts as changed from now on, so that the next
    download fetches it and no other.
    """
    progress.stage(f"check {place.target}", record.size_bytes)
    faults: list[str] = []
    files: list[KeptFile] = []
    for kept in record.files:
        fault = file_fault(place.target, kept.remote, progress.advance)
        faults += [fault] if fault else []
        files.append(replace(kept, mtime_ns=_BAD if fault else _mtime_ns(f"{place.target}/{kept.remote.path}")))
    if tuple(files) != record.files:
        try:
            write_record(place.target, replace(record, files=tuple(files)))
        except ModelError as error:  # the next boot will have to read it all again
            progress.note(str(error))
    return tuple(faults)


def _mtime_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return _BAD


def require_record(place: Place) -> ModelRecord:
    """Return the record of a model.

    Raises:
        ModelFilesError: there is none.
    """
    record = place.record()
    if record is None:
        raise ModelFilesError(
            f"cannot verify {place.target}: no usable {MARKER_NAME} lies there; infer-dev model pull makes one"
        )
    return record


def refresh_record(place: Place, wish: ModelWish, progress: ModelProgress) -> bool:
    """Say whether the model is whole; mtimes that a copy has changed are made up for by hashing everything once."""
    record = place.record()
    if record is None or not record.fulfils(wish):
        return False
    if is_as_recorded(place.target, record):
        return True
    if not _sizes_fit(place.target, record):
        return False
    faults = check_files(place, record, progress)
    for fault in faults:
        progress.note(f"{place.target}: {fault}; it will be downloaded again")
    return not faults


def _sizes_fit(folder: str, record: ModelRecord) -> bool:
    try:
        return all(os.stat(f"{folder}/{kept.remote.path}").st_size == kept.remote.size for kept in record.files)
    except (OSError, ValueError):
        return False
