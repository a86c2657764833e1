"""The boot stage that downloads: a child of PID 1 that becomes the servers' user, downloads, and writes its answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from infer_dev_entry.errors import ConfigError, EntryError, ModelError
from infer_dev_entry.init.owner import Owner, find_owner
from infer_dev_entry.install.child import Interrupted, become_owner, interruptible, make_owned_dir
from infer_dev_entry.log import configure_log, get_log
from infer_dev_entry.models.place import place_of
from infer_dev_entry.models.progress import make_progress
from infer_dev_entry.models.pull import is_settled, pull
from infer_dev_entry.models.wish import ModelWish
from infer_dev_entry.models.wishes import Hubs, read_wishes
from infer_dev_entry.settings import Settings, parse_settings


def main() -> int:
    """Download what the config wishes; write `{"models": […]}` or `{"faults": […], "exit_code": N}` to file argv[1].

    0 says that the answer is written; 128+N that signal N ended it.
    """
    settings = parse_settings(os.environ)
    configure_log(settings.log_format, settings.log_level)
    handle = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with interruptible():
            answer = _answer(settings)
    except Interrupted as stop:
        get_log().warning("model.interrupted", signal=str(stop))
        return stop.exit_code
    # Opened before the change of user, who may not write where PID 1 reads.
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(answer, file)
    return 0


def _answer(settings: Settings) -> dict[str, Any]:
    try:
        return _download(settings)
    except ConfigError as error:
        return {"faults": error.faults, "exit_code": error.exit_code}
    except EntryError as error:
        return {"faults": [str(error)], "exit_code": error.exit_code}
    except ImportError as error:  # what is imported late is out of reach after the change of user
        fault = f"cannot download as uid {os.geteuid()}: {error}; let that user read {sys.prefix} and {sys.base_prefix}"
        return {"faults": [fault], "exit_code": ModelError.exit_code}


def _download(settings: Settings) -> dict[str, Any]:
    wishes = read_wishes(settings, os.environ)
    if not wishes:
        get_log().warning("model.none", message=f"no instance of {settings.config} has a model table")
    if settings.on_boot and not all(is_settled(wish) for wish in wishes):
        _check_config()
    owner = find_owner(settings)
    if owner is not None:
        _make_parents(wishes, owner)
    environ = become_owner(owner, os.environ)
    progress = make_progress(get_log(), settings.log_format)
    hubs = Hubs(environ)
    try:
        return {"models": [asdict(pull(wish, hubs, progress, environ, latest=False)) for wish in wishes]}
    finally:
        progress.close()


def _check_config() -> None:
    """Tell of a config that will not start before hours go into its download.

    Raises:
        ConfigError: every fault of it.
    """
    from infer_dev_entry.planner import make_plan

    make_plan(os.environ)


def _make_parents(wishes: Iterable[ModelWish], owner: Owner) -> None:
    for wish in wishes:
        make_owned_dir(place_of(wish.target).parent, owner, "local_dir in the model table")


if __name__ == "__main__":
    code = main()
    # All is written; threads may still wait for a byte of the network.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
