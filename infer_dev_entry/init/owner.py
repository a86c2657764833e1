"""Whom the servers run as: AUTO_INFER_SGLANG_USER, else `me` where that user exists, else ourselves."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

from infer_dev_entry.errors import SettingsError
from infer_dev_entry.settings import Settings


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


def find_owner(settings: Settings) -> Owner | None:
    """Return the user that servers run as, or None when they run as we do.

    Raises:
        SettingsError: the user does not exist, or we are not root and cannot become another.
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
    return Owner(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)
