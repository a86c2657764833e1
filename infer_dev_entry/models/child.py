"""The boot stage that downloads: a child of PID 1 that becomes the servers' user, downloads, and writes its answer."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from infer_dev_entry.errors import EntryError, ModelError, render_failure
from infer_dev_entry.init.owner import Owner, become_owner, find_owner, make_owned_dir
from infer_dev_entry.log import get_log
from infer_dev_entry.models.place import place_of
from infer_dev_entry.models.progress import make_progress
from infer_dev_entry.models.pull import is_settled, pull
from infer_dev_entry.models.wish import ModelWish
from infer_dev_entry.models.wishes import Hubs, read_wishes
from infer_dev_entry.settings import Settings
from infer_dev_entry.stage_child import leave, render_unreadable, run_stage


def main() -> int:
    """Download what the config wishes; write `{"models": […]}` or `{"faults": […], "exit_code": N}` to file argv[1]."""
    return run_stage(_answer, interrupted="model.interrupted")


def _answer(settings: Settings) -> dict[str, Any]:
    try:
        return _download(settings)
    except EntryError as error:
        return render_failure(error)
    except ImportError as error:
        return render_unreadable(error, "download", ModelError.exit_code)


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
    leave(main())  # threads may still wait for a byte of the network
