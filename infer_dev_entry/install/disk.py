"""The workspace's filesystem: is there room, and is what was written really on the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from infer_dev_entry.bundle.model import UnpackedBundle
from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.model import Progress
from infer_dev_entry.install.wheel_size import read_installed_bytes

SYNC_TIMEOUT_S = 1800.0

# What an archive surely unpacks to: packages are compressed already, and base64 makes a `.sh` a third larger. An
# environment is no smaller than its packages. Measured wheels and conda packages of a CUDA stack are 3.4 times theirs.
_SURE_FACTOR = 0.75
_CONDA_FACTOR = 3.4
_RESERVE_BYTES = 16 * 1024 * 1024

# What lies there is gone with the machine, however often it is synced.
_IN_MEMORY = ("tmpfs", "ramfs")
_MOUNTS = "/proc/self/mountinfo"

# A program of its own, as a sync may sit in the kernel for minutes, where no signal reaches it: whoever is told to end
# leaves it behind, and it does no harm. syncfs(2), as sync(2) would wait for every other container's writes too.
_SYNC = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
handle = os.open(sys.argv[1], os.O_RDONLY)
if not hasattr(libc, "syncfs"):
    os.sync()
elif libc.syncfs(handle) != 0:
    sys.exit(os.strerror(ctypes.get_errno()))
"""


def check_first_room(bundle_path: str, size: int, folder: str) -> None:
    """Refuse at once what surely cannot fit: the archive's content in staging, and an environment of the same size.

    Raises:
        InstallError: there is too little room; it says how much is needed and there.
    """
    copies = 1 if os.path.isdir(bundle_path) else 2
    _check_room(int(copies * _SURE_FACTOR * size), folder)


def check_room(bundle: UnpackedBundle, folder: str) -> None:
    """Refuse an environment that cannot fit: of wheels the exact size is in their zip directories.

    Raises:
        InstallError: there is too little room.
    """
    need = sum(_wheel_bytes(f"{bundle.root}/{wheel.path}") for wheel in bundle.info.wheels)
    need += sum(int(_file_bytes(f"{bundle.root}/{item.path}") * _CONDA_FACTOR) for item in bundle.info.conda_packages)
    _check_room(need, folder)


def _check_room(need: int, folder: str) -> None:
    need += _RESERVE_BYTES
    have = shutil.disk_usage(folder).free
    if need > have:
        raise InstallError(
            f"cannot install into {folder}: {_shown(need)} are needed, {_shown(have)} are free; "
            "free space there, or use another AUTO_INFER_SGLANG_PIXI_PROJECT_DIR"
        )


def _wheel_bytes(path: str) -> int:
    try:
        return read_installed_bytes(path)
    except (OSError, ValueError):
        return _file_bytes(path)  # the backend will say what is wrong with it


def _file_bytes(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _shown(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def lies_in_memory(folder: str) -> bool:
    """Say whether the filesystem of that folder surely has no disk below it; an unknown one may have."""
    device = os.stat(folder).st_dev
    try:
        with open(_MOUNTS, encoding="utf-8", errors="replace") as file:
            return find_filesystem(file.read(), f"{os.major(device)}:{os.minor(device)}") in _IN_MEMORY
    except OSError:
        return False


def find_filesystem(mountinfo: str, device: str) -> str:
    """Return the type of the filesystem with that number (`0:42`) in the text of /proc/<pid>/mountinfo; "" if none."""
    for line in mountinfo.splitlines():
        mount, _, filesystem = line.partition(" - ")
        if mount.split(" ")[2:3] == [device]:
            return filesystem.partition(" ")[0]
    return ""


class Sync:
    """Writes the filesystem of a folder to its disk, beside other work; of one in memory there is nothing to write."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._child: subprocess.Popen[str] | None = None
        self._needed = not lies_in_memory(folder)
        self.start()

    def start(self) -> None:
        """Begin; what is written from now on may or may not be included."""
        if not self._needed:
            return
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SYNC, self._folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, progress: Progress) -> None:
        """Wait until all that was written before this call is on the disk.

        Raises:
            InstallError: the disk failed, or does not take it.
        """
        if not self._needed:
            return
        self._wait(progress)
        self.start()  # the first run has done most of it; this one takes what came after it had begun
        self._wait(progress)

    def _wait(self, progress: Progress) -> None:
        child = self._child
        assert child is not None
        deadline = time.monotonic() + SYNC_TIMEOUT_S
        while child.poll() is None:
            if time.monotonic() > deadline:
                raise InstallError(
                    f"cannot write {self._folder} to its disk: not done after {SYNC_TIMEOUT_S:g} s; check the disk"
                )
            time.sleep(0.02)
            progress.advance(0)
        assert child.stderr is not None
        with child.stderr:
            reason = child.stderr.read(500).strip()
        if child.returncode != 0:
            raise InstallError(
                f"cannot write {self._folder} to its disk: {reason or child.returncode}; check the disk (dmesg)"
            )
