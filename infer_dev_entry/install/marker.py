"""The marker of what is installed, and the fast path at boot that trusts it. Standard library alone: PID 1 runs it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infer_dev_entry.errors import BundleError
from infer_dev_entry.install.model import InstalledEnv, InstallRequest
from infer_dev_entry.settings import Settings

MARKER_NAME = ".installed-from.json"
COMPLETE_NAME = ".complete"
LINK_NAME = "env"
LEGACY = "legacy"

_MARKER_MAX_BYTES = 4 * 1024 * 1024
_TREE_MAX_ENTRIES = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleStat:
    """How a bundle looks from outside. Of a directory: the sizes in all, the newest mtime, the directory's inode."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvRecord:
    """What `.complete` in an environment and the marker say of it. `bundle` is None when only a digest is known."""

    prefix: str
    bundle_path: str
    bundle_sha256: str
    bundle: BundleStat | None
    backend: str
    versions: tuple[tuple[str, str], ...] = ()
    activation: tuple[tuple[str, str], ...] = ()
    installed_at_unix: float = 0.0
    verify_output: str = ""
    seconds: float = 0.0
    mb_per_s: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledBack:
    """The bundle that a roll-back turned away from: while it lies at the bundle's path, the older env stays."""

    bundle_path: str
    bundle_sha256: str
    bundle: BundleStat | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """The environment in use, the name below `envs/` of the one before it, and what was rolled back."""

    record: EnvRecord
    previous: str = ""
    rolled_back: RolledBack | None = None


def make_request(settings: Settings) -> InstallRequest:
    """Return what the settings ask the installer for."""
    return InstallRequest(
        bundle_path=os.path.abspath(settings.bundle_path) if settings.bundle_path else "",
        project_dir=os.path.abspath(settings.project_dir),
        expected_sha256=settings.bundle_sha256.lower().removeprefix("sha256:"),
        verify_always=settings.bundle_verify == "always",
        backend=settings.installer,
        pixi_environment=settings.pixi_environment,
        pixi_template_dir=settings.pixi_template_dir,
        pixi_unpack_bin=settings.pixi_unpack_bin,
    )


def read_fast(request: InstallRequest) -> InstalledEnv | None:
    """Return the environment in use when the marker alone proves that it is the bundle's, else None.

    It never hashes, writes or locks, and takes well below 10 ms. None means: run the installer, which knows better.
    """
    if request.force or request.verify_always:
        return None
    marker = read_marker(request.project_dir)
    if marker is None or not is_in_use(request.project_dir, marker.record):
        return None
    try:
        seen = stat_bundle(request.bundle_path)
    except BundleError:
        return None
    if not (_is_stat_of(marker, seen) and _is_expected(marker, request)):
        return None
    return installed_env(request.project_dir, marker.record, was_installed=False)


def _is_stat_of(marker: Marker, seen: BundleStat) -> bool:
    return seen == marker.record.bundle or (marker.rolled_back is not None and seen == marker.rolled_back.bundle)


def _is_expected(marker: Marker, request: InstallRequest) -> bool:
    known = {marker.record.bundle_sha256, marker.rolled_back.bundle_sha256 if marker.rolled_back else ""}
    return not request.expected_sha256 or request.expected_sha256 in known


def is_in_use(project_dir: str, record: EnvRecord) -> bool:
    """Say whether `env` is that environment, complete, where it was installed to, and its Python is there.

    The prefix is baked in: a workspace that is mounted elsewhere than before holds a broken environment. And a venv is
    broken when the image no longer has the Python that it was made with.
    """
    link = f"{project_dir}/{LINK_NAME}"
    if os.path.realpath(link) != os.path.realpath(record.prefix):
        return False
    return is_usable(record.prefix)


def is_usable(prefix: str) -> bool:
    """Say whether the environment is complete and its Python is there."""
    return os.path.isfile(f"{prefix}/{COMPLETE_NAME}") and os.path.exists(f"{prefix}/bin/python")


