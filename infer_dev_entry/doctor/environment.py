"""Read the installed environment by its files, never by import: versions, marker, and what the servers' user may do."""

from __future__ import annotations

import glob
import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from infer_dev_entry.doctor.environment_checks import Access, Environment, Installed, parse_torch
from infer_dev_entry.init.owner import find_owner
from infer_dev_entry.install.marker import LEGACY, MARKER_NAME, is_in_use, read_marker
from infer_dev_entry.rundir import read_text
from infer_dev_entry.settings import Settings

_TIMEOUT_S = 4.0
_SYSTEM_PYTHON = "/usr/bin/python3"
_ANSWER_BYTES = 1024 * 1024
# Run as the servers' user: who may read is the kernel's to say (ACLs, NFS), not to be guessed from mode bits.
_LOOK = """
import json, os, sys
def reason(path):
    try:
        if os.path.isdir(path):
            os.listdir(path)
        else:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        return error.strerror
    return ""
print(json.dumps([reason(path) for path in json.load(sys.stdin)]))
"""


def read_environment(python: str) -> Environment:
    """Read the versions in the environment that an interpreter's path lies in."""
    prefix = str(Path(python).absolute().parent.parent)
    folders = sorted(glob.glob(f"{glob.escape(prefix)}/lib/python3*/site-packages"))
    packages = folders[0] if folders else ""
    torch = parse_torch(read_text(f"{packages}/torch/version.py")) if packages else None
    return Environment(
        prefix=prefix,
        is_there=os.path.isdir(prefix),
        sglang=_version(packages, "sglang"),
        torch=(torch.version if torch and torch.version else _version(packages, "torch")),
        torch_cuda=torch.cuda if torch else None,
        cudnn=_version(packages, "nvidia_cudnn_cu12"),
    )


def _version(packages: str, name: str) -> str:
    found = sorted(glob.glob(f"{glob.escape(packages)}/{name}-*.dist-info")) if packages else []
    return re.sub(rf"^{name}-|\.dist-info$", "", os.path.basename(found[0])) if found else ""


def read_installed(project_dir: str) -> Installed:
    """Read the marker and whether the environment that it names is the one in use."""
    marker = read_marker(project_dir)
    if marker is None:
        return Installed(project_dir=project_dir, has_file=os.path.lexists(f"{project_dir}/{MARKER_NAME}"))
    record = marker.record
    old_style = record.backend == LEGACY and os.path.exists(f"{record.prefix}/bin/python")
    return Installed(
        project_dir=project_dir,
        has_file=True,
        prefix=record.prefix,
        backend=record.backend,
        is_in_use=old_style or is_in_use(project_dir, record),
        versions=dict(record.versions),
        verify_output=record.verify_output,
        warnings=record.warnings,
    )


def read_access(settings: Settings, pythons: Sequence[str], paths: Sequence[str]) -> Access:
    """Try, as the servers' user, to run these interpreters (with nothing imported) and to read these paths.

    Raises:
        SettingsError: that user does not exist, or we cannot become it.
    """
    owner = find_owner(settings)
    user = owner.name if owner else None
    # Our own interpreter may lie where that user does not get to, such as below /root.
    lookers = [sys.executable, *pythons, _SYSTEM_PYTHON]
    return Access(
        user=user or _own_name(),
        runs=tuple((python, _run_problem(python, user)) for python in pythons if os.path.lexists(python)),
        reads=_read_problems(lookers, list(paths), user),
    )


def _run_problem(python: str, user: str | None) -> str:
    done = _run([python, "-I", "-S", "-c", "pass"], user, "")
    return done if isinstance(done, str) else ""


def _read_problems(lookers: list[str], paths: list[str], user: str | None) -> tuple[tuple[str, str], ...] | None:
    tries = (_run([python, "-I", "-S", "-c", _LOOK], user, json.dumps(paths)) for python in lookers)
    answer = next((done[0] for done in tries if isinstance(done, tuple)), "")
    try:
        reasons = json.loads(answer)
    except ValueError:
        return None
    if not isinstance(reasons, list) or len(reasons) != len(paths):
        return None
    return tuple((path, str(reason)) for path, reason in zip(paths, reasons, strict=True))


def _run(argv: list[str], user: str | None, text: str) -> tuple[str] | str:
    """Run as a user and return (stdout,), or why that failed."""
    who = pwd.getpwnam(user) if user else None
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            user=who.pw_uid if who else None,
            group=who.pw_gid if who else None,
            extra_groups=os.getgrouplist(who.pw_name, who.pw_gid) if who else None,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {_TIMEOUT_S:g} s"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if done.returncode == 0:
        return (done.stdout[:_ANSWER_BYTES],)
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return last[:200]


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
