"""The install child's answer, read back in PID 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infer_dev_entry.errors import InstallError
from infer_dev_entry.install.model import InstalledEnv


def parse_answer(data: Mapping[str, Any]) -> InstalledEnv:
    """Parse what `main` wrote for a finished install.

    Raises:
        InstallError: with the child's message, and its exit code on the object, if it failed.
    """
    if "installed" not in data:
        error = InstallError(
            "; ".join(str(fault) for fault in data.get("faults", ())) or "cannot install: no reason given"
        )
        error.exit_code = int(data.get("exit_code", InstallError.exit_code))
        raise error
    known = dict(data["installed"])
    known["activation"] = tuple((str(name), str(value)) for name, value in known["activation"])
    return InstalledEnv(**known)
