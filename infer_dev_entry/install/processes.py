"""The one door to a child tool (uv, pixi, a verify command): bounded in time and output, and never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from infer_dev_entry.errors import InstallError

TAIL_LINES = 40
LINE_MAX_CHARS = 500
# SIGTERM, this long to clean up, SIGKILL: an install that is told to end is gone within two seconds.
GRACE_S = 1.0
TICK_S = 1.0

_READ_BYTES = 65536
_REAP_DEADLINE_S = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """How a tool ended: its status (negative: the signal), and the last lines of stdout and stderr together."""

    returncode: int
    tail: tuple[str, ...]

    @property
    def last_line(self) -> str:
        """The last line that says something, or how the tool ended."""
        return next((line for line in reversed(self.tail) if line.strip()), self.ending)

    @property
    def ending(self) -> str:
        """`exit status 2` or `signal 9 (SIGKILL)`."""
        if self.returncode >= 0:
            return f"exit status {self.returncode}"
        number = -self.returncode
        with contextlib.suppress(ValueError):
            return f"signal {number} ({signal.Signals(number).name})"
        return f"signal {number}"


class RunTool(Protocol):
    """The shape of `run_tool`, for those who take a recorder in its place."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None = None,
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
        on_tick: Callable[[], None] | None = None,
    ) -> ToolResult:
        """Run a tool; see `run_tool`."""


def run_tool(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | None = None,
    timeout_s: float,
    on_line: Callable[[str], None] | None = None,
    on_tick: Callable[[], None] | None = None,
) -> ToolResult:
    """Run a tool in its own process group, with exactly that environment and no stdin, and wait for it.

    Whatever ends the wait early (a signal's exception, the timeout, an error in `on_line`) ends the whole group first.
    The tool also dies with this process, so that a killed installer leaves nothing writing into the workspace.
    `on_line` gets every line of its output; `on_tick` is called about once a second, for progress to be looked up.

    Raises:
        InstallError: it cannot be started, or has not ended after `timeout_s` seconds.
    """
    child = _spawn(argv, env, cwd)
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    lines = _Lines(on_line)
    deadline = time.monotonic() + timeout_s
    try:
        with child.stdout:
            if not _pump(child.pid, child.stdout.fileno(), lines, deadline, on_tick):
                raise InstallError(
                    f"cannot run {argv[0]}: it has not ended after {timeout_s:g} s and was stopped; "
                    f"last line: {lines.last() or '(none)'}"
                )
            # The leader is dead but not reaped, so the group's number cannot be another's yet.
            _signal_group(child.pid, signal.SIGKILL)
            _drain(child.stdout.fileno(), lines)
            lines.finish()
    except BaseException:
        _end_group(child)
        raise
    return ToolResult(returncode=child.wait(_REAP_DEADLINE_S), tail=lines.tail())


def _spawn(argv: Sequence[str], env: Mapping[str, str], cwd: str | None) -> subprocess.Popen[bytes]:
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec only the call itself is left to do
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    try:
        return subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InstallError(f"cannot run {argv[0]}: {reason}; check that it exists and may be executed") from error


def _pump(pid: int, output: int, lines: _Lines, deadline: float, on_tick: Callable[[], None] | None) -> bool:
    """Feed the tool's output to `lines` until its leader has ended; False when the deadline comes first."""
    watch = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(watch, select.POLLIN)
        poller.register(output, select.POLLIN)
        next_tick = time.monotonic() + TICK_S
        while (left_s := deadline - time.monotonic()) > 0:
            ready = {fd for fd, _ in poller.poll(min(left_s, TICK_S) * 1000)}
            if on_tick is not None and time.monotonic() >= next_tick:
                on_tick()
                next_tick = time.monotonic() + TICK_S
            if watch in ready:
                return True
            if output in ready and not lines.feed(_read(output)):
                poller.unregister(output)  # it closed its output; only its end is left to wait for
        return False
    finally:
        os.close(watch)


def _read(fd: int) -> bytes | None:
    """Return what is there; b"" at the end, None when nothing is there yet."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None


def _drain(output: int, lines: _Lines) -> None:
    """Take what the pipe still holds; a process that left the group may keep it open, and is not waited for."""
    for _ in range(64):  # a pipe holds at most 1 MiB (fcntl(2), F_SETPIPE_SZ)
        data = _read(output)
        if not data:
            return
        lines.feed(data)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM the group, wait a little, SIGKILL what is left, and reap the leader, even when a second signal comes."""
    try:
        if child.returncode is None:
            _signal_group(child.pid, signal.SIGTERM)
            _wait_group(child.pid, time.monotonic() + GRACE_S)
    finally:
        if child.returncode is None:
            _signal_group(child.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a tool in an uninterruptible read stays behind
                child.wait(_REAP_DEADLINE_S)


def _wait_group(pid: int, deadline: float) -> None:
    """Wait until the leader has ended (not reaped), at most to the deadline."""
    watch = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(watch, select.POLLIN)
        poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
    finally:
        os.close(watch)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


class _Lines:
    """Cuts a byte stream into lines (`\\n` or a progress bar's `\\r`) and keeps the last few."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self._on_line = on_line
        self._kept: deque[str] = deque(maxlen=TAIL_LINES)
        self._open = b""

    def feed(self, data: bytes | None) -> bool:
        """Take more; False at the end of the stream."""
        if data is None:
            return True
        *whole, self._open = (self._open + data.replace(b"\r", b"\n")).split(b"\n")
        for line in whole:
            self._keep(line)
        if len(self._open) > _READ_BYTES:  # a line without end must not grow without bound
            self.finish()
        return bool(data)

    def finish(self) -> None:
        """Take what is left as a line."""
        self._keep(self._open)
        self._open = b""

    def last(self) -> str:
        """Return the last line that is kept."""
        return self._kept[-1] if self._kept else ""

    def tail(self) -> tuple[str, ...]:
        """Return the lines that are kept."""
        return tuple(self._kept)

    def _keep(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()[:LINE_MAX_CHARS]
        if not text:
            return
        self._kept.append(text)
        if self._on_line is not None:
            self._on_line(text)
