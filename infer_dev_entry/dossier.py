"""Crash dossiers: what was known of a server when it died, as private JSON files in the run directory.

Two a server: its first failure in a row, and its latest. They are bounded in number and size, and whoever writes one
can do without it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from infer_dev_entry.errors import RunDirError
from infer_dev_entry.rundir import read_text, write_private

MAX_BYTES = 256 * 1024
MAX_FILES = 2 * 64
_FORMAT = 1
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dossier:
    """One failure. Nothing in it is secret: texts are redacted, and of the environment it has the names alone.

    `failures` counts this one and those in a row before it; `ended_at` is Unix time; `ran_s` is None when unknown.
    """

    server: str
    engine: str
    kind: str
    policy: str
    reason: str
    mend: str
    failures: int
    run: int
    ended_at: float
    ran_s: float | None = None
    exit_code: int | None = None
    signal: int | None = None
    command: str = ""
    environment: tuple[str, ...] = ()
    gpu_ids: tuple[str, ...] | None = None
    log_file: str = ""
    processes: tuple[str, ...] = ()
    counters: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    nvidia_smi: str = ""
    stacks: str = ""
    log: tuple[str, ...] = ()


def crash_dir(run_dir: str) -> str:
    """Return the directory of the dossiers."""
    return f"{run_dir}/crashes"


def write_dossier(run_dir: str, dossier: Dossier, *, owner: tuple[int, int] | None) -> None:
    """Write a dossier as the first of its row or as the latest, readable by root and `owner` (uid, gid) alone.

    Raises:
        RunDirError: it cannot be written.
    """
    folder = _make_crash_dir(run_dir, owner)
    name = _UNSAFE.sub("_", dossier.server)[:64]
    path = f"{folder}/{name}.{'first' if dossier.failures <= 1 else 'latest'}.json"
    _drop_oldest(folder, path)
    write_private(path, render_dossier(dossier), owner=owner)


def read_dossiers(run_dir: str, server: str = "") -> tuple[Dossier, ...]:
    """Return the dossiers of a server, or of all (""), in the order of their ends; what is none is left out."""
    found = (parse_dossier(read_text(str(path), MAX_BYTES)) for path in Path(crash_dir(run_dir)).glob("*.json"))
    kept = (dossier for dossier in found if dossier and server in ("", dossier.server))
    return tuple(sorted(kept, key=lambda dossier: dossier.ended_at))


def render_dossier(dossier: Dossier) -> str:
    """Render a dossier as JSON of at most `MAX_BYTES`; the oldest lines of its log go first, then other texts."""
    text = _render(dossier)
    while len(text) > MAX_BYTES and dossier.log:
        dossier = replace(dossier, log=dossier.log[(len(dossier.log) + 1) // 2 :])
        text = _render(dossier)
    if len(text) > MAX_BYTES:
        dossier = replace(dossier, stacks="", nvidia_smi="", processes=(), environment=(), command="")
        text = _render(dossier)
    return text


def _render(dossier: Dossier) -> str:
    # ASCII alone: a character is a byte, and no terminal is hurt by a look at the file.
    return json.dumps({"format": _FORMAT, **asdict(dossier)})


def parse_dossier(text: str) -> Dossier | None:
    """Parse what `render_dossier` wrote; None for anything else."""
    try:
        data = json.loads(text)
        known = {field.name: data[field.name] for field in fields(Dossier)}
        lists = {name: _strings(known[name]) for name in ("environment", "processes", "counters", "limits", "log")}
        gpu_ids = None if known["gpu_ids"] is None else _strings(known["gpu_ids"])
        dossier = Dossier(**{**known, **lists, "gpu_ids": gpu_ids})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    numbers = (dossier.failures, dossier.run, dossier.ended_at, dossier.ran_s or 0.0)
    return dossier if all(isinstance(number, int | float) for number in numbers) else None


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return tuple(str(item) for item in value)


def to_json(dossier: Dossier) -> Mapping[str, object]:
    """Return a dossier as JSON data for people's scripts: its `kind` is called `class`, as in events."""
    data = asdict(dossier)
    return {"class" if name == "kind" else name: value for name, value in data.items()}


def _make_crash_dir(run_dir: str, owner: tuple[int, int] | None) -> str:
    folder = crash_dir(run_dir)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        info = os.lstat(folder)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid():
            raise RunDirError(f"cannot use {folder}: it is not a directory of uid {os.geteuid()}; remove it")
        if owner is not None:  # its files are the owner's, who must be able to list them
            os.chown(folder, -1, owner[1])
            os.chmod(folder, 0o750)
    except OSError as error:
        raise RunDirError(f"cannot make {folder}: {error.strerror}; free space or set INFER_DEV_RUN_DIR") from error
    return folder


def _drop_oldest(folder: str, path: str) -> None:
    """Make room for one more file if it is a new one."""
    found: list[tuple[float, Path]] = []
    for entry in Path(folder).iterdir():
        with suppress(OSError):
            found.append((entry.lstat().st_mtime, entry))
    surplus = len(found) - MAX_FILES + (0 if os.path.exists(path) else 1)
    for _, entry in sorted(found)[: max(0, surplus)]:
        with suppress(OSError):
            entry.unlink()
