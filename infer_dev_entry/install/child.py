"""The boot stage that installs: a child of PID 1 that becomes the servers' user, installs, and writes its answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from types import FrameType
from typing import Any, NoReturn

from infer_dev_entry.errors import EntryError, InstallError
from infer_dev_entry.init.owner import Owner, find_owner
from infer_dev_entry.install.marker import make_request
from infer_dev_entry.install.progress import make_progress
from infer_dev_entry.log import configure_log, get_log
from infer_dev_entry.settings import Settings, parse_settings

# Whoever ends us waits for two seconds, PID 1 a little less; a call that no signal breaks must not outlast that.
_STOP_S = 1.3


class Interrupted(BaseException):
    """SIGTERM, SIGINT or SIGHUP came; it passes every `except Exception` on its way out."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def main() -> int:
    """Install as the settings say; write `{"installed": …}` or `{"faults": […], "exit_code": N}` to the file argv[1].

    0 says that the answer is written; 128+N that signal N ended it.
    """
    settings = parse_settings(os.environ)
    configure_log(settings.log_format, settings.log_level)
    handle = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with interruptible():
            answer = _answer(settings)
    except Interrupted as stop:
        get_log().warning("install.interrupted", signal=str(stop))
        return stop.exit_code
    # Opened before the change of user, who may not write where PID 1 reads.
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(answer, file)
    return 0


def _answer(settings: Settings) -> dict[str, Any]:
    from infer_dev_entry.install.run import install

    progress = make_progress(get_log(), settings.log_format)
    try:
        environ = become_user(settings, os.environ)
        installed = install(make_request(settings), progress, environ)
        return {"installed": asdict(installed)}
    except EntryError as error:
        return {"faults": [str(error)], "exit_code": error.exit_code}
    except ImportError as error:  # what is imported late is out of reach after the change of user
        fault = f"cannot install as uid {os.geteuid()}: {error}; let that user read {sys.prefix} and {sys.base_prefix}"
        return {"faults": [fault], "exit_code": InstallError.exit_code}
    finally:
        progress.close()


@contextlib.contextmanager
def interruptible() -> Any:
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


# -- the user


def become_user(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """Become the servers' user for good, if we are root and that is another; return the environment of that user.

    A project directory that is missing is made first, and given to the user.

    Raises:
        SettingsError: there is no such user, or we cannot become it.
        InstallError: the project directory cannot be made.
    """
    owner = find_owner(settings)
    if owner is not None:
        make_owned_dir(os.path.abspath(settings.project_dir), owner, "AUTO_INFER_SGLANG_PIXI_PROJECT_DIR")
    return become_owner(owner, environ)


def become_owner(owner: Owner | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Become that user for good, if it is given, and return its environment."""
    if owner is None:
        return dict(environ)
    os.initgroups(owner.name, owner.gid)
    os.setgid(owner.gid)
    os.setuid(owner.uid)
    os.umask(0o022)
    return dict(environ) | dict(owner.home_environment)


def make_owned_dir(path: str, owner: Owner, setting: str) -> None:
    """Make a directory and what is missing above it, all owned by the user; `setting` is what names another one.

    Raises:
        InstallError: it cannot be made.
    """
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, 0o755)
            os.chown(folder, owner.uid, owner.gid, follow_symlinks=False)
        except FileExistsError:
            continue
        except OSError as error:
            raise InstallError(
                f"cannot make {folder}: {error.strerror}; mount a writable workspace, or set {setting}"
            ) from error


if __name__ == "__main__":
    code = main()
    # All is written. The interpreter's end takes 40 ms more, and py-rattler's threads have been seen to crash in it.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
