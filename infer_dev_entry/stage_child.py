"""What the children of PID 1 that carry out a stage of boot have in common: signals, the answer's file, the exit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

from infer_dev_entry.log import configure_log, get_log
from infer_dev_entry.settings import Settings, parse_settings

# Whoever ends us waits for two seconds, PID 1 a little less; a call that no signal breaks must not outlast that.
_STOP_S = 1.3


class Interrupted(BaseException):
    """SIGTERM, SIGINT or SIGHUP came; it passes every `except Exception` on its way out."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM, SIGINT and SIGHUP into `Interrupted` for the work below; further ones are ignored."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        threading.Thread(target=_exit_late, args=(128 + number,), daemon=True).start()
        raise Interrupted(number)

    for number in numbers:
        if before[number] is not signal.SIG_IGN:  # nohup
            signal.signal(number, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            for number, handler in before.items():
                signal.signal(number, handler)


def _exit_late(code: int) -> None:
    time.sleep(_STOP_S)
    os._exit(code)


def run_stage(answer: Callable[[Settings], Mapping[str, Any]], *, interrupted: str) -> int:
    """Have `answer` do the work, and write what it returns as JSON to the file that is named as the only argument.

    Returns 0 when that is written, and 128+N when signal N ended the work, which is logged as the event `interrupted`.
    """
    settings = parse_settings(os.environ)
    configure_log(settings.log_format, settings.log_level)
    # Now, and not when there is an answer: by then we may be a user who cannot write where PID 1 reads.
    handle = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with interruptible():
            answered = answer(settings)
    except Interrupted as stop:
        get_log().warning(interrupted, signal=str(stop))
        return stop.exit_code
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(answered, file)
    return 0


def leave(code: int) -> NoReturn:
    """End at once: all is written, while the interpreter's end takes 40 ms, in which threads of libraries still run."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def render_unreadable(error: ImportError, verb: str, exit_code: int) -> dict[str, Any]:
    """Return the same for a module that is imported late: after the change of user it may be out of reach."""
    fault = f"cannot {verb} as uid {os.geteuid()}: {error}; let that user read {sys.prefix} and {sys.base_prefix}"
    return {"faults": [fault], "exit_code": exit_code}
