"""Follow the logs of servers that start: which phase they are in, and when they last wrote."""

from __future__ import annotations

import os
from dataclasses import dataclass

from infer_dev_entry.phases import LONGEST_MARKER_BYTES, first_phase, latest_phase
from infer_dev_entry.regular_file import open_regular

# A log that grows faster than this between two looks (a second) is not read whole: its newest part is.
_MAX_READ_BYTES = 256 * 1024


@dataclass(slots=True, kw_only=True)
class LogFollower:
    """Reads what a log has grown by since the start of its server. `follow` runs in a thread, one call at a time."""

    engine: str
    path: str
    phase: str
    inode: int
    offset: int
    carry: bytes = b""

    @classmethod
    def at_end(cls, engine: str, path: str) -> LogFollower:
        """Begin at the log's end, before the server starts: what stands there is of earlier starts."""
        try:
            info = os.stat(path)
        except OSError:
            return cls(engine=engine, path=path, phase=first_phase(engine), inode=0, offset=0)
        return cls(engine=engine, path=path, phase=first_phase(engine), inode=info.st_ino, offset=info.st_size)

    def follow(self) -> bool | None:
        """Read on and note the phase; return whether the log has grown, or None when it cannot be read."""
        try:
            handle = open_regular(self.path)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        try:
            return self._read_on(handle, os.fstat(handle))
        except OSError:
            return None
        finally:
            os.close(handle)

    def _read_on(self, handle: int, info: os.stat_result) -> bool:
        if info.st_ino != self.inode or info.st_size < self.offset:  # rotated, or cut
            self.inode, self.offset, self.carry = info.st_ino, 0, b""
        if info.st_size == self.offset:
            return False
        start = max(self.offset, info.st_size - _MAX_READ_BYTES)
        new = os.pread(handle, info.st_size - start, start)
        self.offset = start + len(new)
        self.phase = latest_phase(self.engine, self.phase, self.carry + new)
        self.carry = (self.carry + new)[-LONGEST_MARKER_BYTES:]  # a marker may be written in two pieces
        return True
