"""What a server needs before it is started: free ports, its private files, a log for nobody else, an empty TMPDIR."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from pathlib import Path

from infer_dev_entry.host import LiveHost
from infer_dev_entry.init.owner import Owner
from infer_dev_entry.private_log import close_log
from infer_dev_entry.redact import secrets_of
from infer_dev_entry.rundir import write_private
from infer_dev_entry.spec import ServerSpec

# After a kill the kernel has been seen to hold a port for some tenths of a second more.
PORT_LOOKS = 6
PORT_PAUSE_S = 0.1


def make_files(spec: ServerSpec, fleet_id: str, owner: Owner | None) -> str:
    """Write a server's files, close its log to others if it has keys, and empty its TMPDIR.

    Returns why the log could not be closed, or "".

    Raises:
        RunDirError: a file cannot be written.
        OSError: a directory cannot be made.
    """
    ids = (owner.uid, owner.gid) if owner else None
    for file in spec.files:
        _make_dir(Path(file.path).parent)
        write_private(file.path, file.text, owner=ids)
    tmp_dir = dict(spec.environment).get("TMPDIR", "")
    if fleet_id in tmp_dir:  # one that the user chose is the user's to clean
        with contextlib.suppress(RecursionError):  # what is nested so deeply stays
            shutil.rmtree(tmp_dir, ignore_errors=True)
        _make_dir(Path(tmp_dir).parent)
        Path(tmp_dir).mkdir(mode=0o700, exist_ok=True)
        if ids:
            os.chown(tmp_dir, *ids)
    return close_log(spec.log_file, owner.gid if owner else None) if secrets_of(spec.files) else ""


async def find_taken_port(spec: ServerSpec) -> str:
    """Say which port somebody holds. The sockets of a server that was just killed are given a moment to go."""
    for _ in range(PORT_LOOKS - 1):
        if not _taken_port(spec):
            return ""
        await asyncio.sleep(PORT_PAUSE_S)
    return _taken_port(spec)


def _taken_port(spec: ServerSpec) -> str:
    """Say which of a server's ports somebody holds, and who; "" when all are free."""
    host = LiveHost()
    for port, address in ((spec.port, spec.host), *((port, "") for port in spec.more_ports)):
        holder = host.port_holder(address, port)
        if holder:
            return f"port {port} is taken by {holder}"
    return ""


def _make_dir(path: Path) -> None:
    """Make a directory that others may pass but not list, unless somebody else has planted it.

    Raises:
        PermissionError: it belongs to another user.
    """
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    info = path.lstat()
    if info.st_uid != os.geteuid():
        raise PermissionError(f"cannot use {path}: it belongs to uid {info.st_uid}; remove it")
