"""Run the tools of a build (uv, pip, pixi, pixi-pack) on any POSIX host; nothing they print shows a credential."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from infer_dev_entry.errors import BuildError

_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"]+@")  # to the last @: a careless password has one too
_CONDA_TOKEN = re.compile(r"(/t/)[^/\s'\"]+")
_QUERY_SECRET = re.compile(
    r"(?i)([?&](?:[\w-]*token|[\w-]*secret|password|[\w-]*sig(?:nature)?|api[_-]?key)=)[^&\s'\"]+"
)
_GRACE_S = 5.0
_TAIL_LINES = 40
_LINE_MAX_CHARS = 500
_REASON_LINES = 6
_REASON_MAX_CHARS = 600
# uv and pixi draw a tree of causes before their words.
_DRAWING = re.compile(r"^(?:error:|cause:|Caused by:|ERROR:|[×╰├│─▶>\s]+)+\s*")


def redact(text: str) -> str:
    """Mask what is secret in the URLs of a text: user and password, conda's `/t/TOKEN/`, tokens in a query."""
    text = _CREDENTIALS.sub("***@", text)
    return _QUERY_SECRET.sub(r"\1***", _CONDA_TOKEN.sub(r"\1***", text))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRun:
    """How a tool ended; `tail` is its last lines, redacted."""

    returncode: int
    tail: tuple[str, ...]

    @property
    def reason(self) -> str:
        """What most likely says why it failed: the last error and its causes, or the last line, as one line."""
        errors = [at for at, line in enumerate(self.tail) if re.match(r"\s*error", line, re.IGNORECASE)]
        crosses = [at for at, line in enumerate(self.tail) if line.lstrip().startswith("×")]
        start = errors[-1] if errors else crosses[0] if crosses else -1
        lines = self.tail[start:]
        words = [_DRAWING.sub("", line) for line in lines[:_REASON_LINES]]
        return ": ".join(word for word in words if word)[:_REASON_MAX_CHARS] or f"exit status {self.returncode}"


def run_build_tool(
    argv: Sequence[str],
    *,
    environ: Mapping[str, str],
    cwd: str | None = None,
    timeout_s: float,
    on_line: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> ToolRun:
    """Run a tool in its own process group and wait; stdout and stderr arrive together, redacted, line by line.

    The installer's `run_tool` needs Linux; a bundle is built on whatever host has a network. `stop`, set by another
    thread, ends the tool.

    Raises:
        BuildError: it cannot be started, or ran longer than `timeout_s` seconds and was ended.
    """
    try:
        child = subprocess.Popen(
            list(argv),
            env=dict(environ),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise BuildError(f"cannot run {argv[0]}: {error.strerror}; check that it exists and may be executed") from error
    finished, expired = threading.Event(), threading.Event()
    watch = threading.Thread(
        target=_watch, args=(child, finished, expired, stop, time.monotonic() + timeout_s), daemon=True
    )
    watch.start()
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        _read_lines(child, tail, on_line)
        child.wait()
    finally:
        finished.set()
        watch.join()
        _end(child)
    if expired.is_set():
        raise BuildError(f"cannot finish {os.path.basename(argv[0])}: it ran longer than {timeout_s:g} s and was ended")
    return ToolRun(returncode=child.returncode, tail=tuple(tail))


def _watch(
    child: subprocess.Popen[bytes],
    finished: threading.Event,
    expired: threading.Event,
    stop: threading.Event | None,
    deadline: float,
) -> None:
    """End the tool when it is told to stop or its time is up."""
    while not finished.wait(0.1):
        if time.monotonic() > deadline:
            expired.set()
        if expired.is_set() or (stop and stop.is_set()):
            _end(child)
            return


def _read_lines(child: subprocess.Popen[bytes], tail: deque[str], on_line: Callable[[str], None] | None) -> None:
    assert child.stdout is not None
    with child.stdout:
        for raw in child.stdout:
            line = redact(raw.decode(errors="replace").rstrip().rpartition("\r")[2])[:_LINE_MAX_CHARS]
            if line:
                tail.append(line)
                if on_line:
                    on_line(line)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the tool and what it started, if it still runs; reap it."""
    if child.poll() is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_GRACE_S)
            return


def retry(
    attempt: Callable[[], ToolRun],
    *,
    what: str,
    retries: int,
    sleep_s: float,
    note: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> ToolRun:
    """Call `attempt` until it succeeds, at most 1 + `retries` times, with pauses of `backoff_s`.

    Raises:
        BuildError: it never did; the message holds the last reason.
    """
    for number in range(retries + 1):
        run = attempt()
        if run.returncode == 0:
            return run
        if number < retries:
            pause_s = backoff_s(sleep_s, number)
            note(f"{what} failed ({run.reason}); attempt {number + 2} of {retries + 1} in {pause_s:g} s")
            sleep(pause_s)
    times = "once" if retries == 0 else f"{retries + 1} times"
    raise BuildError(f"cannot {what}: it failed {times}: {run.reason}; see its output above, or raise --retries")


def backoff_s(sleep_s: float, number: int) -> float:
    """Return the pause after failure `number` (from 0): doubled each time, at most five minutes."""
    return float(min(sleep_s * 2 ** min(number, 20), 300.0))
