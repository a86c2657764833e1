"""Read the end of a server's log, bounded, with what looks like a secret blotted out."""

from __future__ import annotations

import os
import re

from infer_dev_entry.redact import redact_line

_BLOCK_BYTES = 64 * 1024
_MAX_LINE_CHARS = 300
# supervisord's child writes this after the line that says why, such as "couldn't exec …: EACCES".
_EPILOGUE = "supervisor: child process was not spawned"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def read_tail(path: str, lines: int, secrets: tuple[str, ...] = ()) -> list[str]:
    """Return up to `lines` last non-empty lines of the file's last 64 KiB; none when it cannot be read.

    `secrets` are values to blot out beside what looks like one.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _BLOCK_BYTES))
            text = file.read(_BLOCK_BYTES).decode(errors="replace")
    except OSError:
        return []
    wanted = [line for line in text.splitlines() if line.strip()][-lines:]
    return [clean_line(line, secrets) for line in wanted]


def read_last_line(path: str, secrets: tuple[str, ...] = ()) -> str:
    """Return the last non-empty line that tells something, or ""."""
    tail = [line for line in read_tail(path, 2, secrets) if line != _EPILOGUE]
    return tail[-1] if tail else ""


def clean_line(line: str, secrets: tuple[str, ...] = ()) -> str:
    """Drop control sequences, redact secrets, and cut to 300 characters."""
    line = redact_line(_CONTROL.sub("", line), secrets).strip()
    return line if len(line) <= _MAX_LINE_CHARS else line[: _MAX_LINE_CHARS - 1] + "…"


def clean_lines(text: str, count: int, secrets: tuple[str, ...] = (), limit_chars: int = 1000) -> tuple[str, ...]:
    """Clean the last `count` non-empty lines of a text, their indentation kept."""
    wanted = [line for line in text.splitlines() if line.strip()][-count:]
    # What is far beyond the limit is not worth the search for secrets.
    cleaned = (redact_line(_CONTROL.sub("", line[: 4 * limit_chars]), secrets).rstrip() for line in wanted)
    return tuple(line if len(line) <= limit_chars else line[: limit_chars - 1] + "…" for line in cleaned)
