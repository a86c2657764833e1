"""Capture a conda environment's activation: its scripts run once, at install, so that servers start without a shell."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.activation import SYSTEM_PATH, Variables
from infer_dev_entry.install.processes import run_tool

TIMEOUT_S = 60.0

_MAX_BYTES = 4 << 20
# What any shell sets or was given, and no environment should pin.
_SHELL_OWN = {"_", "SHLVL", "PWD", "OLDPWD", "HOME", "LANG"}


def read_activation(prefix: str, script: str) -> Variables:
    """Run an activation script in a bare environment, and return the variables that it set or changed, PATH included.

    Raises:
        InstallError: there is no shell, or the script fails.
    """
    shell = shutil.which("bash", path=SYSTEM_PATH) or "/bin/sh"
    before = bare_environment()
    with tempfile.TemporaryDirectory(prefix="infer-dev-") as folder:
        path, answer = f"{folder}/activate.sh", f"{folder}/environ"
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{script}\n/usr/bin/env -0 > '{answer}'\n")
        result = run_tool([shell, path], env=before, cwd=folder, timeout_s=TIMEOUT_S)
        if result.returncode != 0 or not os.path.exists(answer):
            raise InstallError(
                f"cannot activate {prefix}: {result.last_line} ({result.ending}); "
                f"see the scripts in {prefix}/etc/conda/activate.d"
            )
        with open(answer, "rb") as answered:
            return parse_activation(answered.read(_MAX_BYTES), before)


def bare_environment() -> dict[str, str]:
    """Return what activation starts from, so that nothing of the installer's own environment is captured."""
    return {"PATH": SYSTEM_PATH, "HOME": os.path.expanduser("~"), "LANG": "C.UTF-8"}


def parse_activation(environ: bytes, before: Mapping[str, str]) -> Variables:
    """Parse what `env -0` wrote into the variables that are new or changed, without functions and the shell's own."""
    pairs = (entry.partition(b"=") for entry in environ.split(b"\0") if entry)
    found = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    return changed_variables(found, before)


def changed_variables(found: Mapping[str, str], before: Mapping[str, str]) -> Variables:
    """Return the variables that are new or changed, by name, without functions and the shell's own."""
    changed = {name: value for name, value in found.items() if before.get(name) != value}
    wanted = (name for name in changed if name.isidentifier() and name not in _SHELL_OWN)
    return tuple((name, changed[name]) for name in sorted(wanted))
