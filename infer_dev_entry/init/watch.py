"""Watch the servers' processes: a pidfd each, so that a death is known at once, and the tree below each, for sweeps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace

from infer_dev_entry.proctree import Tracked, read_processes, track
from infer_dev_entry.render import render_mark


class Watch:
    """Calls `poke` when a watched process dies; remembers whom each server has started."""

    def __init__(self, fleet_id: str, poke: Callable[[], None]) -> None:
        self._fleet_id = fleet_id
        self._poke = poke
        self._tracked: dict[str, Tracked] = {}
        self._pidfds: dict[str, tuple[int, int]] = {}

    def watch(self, name: str, pid: int) -> None:
        """Learn of this process's death at once, and remember it for a sweep."""
        known = self._pidfds.get(name)
        if known and known[1] == pid:
            return
        self._close(name)
        fresh = track(render_mark(self._fleet_id, name), pid)
        # The predecessor's processes stay known until they are gone: a restart by the user leaves us no sweep between.
        before = self._tracked.get(name, fresh)
        self._tracked[name] = replace(fresh, members=fresh.members | before.members)
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            self._poke()  # it is gone already
            return
        self._pidfds[name] = (handle, pid)
        asyncio.get_running_loop().add_reader(handle, self._take_death, name, handle)

    def tracked(self, name: str) -> Tracked:
        """Return what is known of a server's processes; at least its mark."""
        return self._tracked.get(name) or track(render_mark(self._fleet_id, name), 0)

    def refresh_trees(self) -> None:
        """Note the descendants of every server: after its death they are orphans, and some shed their environment."""
        processes = read_processes()
        for name in self._pidfds:
            self._tracked[name] = self._tracked[name].with_descendants(processes)

    def close(self) -> None:
        """Watch nobody any more; what is known of their processes stays."""
        for name in list(self._pidfds):
            self._close(name)

    def _take_death(self, name: str, handle: int) -> None:
        if self._pidfds.get(name, (None, 0))[0] == handle:
            self._close(name)
            self._poke()

    def _close(self, name: str) -> None:
        known = self._pidfds.pop(name, None)
        if known:
            asyncio.get_running_loop().remove_reader(known[0])
            os.close(known[0])
