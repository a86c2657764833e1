"""Copy the lines of every server's log to stdout behind `[name]`, without secrets; runs as a process of its own.

A reader that does not read stalls this process and nothing else. The list of files is read again when it changes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO

from infer_dev_entry.redact import redact_bytes

PERIOD_S = 0.2
_MAX_LINE_BYTES = 64 * 1024
_MAX_READ_BYTES = 4 * 1024 * 1024


class FollowedFile:
    """Reads whole new lines from a file that may be rotated, truncated or not there yet.

    It begins at the present end, or at the byte `start`.
    """

    def __init__(self, path: str, *, from_end: bool, start: int = 0) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._inode = 0
        self._part = b""
        self._from_end = from_end
        self._start = start

    def read_lines(self) -> list[bytes]:
        """Return the lines that were completed since the last call, without their ends."""
        lines = self._read()
        if self._was_rotated():
            self._close()
            lines += self._read()
        return lines

    def _read(self) -> list[bytes]:
        if self._file is None and not self._open():
            return []
        assert self._file is not None
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)  # truncated in place
        *lines, self._part = (self._part + self._file.read(_MAX_READ_BYTES)).split(b"\n")
        if len(self._part) > _MAX_LINE_BYTES:
            lines.append(self._part)
            self._part = b""
        return lines

    def _open(self) -> bool:
        try:
            self._file = open(self._path, "rb")  # noqa: SIM115 - kept open to follow it
        except OSError:
            self._from_end, self._start = False, 0  # a file that appears later is new from its start
            return False
        self._inode = os.fstat(self._file.fileno()).st_ino
        self._file.seek(0 if self._from_end else self._start, os.SEEK_END if self._from_end else os.SEEK_SET)
        self._from_end, self._start = False, 0
        return True

    def _was_rotated(self) -> bool:
        try:
            return self._file is not None and Path(self._path).stat().st_ino != self._inode
        except OSError:
            return False

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._part = None, b""


class Mirror:
    """Follows the files of a JSON object name → [path, first byte], read again whenever that list is replaced."""

    def __init__(self, list_path: str) -> None:
        self._list_path = list_path
        self._stamp = (0, 0)
        self._files: dict[str, tuple[str, FollowedFile]] = {}

    def turn(self) -> bytes:
        """Return what is to be printed now."""
        self._read_list()
        out = []
        for name, (_, followed) in self._files.items():
            prefix = f"[{name}] ".encode()
            lines = followed.read_lines()
            if lines:
                out += [prefix + line + b"\n" for line in redact_bytes(b"\n".join(lines)).split(b"\n")]
        return b"".join(out)

    def _read_list(self) -> None:
        try:
            info = Path(self._list_path).stat()
            stamp = (info.st_ino, info.st_mtime_ns)
            if stamp == self._stamp:
                return
            wanted = json.loads(Path(self._list_path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        self._stamp = stamp
        kept = {name: item for name, item in self._files.items() if wanted.get(name, [""])[0] == item[0]}
        for name, (path, start) in wanted.items():
            kept.setdefault(name, (path, FollowedFile(path, from_end=False, start=start)))
        self._files = kept


def main() -> int:
    """Mirror until SIGTERM or until the entry (second argument: its pid) is no longer our parent."""
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stop.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    mirror, parent = Mirror(sys.argv[1]), int(sys.argv[2])
    while True:
        last = bool(stop) or os.getppid() != parent
        text = mirror.turn()
        try:
            while text:
                text = text[os.write(1, text) :]
        except OSError:
            return 1  # nobody will read again
        if last:
            return 0
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    sys.exit(main())