def installed_env(project_dir: str, record: EnvRecord, *, was_installed: bool) -> InstalledEnv:
    """Return the record as the result of an install."""
    return InstalledEnv(
        prefix=record.prefix,
        link=f"{project_dir}/{LINK_NAME}",
        backend=record.backend,
        bundle_sha256=record.bundle_sha256,
        versions=dict(record.versions),
        activation=record.activation,
        was_installed=was_installed,
    )


def stat_bundle(path: str) -> BundleStat:
    """Look at a bundle from outside.

    Raises:
        BundleError: it is missing or cannot be read.
    """
    try:
        info = os.stat(path)
        if not stat.S_ISDIR(info.st_mode):
            return BundleStat(size=info.st_size, mtime_ns=info.st_mtime_ns, inode=info.st_ino)
        size, mtime_ns = _stat_tree(path)
        return BundleStat(size=size, mtime_ns=max(mtime_ns, info.st_mtime_ns), inode=info.st_ino)
    except OSError as error:
        raise BundleError(
            f"cannot read bundle {path}: {error.strerror}; set AUTO_INFER_SGLANG_BUNDLE_PATH to a readable bundle"
        ) from error


def _stat_tree(path: str) -> tuple[int, int]:
    """Return the bytes and the newest mtime below a directory; a bundle is a few hundred files in a few folders."""
    size = newest = count = 0
    folders = [path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                newest = max(newest, info.st_mtime_ns)
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    size += info.st_size
        if count > _TREE_MAX_ENTRIES:
            raise BundleError(
                f"cannot read bundle {path}: more than {_TREE_MAX_ENTRIES} files; name the bundle's own directory"
            )
    return size, newest


def read_marker(project_dir: str) -> Marker | None:
    """Return the marker; None when there is none, or none that can be understood."""
    data = _read_json(f"{project_dir}/{MARKER_NAME}")
    try:
        return Marker(
            record=_parse_record(data, project_dir),
            previous=_name(data.get("previous", "")),
            rolled_back=_parse_rolled_back(data.get("rolled_back")),
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def read_record(prefix: str, project_dir: str) -> EnvRecord | None:
    """Return what `.complete` in an environment says; None when it is not complete."""
    try:
        return _parse_record(_read_json(f"{prefix}/{COMPLETE_NAME}"), project_dir)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _read_json(path: str) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            data = json.loads(file.read(_MARKER_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _parse_record(data: Mapping[str, Any], project_dir: str) -> EnvRecord:
    """Parse a record, or the three keys of a marker that the older bash installer wrote beside a real `env/`."""
    if "prefix" not in data:
        return EnvRecord(
            prefix=f"{project_dir}/{LINK_NAME}",
            bundle_path=str(data["bundle_path"]),
            bundle_sha256=str(data["bundle_sha256"]).lower(),
            bundle=None,
            backend=LEGACY,
            installed_at_unix=float(data.get("installed_at_unix") or 0),
        )
    return EnvRecord(
        prefix=str(data["prefix"]),
        bundle_path=str(data["bundle_path"]),
        bundle_sha256=str(data["bundle_sha256"]),
        bundle=_parse_stat(data),
        backend=str(data["backend"]),
        versions=tuple((str(key), str(value)) for key, value in data["versions"].items()),
        activation=tuple((str(key), str(value)) for key, value in data["activation"].items()),
        installed_at_unix=float(data["installed_at_unix"]),
        verify_output=str(data["verify_output"]),
        seconds=float(data["seconds"]),
        mb_per_s=float(data["mb_per_s"]),
        warnings=tuple(str(item) for item in data["warnings"]),
    )


def _parse_stat(data: Mapping[str, Any]) -> BundleStat | None:
    if data.get("inode") is None:
        return None
    return BundleStat(size=int(data["size"]), mtime_ns=int(data["mtime_ns"]), inode=int(data["inode"]))


def _parse_rolled_back(data: Any) -> RolledBack | None:
    if not data:
        return None
    return RolledBack(
        bundle_path=str(data["bundle_path"]), bundle_sha256=str(data["bundle_sha256"]), bundle=_parse_stat(data)
    )


def _name(value: Any) -> str:
    """A name below `envs/`; nothing that could lead elsewhere, as what it names may be deleted."""
    text = str(value)
    if "/" in text or text in (".", ".."):
        raise ValueError(f"not the name of an environment: {text!r}")
    return text
