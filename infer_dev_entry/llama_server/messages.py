"""What the launcher tells its reader: lines for the log, and the reason in an error."""

from __future__ import annotations

from contextlib import suppress


def say(line: str) -> None:
    """Print a line for the log at once; a reader that has gone is noticed elsewhere."""
    with suppress(BrokenPipeError):
        print(line, flush=True)


def reason_of(error: Exception) -> str:
    """Return why something failed, in one phrase and without an errno."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
