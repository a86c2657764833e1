"""Spawn processes from PID 1: the container's command with the terminal, and our own helpers without a shell."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterable, Mapping, Sequence

# Python ignores these at start-up; a child must not inherit that.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)


def spawn_command(argv: Sequence[str], environ: Mapping[str, str], mask: Iterable[int] = ()) -> int:
    """Fork and exec the container's command in its own process group, which becomes the terminal's foreground.

    That happens between fork and exec, so that the command can never find itself in the background (bash would stop).
    No signal is lost meanwhile: all are blocked, and the child opens up to `mask`, the signal mask that we were started
    with, when every disposition is the default again. The child exits 127 when the program is not found and 126 when it
    cannot be executed, as shells do.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with contextlib.suppress(OSError):  # the child does the same; whoever comes first
            os.setpgid(pid, pid)
        return pid
    try:
        os.setpgid(0, 0)
        give_terminal(os.getpid())
        _reset_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvpe(argv[0], list(argv), dict(environ))
    except OSError as error:
        os.write(2, f"infer-dev entry: cannot run {argv[0]}: {os.strerror(error.errno or 0)}\n".encode())
        os._exit(127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126)
    finally:
        os._exit(126)
    raise AssertionError("unreachable")


def _reset_signals() -> None:
    """Undo Python's handlers and what it ignores; what our parent had us ignore (nohup) stays ignored."""
    for number in signal.valid_signals():
        if number in _IGNORED_BY_PYTHON or callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def give_terminal(pgid: int) -> None:
    """Make process group `pgid` the foreground of our controlling terminal; no terminal is no error.

    From the background this raises SIGTTOU, so block it for the call.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
    try:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, pgid)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spawn_helper(
    argv: Sequence[str], environ: Mapping[str, str], *, output: str | None = None, channel: int | None = None
) -> int:
    """Spawn one of our own children in a process group of its own, reading nothing.

    Its own group keeps a Ctrl-C in our terminal from reaching it. stdout and stderr go to the file `output`, or stay
    ours. `channel` is a descriptor that becomes both its stdin and its stdout. posix_spawn runs no Python between fork
    and exec.

    Raises:
        OSError: the program cannot be executed.
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    ]
    if channel is not None:
        actions = [(os.POSIX_SPAWN_DUP2, channel, 0), (os.POSIX_SPAWN_DUP2, channel, 1)]
    if output is not None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        actions += [(os.POSIX_SPAWN_OPEN, 1, output, flags, 0o600), (os.POSIX_SPAWN_DUP2, 1, 2)]
    return os.posix_spawn(
        argv[0],
        list(argv),
        dict(environ),
        file_actions=actions,
        setpgroup=0,
        setsigmask=(),
        setsigdef=_IGNORED_BY_PYTHON,
    )


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a child's process group; a group that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def exit_code(wait_status: int) -> int:
    """Return the exit code that a shell would report: the status, or 128+N for death by signal N."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code
