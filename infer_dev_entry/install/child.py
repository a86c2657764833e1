"""The boot stage that installs: a child of PID 1 that becomes the servers' user, installs, and writes its answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from infer_dev_entry.errors import EntryError, InstallError, render_failure
from infer_dev_entry.init.owner import become_owner, find_owner, make_owned_dir
from infer_dev_entry.install.marker import make_request
from infer_dev_entry.install.progress import make_progress
from infer_dev_entry.log import get_log
from infer_dev_entry.settings import Settings
from infer_dev_entry.stage_child import leave, render_unreadable, run_stage


def main() -> int:
    """Install as the settings say; write `{"installed": …}` or `{"faults": […], "exit_code": N}` to file argv[1]."""
    return run_stage(_answer, interrupted="install.interrupted")


def _answer(settings: Settings) -> dict[str, Any]:
    from infer_dev_entry.install.run import install

    progress = make_progress(get_log(), settings.log_format)
    try:
        environ = become_user(settings, os.environ)
        installed = install(make_request(settings), progress, environ)
        return {"installed": asdict(installed)}
    except EntryError as error:
        return render_failure(error)
    except ImportError as error:
        return render_unreadable(error, "install", InstallError.exit_code)
    finally:
        progress.close()


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


if __name__ == "__main__":
    leave(main())  # py-rattler's threads have been seen to crash in the interpreter's end
