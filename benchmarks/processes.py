"""Processes under measurement: PID namespaces that end as a whole, and what /proc tells of those inside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

_TICKS = os.sysconf("SC_CLK_TCK")
# A user namespace of its own lets an ordinary user measure too, where the kernel allows it.
UNSHARE = ("unshare", *(() if os.geteuid() == 0 else ("--map-root-user",)), "--pid", "--fork", "--mount-proc")


def now_s() -> float:
    """Return seconds since boot: the clock of a process's start time in /proc, so that the two can be compared."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wait_until(predicate: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait until `predicate()` is true.

    Raises:
        TimeoutError: it is not within `timeout_s`; `what` says what was waited for.
    """
    deadline = now_s() + timeout_s
    while not predicate():
        if now_s() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.01)


class Namespace:
    """Runs a command as PID 1 of a namespace of its own. Leaving the `with` block kills everything inside."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
    ) -> None:
        self.process = subprocess.Popen(
            [*UNSHARE, *argv], env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
        )
        self.init_pid = 0

    def __enter__(self) -> Namespace:
        try:
            wait_until(lambda: bool(children_of(self.process.pid)), 10, "the namespace's first process")
        except TimeoutError:
            self.process.kill()
            raise
        self.init_pid = children_of(self.process.pid)[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.init_pid, signal.SIGKILL)  # the kernel ends the rest of the namespace with its PID 1
        self.process.wait(10)

    def pids(self) -> list[int]:
        """Return the pids, as we see them, of PID 1 and everything below it."""
        found = [self.init_pid]
        for pid in found:
            found += children_of(pid)
        return found

    def pid_of(self, inner_pid: int) -> int:
        """Return our pid of the process that is `inner_pid` inside.

        Raises:
            ProcessLookupError: there is none.
        """
        for pid in self.pids():
            if read_status(pid).get("NSpid", "").split()[-1:] == [str(inner_pid)]:
                return pid
        raise ProcessLookupError(f"no process {inner_pid} in the namespace")

    def kill(self, inner_pid: int, number: int = signal.SIGKILL) -> float:
        """Signal a process inside and return the time at which that was done."""
        pid = self.pid_of(inner_pid)
        at = now_s()
        os.kill(pid, number)
        return at

    def stop(self, timeout_s: float) -> float:
        """Send SIGTERM to PID 1 and return the seconds until it is gone."""
        began = now_s()
        os.kill(self.init_pid, signal.SIGTERM)
        self.process.wait(timeout_s)
        return now_s() - began


def children_of(pid: int) -> list[int]:
    """Return the children of a process; none when it is gone."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        texts = [Path(f"/proc/{pid}/task/{task}/children").read_text("ascii") for task in tasks]
    except OSError:
        return []
    return [int(word) for text in texts for word in text.split()]


def read_status(pid: int) -> dict[str, str]:
    """Return /proc/<pid>/status; empty when the process is gone."""
    return _read_pairs(f"/proc/{pid}/status")


def _read_pairs(path: str) -> dict[str, str]:
    try:
        lines = Path(path).read_text("utf-8", "replace").splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def command_of(pid: int) -> str:
    """Return a process's command line with blanks between the words."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def started_at_s(pid: int) -> float:
    """Return when a process was forked, on the clock of `now_s`; the kernel cuts it down to whole ticks of 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    return int(fields[19]) / _TICKS


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, all threads together.

    The scheduler's own count is exact; utime + stime (10 ms a tick) stands in where the kernel does not keep it.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        tasks = os.listdir(f"/proc/{pid}/task")
        texts = [Path(f"/proc/{pid}/task/{task}/schedstat").read_text("ascii") for task in tasks]
        exact = sum(int(text.split()[0]) for text in texts)
        if exact:
            return exact / 1e9
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_mb(pid: int) -> float:
    """Return the resident memory in MB (10⁶ bytes), shared pages counted whole."""
    return int(read_status(pid)["VmRSS"].split()[0]) * 1024 / 1e6


def pss_mb(pid: int) -> float:
    """Return the proportional share of resident memory in MB: a page shared by n processes counts as 1/n."""
    return int(_read_pairs(f"/proc/{pid}/smaps_rollup")["Pss"].split()[0]) * 1024 / 1e6
