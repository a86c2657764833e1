"""Have supervisord blot secrets out of the logs that it shows (supervisorctl's `tail`, its web page), as we do.

Runs in supervisord's only thread, so no call looks at much more than `MOST_BYTES`. SGLang prints its whole list of
arguments at the start, keys included. A part of a log may begin or end within a secret, where nothing says that it is
one, so whole lines are looked at: more than was asked for comes back then.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from supervisor import http, rpcinterface
from supervisor.compat import as_string
from supervisor.http import NOT_DONE_YET

from infer_dev_entry.redact import redact_bytes

MOST_BYTES = 256 * 1024
# Lines beyond this are looked at in parts.
LONGEST_LINE_BYTES = 64 * 1024
# The end of a line that is still being written is shown after so long without more.
QUIET_S = 1.0
_OPEN_PASSWORD = re.compile(rb"(://[^\s/@:'\"]*:)[^\s@]+\Z")  # the `@` that would tell may be yet to come
_read_file, _tail_file = rpcinterface.readFile, rpcinterface.tailFile


def redact_logs() -> None:
    """Put what redacts in the place of what supervisord reads logs with."""
    rpcinterface.readFile, rpcinterface.tailFile = read_file, tail_file
    http.tail_f_producer = RedactedTail


def read_file(filename: str, offset: int, length: int) -> bytes:
    """Read whole lines; a negative offset counts from the end, and a length of 0 goes up to it, as in supervisord.

    Of more than `MOST_BYTES` the last are returned.

    Raises:
        ValueError: BAD_ARGUMENTS, or FAILED to read.
    """
    if length < 0 or (offset < 0 and length):
        raise ValueError("BAD_ARGUMENTS")
    size = _size_of(filename)
    begin = max(0, size + offset) if offset < 0 else offset
    end = min(size, begin + length) if length else size
    if begin >= end:
        return b""
    return _read_lines(filename, begin, end)


def tail_file(filename: str, offset: int, length: int) -> list[Any]:
    """Return the text, the end of the file and whether there was more, as supervisord does."""
    text, end, overflow = _tail_file(filename, offset, min(length, MOST_BYTES))
    if not text:
        return [text, end, overflow]
    return [as_string(_read_lines(filename, max(0, end - length), end)), end, overflow]


def _read_lines(filename: str, begin: int, end: int) -> bytes:
    begin = find_line_start(filename, max(begin, end - MOST_BYTES))
    data: bytes = _read_file(filename, begin, end - begin)
    if not data.endswith(b"\n"):
        rest: bytes = _read_file(filename, end, LONGEST_LINE_BYTES)
        data += rest[: rest.find(b"\n") + 1] or rest
    return _redacted(data)


def find_line_start(filename: str, offset: int) -> int:
    """Return where the line begins that holds this byte, at most `LONGEST_LINE_BYTES` before it.

    Raises:
        ValueError: FAILED to read.
    """
    if offset <= 0:
        return 0
    back = max(0, offset - LONGEST_LINE_BYTES)
    before: bytes = _read_file(filename, back, offset - back)
    return back + before.rfind(b"\n") + 1


def _redacted(data: bytes) -> bytes:
    return _OPEN_PASSWORD.sub(rb"\1***", redact_bytes(data))


def _size_of(filename: str) -> int:
    try:
        return os.stat(filename).st_size
    except OSError:
        raise ValueError("FAILED") from None


class RedactedTail(http.tail_f_producer):  # type: ignore[misc]
    """What follows a log: whole lines, redacted; one that stays unfinished is shown, and once more when it is whole."""

    sz: int

    def __init__(self, request: Any, filename: str, head: int) -> None:
        super().__init__(request, filename, head)
        self.sz = find_line_start(filename, self.sz)
        self._line = b""  # what is not shown yet, or was shown unfinished
        self._grew_at = time.monotonic()
        self._is_shown = False

    def more(self) -> Any:
        """Return the next lines, NOT_DONE_YET, or nothing when the file cannot be read any more."""
        try:
            self._follow()
            size = self._fsize()
            if size < self.sz:
                self.sz, self._line, self._is_shown = 0, b"", False
                return b"==> File truncated <==\n"
            self.file.seek(self.sz)
            data = self.file.read(min(MOST_BYTES, size - self.sz))
        except (OSError, ValueError):
            return b""  # it was closed
        self.sz += len(data)
        return self._take(data)

    def _take(self, data: bytes) -> Any:
        now = time.monotonic()
        if not data:
            if not self._line or self._is_shown or now - self._grew_at < QUIET_S:
                return NOT_DONE_YET
            self._is_shown = True
            return _redacted(self._line)
        self._grew_at = now
        text = self._line + data
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        if not end and len(text) > LONGEST_LINE_BYTES:
            end = len(text)
        self._line = text[end:]
        if not end:
            return NOT_DONE_YET
        again = b"\n" if self._is_shown else b""
        self._is_shown = False
        return again + _redacted(text[:end])
