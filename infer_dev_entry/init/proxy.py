"""PID 1 with nothing to boot: run CMD as tini and dumb-init do, or wait for a stop. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence

from infer_dev_entry.init.spawn import exit_code, signal_group, spawn_command

# The terminal's own stop signals: pass them on, then stop as well, so that the shell above sees the job stop. PID 1
# cannot be stopped from inside its namespace; the kernel ignores the SIGSTOP then.
_SUSPEND = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_STOP = (signal.SIGTERM, signal.SIGINT)


def run_proxy(command: Sequence[str], environ: Mapping[str, str], mask: Iterable[int]) -> int:
    """Run the command and return its exit code; forward every signal to its process group, reap every orphan.

    All signals must be blocked already: they are taken one by one with sigwait, so none is lost and none interrupts.
    `mask` is the signal mask that the command gets.
    """
    reap_all()  # whoever exec'ed us may have left dead children, of whom no signal tells any more
    child = spawn_command(command, environ, mask)
    while True:
        number = signal.sigwait(signal.valid_signals())
        if number == signal.SIGCHLD:
            status = reap_all().get(child)
            if status is not None:
                return exit_code(status)
        else:
            signal_group(child, number)
            if number in _SUSPEND:
                os.kill(os.getpid(), signal.SIGSTOP)


def run_idle(find_pid_file: Callable[[], str]) -> int:
    """Wait for SIGTERM or SIGINT, reaping orphans, and return 0.

    A fleet that was started by hand meanwhile is given its drain first: its keeper, by its pid file, is told and waited
    for. A second signal is passed on too and cuts that short.
    """
    keeper = 0
    reap_all()  # whoever exec'ed us may have left dead children, of whom no signal tells any more
    while True:
        number = signal.sigwait(signal.valid_signals())
        if number == signal.SIGCHLD:
            gone = reap_all()
            if keeper in gone:
                return 0
        elif number in _STOP:
            keeper = keeper or read_keeper(find_pid_file())
            if not keeper:
                return 0
            os.kill(keeper, number)


def read_keeper(pid_file: str) -> int:
    """Return the pid of a live keeper that was reparented to us, or 0."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read(32))
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
        if int(parent) == os.getpid() and state not in "ZX":
            return pid
    return 0


def reap_all() -> dict[int, int]:
    """Reap every dead child; return wait statuses by pid."""
    statuses: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            statuses[pid] = status
    return statuses
