"""Watch the servers' processes: a pidfd each, so that a death is known at once, and the tree below each, for sweeps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from dataclasses import replace

from infer_dev_entry.proctree import Tracked, read_process, read_processes, track
from infer_dev_entry.render import render_mark
from infer_dev_entry.shm import read_segments


class Watch:
    """Calls `poke` when a watched process dies; remembers whom each server has started."""

    def __init__(self, fleet_id: str, poke: Callable[[], None]) -> None:
        self._fleet_id = fleet_id
        self._poke = poke
        self._tracked: dict[str, Tracked] = {}
        self._pidfds: dict[str, tuple[int, int]] = {}
        self._segments: dict[str, set[str]] = {}

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

    def refresh_trees(self, segments_of: Collection[str] = ()) -> None:
        """Note the descendants of every server: after its death they are orphans, and some shed their environment.

        Of some also what shared memory they have open: it is made at a start, and a server at work has many files open.
        """
        processes = read_processes()
        for name in self._pidfds:
            self._tracked[name] = self._tracked[name].with_descendants(processes)
            if name in segments_of:
                members = self._tracked[name].living(processes)
                self._segments.setdefault(name, set()).update(read_segments(members))

    def take_left_segments(self, name: str) -> set[str]:
        """Return, once, the shared memory that a server had and that no living process of any server has open."""
        left = self._segments.pop(name, set())
        if not left:
            return left
        members = {pid for tracked in self._tracked.values() for pid, _ in tracked.members}
        processes = {pid: info for pid in members if (info := read_process(pid)) and info.state not in "ZX"}
        held = read_segments({pid for tracked in self._tracked.values() for pid in tracked.living(processes)})
        if left & held:  # of a process that the user has started meanwhile
            self._segments[name] = left & held
        return left - held

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
