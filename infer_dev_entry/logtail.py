"""Read the end of a server's log, bounded, with what looks like a secret blotted out."""

from __future__ import annotations

import os
import re

_BLOCK_BYTES = 64 * 1024
_MAX_LINE_CHARS = 300
# supervisord's child writes this after the line that says why, such as "couldn't exec …: EACCES".
_EPILOGUE = "supervisor: child process was not spawned"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
# SGLang prints its keys in the start-up line: api_key='…', admin_api_key='…'.
_SECRET = re.compile(r"(?i)((?:api[_-]?key|token|secret|password|authorization)['\"]?\s*[=:]\s*)(?:bearer\s+)?"
                     r"('[^']*'|\"[^\"]*\"|[^\s,)}]+)")  # fmt: skip


def read_tail(path: str, lines: int) -> list[str]:
    """Return up to `lines` last non-empty lines of the file's last 64 KiB; none when it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _BLOCK_BYTES))
            text = file.read(_BLOCK_BYTES).decode(errors="replace")
    except OSError:
        return []
    wanted = [line for line in text.splitlines() if line.strip()][-lines:]
    return [clean_line(line) for line in wanted]


def read_last_line(path: str) -> str:
    """Return the last non-empty line that tells something, or ""."""
    tail = [line for line in read_tail(path, 2) if line != _EPILOGUE]
    return tail[-1] if tail else ""


def clean_line(line: str) -> str:
    """Drop control sequences, redact secrets, and cut to 300 characters."""
    line = _SECRET.sub(r"\1***", _CONTROL.sub("", line)).strip()
    return line if len(line) <= _MAX_LINE_CHARS else line[: _MAX_LINE_CHARS - 1] + "…"
