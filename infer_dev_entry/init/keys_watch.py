"""The keys of a gateway as they are now: read anew when their file changes, and kept when the new file is bad."""

from __future__ import annotations

import os
from typing import Any

from infer_dev_entry.gateway.keys import ApiKey, parse_keys
from infer_dev_entry.host import LiveHost
from infer_dev_entry.init.gateway import Problem

_SHOWN = 3


class KeysWatch:
    """Watches one file at a time. Every call may block on its file system: call it in a thread."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._path = ""
        self._stamp: tuple[int, ...] = ()
        self._keys: tuple[ApiKey, ...] = ()
        self._is_stale = False  # the last read did not come back
        self.problem: Problem | None = None

    def has_changed(self, path: str) -> bool:
        """Say whether the file is another than the one read last."""
        return bool(path) and (self._is_stale or path != self._path or _stamp(path) != self._stamp)

    def in_force(self, path: str) -> tuple[ApiKey, ...] | None:
        """Return the keys as they were read last, without a look at the file, which does not answer."""
        if not path:
            return None
        self._is_stale = True
        held = self._keys if path == self._path else ()
        told = f"the {len(held)} old keys stay in force" if held else "nobody gets in"
        self.problem = Problem(reason=f"cannot read the keys of {path}: its file system does not answer; {told}")
        return held

    def read(self, path: str) -> tuple[ApiKey, ...] | None:
        """Return the keys in force: those of the file, or, while it is bad, the last good ones; None without a file.

        Without any good ones there are no keys, and nobody gets in.
        """
        if not path:
            self._path, self.problem = "", None
            return None
        if not self.has_changed(path):
            return self._keys
        self._is_stale = False
        if path != self._path:
            self._path, self._keys = path, ()
        self._stamp = _stamp(path)
        secret = LiveHost().secret_file(path)
        found = parse_keys(secret.text) if not secret.problem else None
        problems = (secret.problem,) if found is None else found.problems
        if found is not None and not problems:
            self._take(path, found.keys, secret.warning)
        else:
            self._refuse(path, problems)
        return self._keys

    def _take(self, path: str, keys: tuple[ApiKey, ...], warning: str) -> None:
        before, self._keys, self.problem = {key.key for key in self._keys}, keys, None
        now = {key.key for key in keys}
        self._log.info("gateway.keys", keys=len(keys), added=len(now - before), revoked=len(before - now))
        if warning:
            self._log.warning("gateway.keys_open", file=path, message=f"{path} {warning}", mend=f"chmod 600 {path}")

    def _refuse(self, path: str, problems: tuple[str, ...]) -> None:
        told = "; ".join(problems[:_SHOWN]) + (f"; and {len(problems) - _SHOWN} more" if problems[_SHOWN:] else "")
        held = f"the {len(self._keys)} old keys stay in force" if self._keys else "nobody gets in"
        self.problem = Problem(
            reason=f"cannot take the keys of {path}: {told}; {held}",
            mend=f"correct the file; infer-dev gateway keys check {path}",
        )
        self._log.error("gateway.keys_refused", reason=self.problem.reason, mend=self.problem.mend)


def _stamp(path: str) -> tuple[int, ...]:
    """What changes with a file's content, also when it is replaced or gone."""
    try:
        info = os.stat(path)
    except OSError as error:
        return (error.errno or 0,)
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_mode)
