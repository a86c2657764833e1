"""Write the marker and `.complete`: as a whole, by rename, and only when it is on the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.marker import COMPLETE_NAME, MARKER_NAME, EnvRecord, Marker

MARKER_VERSION = 1


def render_record(record: EnvRecord) -> dict[str, Any]:
    """Return the record as the JSON object that `.complete` holds."""
    data = asdict(record) | {"versions": dict(record.versions), "activation": dict(record.activation)}
    bundle = data.pop("bundle")
    return {"version": MARKER_VERSION} | data | _render_stat(bundle)


def render_marker(marker: Marker) -> dict[str, Any]:
    """Return the marker as the JSON object that the file holds: the record, `previous`, `rolled_back`."""
    rolled_back = None
    if marker.rolled_back is not None:
        data = asdict(marker.rolled_back)
        bundle = data.pop("bundle")
        rolled_back = data | _render_stat(bundle)
    return render_record(marker.record) | {"previous": marker.previous, "rolled_back": rolled_back}


def _render_stat(bundle: Mapping[str, int] | None) -> dict[str, Any]:
    if bundle is None:
        return {"size": None, "mtime": None, "mtime_ns": None, "inode": None}
    return {**bundle, "mtime": bundle["mtime_ns"] / 1e9}  # the seconds are for people


def write_complete(record: EnvRecord) -> None:
    """Say in the environment that it is complete. Its files must be on the disk already.

    Raises:
        InstallError: it cannot be written.
    """
    _write_json(f"{record.prefix}/{COMPLETE_NAME}", render_record(record))


def write_marker(project_dir: str, marker: Marker) -> None:
    """Write the marker as a whole, by rename.

    Raises:
        InstallError: it cannot be written.
    """
    _write_json(f"{project_dir}/{MARKER_NAME}", render_marker(marker))


def _write_json(path: str, data: Mapping[str, Any]) -> None:
    temporary = f"{path}.new"  # one writer at a time, as the lock is held; a leftover is written over
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(handle)
        os.replace(temporary, path)
        sync_dir(os.path.dirname(path))
    except OSError as error:
        raise InstallError(
            f"cannot write {path}: {error.strerror}; free space or make the directory writable"
        ) from error


def sync_dir(path: str) -> None:
    """Have the renames in a directory survive a power loss.

    Raises:
        OSError: the disk failed.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
