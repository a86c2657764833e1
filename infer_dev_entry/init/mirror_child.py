"""Keep the log mirror running: a process of its own, so that a stdout nobody reads can stall only the mirror."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from infer_dev_entry.errors import EntryError
from infer_dev_entry.init.reaper import Reaper
from infer_dev_entry.init.spawn import signal_group, spawn_helper
from infer_dev_entry.rundir import write_private

RESPAWN_S = 5.0
# The mirror looks at the logs every 0.2 s, and a busy machine may keep it from its last look for longer. Only a reader
# that does not read makes the stop take all of it.
STOP_S = 2.0
HURRY_S = 0.5


class MirrorChild:
    """Tells the mirror which files to follow, and starts it again when it has died."""

    def __init__(self, reaper: Reaper, environ: Mapping[str, str], run_dir: str, log: Any) -> None:
        self._reaper = reaper
        self._environ = environ
        self._list_path = f"{run_dir}/mirror.json"
        self._log = log
        self._followed: dict[str, str] | None = None
        self._starts: dict[str, int] = {}
        self._pid = 0
        self._exited: asyncio.Future[int] | None = None
        self._stopped = False

    def follow(self, log_files: dict[str, str]) -> None:
        """Mirror these files (name → path) from now on."""
        if log_files == self._followed or self._stopped:
            return
        self._followed = dict(log_files)
        self._starts = {path: self._starts.get(path, _size_of(path)) for path in log_files.values()}
        self._spawn_with_list()

    def _spawn_with_list(self) -> None:
        followed = self._followed or {}
        listed = {name: [path, self._starts.get(path, 0)] for name, path in followed.items()}
        try:
            write_private(self._list_path, json.dumps(listed))
            if not self._pid:
                self._spawn()
        except (EntryError, OSError) as error:
            self._log.warning("mirror.failed", error=str(error))

    def _spawn(self) -> None:
        argv = (sys.executable, "-m", "infer_dev_entry.mirror", self._list_path, str(os.getpid()))
        self._pid = spawn_helper(argv, self._environ)
        self._exited = self._reaper.expect(self._pid)
        self._exited.add_done_callback(self._take_exit)

    def _take_exit(self, exited: asyncio.Future[int]) -> None:
        self._pid = 0
        if not self._stopped and not exited.cancelled():
            asyncio.get_running_loop().call_later(RESPAWN_S, self._respawn)

    def _respawn(self) -> None:
        if not self._stopped and not self._pid:
            self._starts = {path: _size_of(path) for path in self._starts}  # what it has printed is not printed again
            self._spawn_with_list()

    async def stop(self, *, in_a_hurry: bool = False) -> None:
        """Let the mirror print what is there, then end; it would die with PID 1. A stalled reader is not waited for."""
        self._stopped = True
        if self._pid and self._exited is not None:
            signal_group(self._pid, signal.SIGTERM)
            await asyncio.wait({self._exited}, timeout=HURRY_S if in_a_hurry else STOP_S)


def _size_of(path: str) -> int:
    """Return where a log ends now; what an earlier fleet has written there is not news."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
