"""Have supervisord blot secrets out of the logs that it shows (supervisorctl's `tail`, its web page), as we do.

Runs in supervisord's process. SGLang prints its whole list of arguments at the start, keys included. A part of a log
may begin within a secret, where nothing says that it is one, so it is read from the beginning of its first line on.
"""

from __future__ import annotations

import os
from typing import Any

from supervisor import http, rpcinterface
from supervisor.compat import as_string
from supervisor.http import NOT_DONE_YET

from infer_dev_entry.redact import redact_bytes

# Lines beyond this are looked at in parts.
LONGEST_LINE_BYTES = 64 * 1024
_read_file, _tail_file = rpcinterface.readFile, rpcinterface.tailFile


def redact_logs() -> None:
    """Put what redacts in the place of what supervisord reads logs with."""
    rpcinterface.readFile, rpcinterface.tailFile = read_file, tail_file
    http.tail_f_producer = RedactedTail


def read_file(filename: str, offset: int, length: int) -> bytes:
    """Read as supervisord does (a negative offset counts from the end), from the beginning of the first line on.

    Raises:
        ValueError: BAD_ARGUMENTS, or FAILED to read.
    """
    if offset < 0 and not length:
        offset = max(0, _size_of(filename) + offset)
    begin = find_line_start(filename, offset)
    data: bytes = _read_file(filename, begin, length + offset - begin if length else length)
    return redact_bytes(data)


def tail_file(filename: str, offset: int, length: int) -> list[Any]:
    """Return the text, the end of the file and whether there was more, as supervisord does."""
    text, end, overflow = _tail_file(filename, offset, length)
    if not text:
        return [text, end, overflow]
    begin = find_line_start(filename, max(0, end - length))
    return [as_string(redact_bytes(_read_file(filename, begin, end - begin))), end, overflow]


def find_line_start(filename: str, offset: int) -> int:
    """Return where the line begins that holds this byte, at most `LONGEST_LINE_BYTES` before it.

    Raises:
        ValueError: FAILED to read.
    """
    if offset <= 0:
        return offset  # the latter is refused by who reads
    back = max(0, offset - LONGEST_LINE_BYTES)
    before: bytes = _read_file(filename, back, offset - back)
    return back + before.rfind(b"\n") + 1


def _size_of(filename: str) -> int:
    try:
        return os.stat(filename).st_size
    except OSError:
        raise ValueError("FAILED") from None


class RedactedTail(http.tail_f_producer):  # type: ignore[misc]
    """What follows a log: whole lines (a progress bar's end with a carriage return), redacted."""

    def __init__(self, request: Any, filename: str, head: int) -> None:
        super().__init__(request, filename, head)
        self._rest = b""
        self.sz: int = find_line_start(filename, self.sz)

    def more(self) -> Any:
        """Return the next lines, or NOT_DONE_YET."""
        data = super().more()
        if not isinstance(data, bytes) or not data:
            return data  # nothing new, the note that the file was truncated, or the end
        data = self._rest + data
        end = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not end and len(data) > LONGEST_LINE_BYTES:
            end = len(data)
        self._rest = data[end:]
        return redact_bytes(data[:end]) if end else NOT_DONE_YET
