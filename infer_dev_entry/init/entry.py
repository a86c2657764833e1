"""The entrypoint: decide by the gates whether to be a mere proxy or to boot a fleet. Standard library only."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, Sequence

from infer_dev_entry.init.proxy import run_idle, run_proxy
from infer_dev_entry.rundir import client_run_dir
from infer_dev_entry.variables import GATES, read_values


def run_entry(
    command: Sequence[str], environ: Mapping[str, str], mask: Iterable[int], *, keeper: bool = False, parent: int = 0
) -> int:
    """Run as PID 1 (or as a subreaper when we are not) until done, and return the container's exit code.

    All signals must be blocked; `mask` is what was blocked before, for the command. `keeper` says that a fleet was
    started by hand: it ends when its servers are stopped, and with `parent` (a pid, 0 for none).
    """
    # A parent's SIG_IGN survives exec: the kernel would reap by itself then, and no status would ever come.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _hold_standard_descriptors()
    values, warnings = read_values(environ)
    if os.getpid() != 1:
        _become_subreaper()
    if keeper or any(values[name] for name in GATES):
        from infer_dev_entry.init.boot import run_fleet  # asyncio and structlog: only a fleet pays for them
        from infer_dev_entry.settings import parse_settings

        return run_fleet(parse_settings(environ), tuple(command), environ, mask=mask, keeper=keeper, parent=parent)
    log_format = str(values["log_format"])
    for warning in warnings:
        _print("warning", warning, log_format)
    if command:
        return run_proxy(command, environ, mask)
    _print("info", "all gates are off and there is no command: waiting for SIGTERM", log_format)
    return run_idle(lambda: os.path.join(client_run_dir(environ), "entry.pid"))


def _hold_standard_descriptors() -> None:
    """Open the missing ones of 0 to 2 on /dev/null: else our next file would take such a number, and get the log."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _become_subreaper() -> None:
    """Have orphans below us come to us instead of to PID 1 (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    import ctypes

    pr_set_child_subreaper = 36
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0)


def _print(level: str, message: str, log_format: str) -> None:
    """Write one log line in the format that structlog would use, without importing it."""
    if log_format == "json" or (not log_format and not os.isatty(2)):
        import json

        line = json.dumps({"level": level, "event": "entry.note", "message": message})
    else:
        line = f"{level:<8} {message}"
    try:
        os.write(2, (line + "\n").encode(errors="backslashreplace"))
    except OSError:
        return  # nobody reads our stderr; the command matters more
