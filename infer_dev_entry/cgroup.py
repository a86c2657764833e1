"""The one door to the container's memory cgroup: its limit, and whether the kernel has killed for want of memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# A death is looked at as it happens, but a server may outlive the worker that was killed, by about a second, and the
# counter is read every five seconds. An older kill has nothing to do with a server that dies now.
RECENT_S = 10.0
# cgroup v1 says "no limit" as the highest number of whole pages.
_NO_LIMIT_BYTES = 1 << 60
OOM_MEND = (
    "give the container more memory (docker run --memory, compose mem_limit), or have the servers take less (context "
    "length, requests at a time); what lies in /dev/shm and in a tmpfs counts too"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCgroup:
    """The files of one memory cgroup: the one with its counter of kills, and its limit."""

    counter: Path
    limit: Path


def find_memory_cgroup(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> MemoryCgroup | None:
    """Return the memory cgroup of this process, of version 1 or 2, or None where the kernel shows none.

    In a container the path that the kernel tells may be the host's, while the mount shows nothing but our own cgroup.
    """
    lines: list[str] = []
    with suppress(OSError):
        lines = membership.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            base, counter, limit = root / "memory", "memory.oom_control", "memory.limit_in_bytes"
        elif not controllers:
            base, counter, limit = root, "memory.events", "memory.max"
        else:
            continue
        for folder in (base / path.lstrip("/"), base):
            if (folder / counter).is_file():
                return MemoryCgroup(counter=folder / counter, limit=folder / limit)
    return None


def parse_oom_kills(text: str) -> int:
    """Parse the number of killed processes out of `memory.events` (v2) or `memory.oom_control` (v1)."""
    pairs = (line.split() for line in text.splitlines())
    return next((int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] == "oom_kill" and pair[1].isdigit()), 0)


def parse_limit(text: str) -> int | None:
    """Parse `memory.max` or `memory.limit_in_bytes` into bytes; None: no limit."""
    text = text.strip()
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT_BYTES else None


def describe_oom(limit_bytes: int | None) -> str:
    """Say whose memory was used up."""
    if limit_bytes is None:
        return "out of memory (the host's, as the container has no limit of its own)"
    return f"out of memory (the container's limit is {limit_bytes / 2**20:.0f} MiB)"


class OomWatch:
    """Counts the kernel's kills in our cgroup as they become known."""

    def __init__(self, cgroup: MemoryCgroup | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._cgroup = cgroup
        self._clock = clock
        self._kills = self._read_kills()
        self._fresh = 0
        self._seen_at = 0.0

    def look(self) -> None:
        """Note new kills, and forget those that are old."""
        kills, now = self._read_kills(), self._clock()
        if kills > self._kills:
            self._fresh += kills - self._kills
            self._seen_at = now
        elif now - self._seen_at > RECENT_S:
            self._fresh = 0
        self._kills = kills

    def explain(self, *, killed: bool) -> str:
        """Say why a server is dead if the kernel has killed lately, else "". Look first.

        One that died of SIGKILL (`killed`) accounts for one kill; any other may have died of its worker's.
        """
        if not self._fresh:
            return ""
        self._fresh -= int(killed)
        return describe_oom(self._read_limit())

    def _read_kills(self) -> int:
        with suppress(OSError):
            return parse_oom_kills(self._cgroup.counter.read_text(encoding="ascii")) if self._cgroup else 0
        return 0

    def _read_limit(self) -> int | None:
        with suppress(OSError):
            return parse_limit(self._cgroup.limit.read_text(encoding="ascii")) if self._cgroup else None
        return None
