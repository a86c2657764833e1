"""Whom the servers run as: AUTO_INFER_SGLANG_USER, else `me` where that user exists, else ourselves."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from infer_dev_entry.errors import InstallError, SettingsError
from infer_dev_entry.rundir import read_text
from infer_dev_entry.settings import Settings

_AS_USER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "as_user.py")
# What root needs to run servers as another user: to hand files over, to reach that user's, to end its processes, and to
# become it. Docker gives all of them unless it is told not to. The numbers are those of capability.h.
_NEEDED = {"CHOWN": 0, "DAC_OVERRIDE": 1, "KILL": 5, "SETGID": 6, "SETUID": 7}


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The user that servers run as when it is not our own: the name for supervisord's `user=`, the ids for files."""

    name: str
    uid: int
    gid: int

    @property
    def home_environment(self) -> tuple[tuple[str, str], ...]:
        """supervisord drops the uid but leaves root's HOME; caches would then go where the user may not write."""
        return (("HOME", pwd.getpwuid(self.uid).pw_dir), ("LOGNAME", self.name), ("USER", self.name))


def become_command(owner: Owner) -> tuple[str, ...]:
    """Return the words that, before a command, have it run as the owner."""
    return (sys.executable, "-I", "-S", _AS_USER, owner.name, str(owner.uid), str(owner.gid))


def find_owner(settings: Settings) -> Owner | None:
    """Return the user that servers run as, or None when they run as we do.

    Raises:
        SettingsError: the user does not exist, or we cannot become another.
    """
    name = settings.user
    try:
        entry = pwd.getpwnam(name or "me")
    except KeyError:
        if name:
            raise SettingsError(
                f"AUTO_INFER_SGLANG_USER={name!r} does not exist in this container; create it or unset the variable"
            ) from None
        return None
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        if not name:
            return None
        raise SettingsError(f"cannot run servers as AUTO_INFER_SGLANG_USER={name!r}: the entry does not run as root")
    owner = Owner(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)
    _check_powers(owner)
    return owner


def _check_powers(owner: Owner) -> None:
    """Refuse a root that cannot run servers as `owner`; supervisord would say it late, and of its socket.

    Raises:
        SettingsError: capabilities are missing, or the user has no id in this user namespace.
    """
    cannot = f"cannot run servers as {owner.name} (uid {owner.uid})"
    instead = f"run it as that user (--user {owner.uid}:{owner.gid}), or set AUTO_INFER_SGLANG_USER=root"
    missing = missing_capabilities(read_text("/proc/self/status"))
    if missing:
        added = " ".join(f"--cap-add {name}" for name in missing)
        raise SettingsError(
            f"{cannot}: root lacks the capabilities {', '.join(missing)}; start the container with {added}, {instead}"
        )
    for kind, number in (("uid", owner.uid), ("gid", owner.gid)):
        if not is_mapped(read_text(f"/proc/self/{kind}_map"), number):
            raise SettingsError(f"{cannot}: this user namespace has no {kind} {number}; map it, or {instead}")


def find_worker_user() -> str:
    """Return whom our nginx has to give its workers to, "" where its own choice will do.

    As root it hands them to `nobody`, which takes these capabilities. Root's own workers each complain once, of
    initgroups, and serve.
    """
    return "root" if os.geteuid() == 0 and missing_capabilities(read_text("/proc/self/status")) else ""


def missing_capabilities(status: str) -> tuple[str, ...]:
    """Return those that /proc/self/status shows to be missing; none when it shows nothing."""
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == "CapEff":
            effective = int(value, 16)
            return tuple(name for name, bit in _NEEDED.items() if not effective >> bit & 1)
    return ()


def is_mapped(id_map: str, number: int) -> bool:
    """Say whether an id exists by a uid_map or gid_map (user_namespaces(7)); an empty map says nothing."""
    ranges = [tuple(int(word) for word in line.split()) for line in id_map.splitlines()]
    return not ranges or any(first <= number < first + count for first, _, count in ranges)


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
