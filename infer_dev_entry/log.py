"""Configure structlog once, on an output that can never block: a reader who stalls costs lines, not supervision."""

from __future__ import annotations

import logging
import os
import select
import stat
from collections.abc import MutableMapping
from typing import Any

import structlog

# A pipe whose reader sleeps takes whole lines up to this size or none (pipe(7), PIPE_BUF).
_MAX_LINE_BYTES = 4096


class LineWriter:
    """Writes whole lines to a descriptor without ever waiting for its reader; lost lines are counted and reported.

    The descriptor's own flags stay as they are, as it is shared with the container's command.
    """

    def __init__(self, fd: int) -> None:
        self._fd = _reopen_nonblocking(fd)
        self._poller = select.poll()
        self._poller.register(self._fd, select.POLLOUT)
        self._lost = 0

    def write_line(self, line: str) -> None:
        """Write one line, cut to 4096 bytes, or drop it."""
        data = line.encode(errors="backslashreplace")
        if len(data) >= _MAX_LINE_BYTES:
            data = data[: _MAX_LINE_BYTES - 5] + b" ..."
        if self._lost and self._try_write(f"log: {self._lost} lines lost, as nobody read them\n".encode()):
            self._lost = 0
        if not self._try_write(data + b"\n"):
            self._lost += 1

    def _try_write(self, data: bytes) -> bool:
        try:
            if not self._poller.poll(0):
                return False
            return os.write(self._fd, data) == len(data)
        except OSError:
            return False


def _reopen_nonblocking(fd: int) -> int:
    """Open the pipe or terminal behind `fd` anew, non-blocking; where that is refused, `fd` itself must do.

    So it must for a file, which never blocks: opened anew it has an offset of its own, and others would overwrite us.
    A container's stderr may belong to another user; poll before each write then avoids all but a race with the command.
    """
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return fd


class _Logger:
    """The last link of structlog's chain: every level writes the rendered line."""

    def __init__(self, writer: LineWriter) -> None:
        self._writer = writer

    def msg(self, line: str) -> None:
        self._writer.write_line(line)

    log = debug = info = warn = warning = error = critical = exception = fatal = msg


def configure_log(log_format: str, level: str) -> None:
    """Set structlog up for this process: `log_format` is "console", "json" or "" (console on a TTY)."""
    console = log_format == "console" or (not log_format and os.isatty(2))
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=os.isatty(2), pad_event_to=22, pad_level=False, sort_keys=False)
        if console
        else structlog.processors.JSONRenderer()
    )
    writer = LineWriter(2)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
            structlog.processors.format_exc_info,
            *([] if console else [_order_keys]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_args: _Logger(writer),
        cache_logger_on_first_use=True,
    )


def _order_keys(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put what a reader looks for first at the front of a JSON line."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event}
    return first | dict(event)


def get_log() -> Any:
    """Return the logger; `log.info("server.ready", server="glm", after_s=93.1)`."""
    return structlog.get_logger()
