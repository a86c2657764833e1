"""Read the machine's own limits: shared memory, disks, ulimits, cgroup memory. Reads, never changes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from infer_dev_entry.doctor.machine_checks import Disk, Limits, Memory, parse_limits
from infer_dev_entry.rundir import read_text

SHM = "/dev/shm"
_CGROUP = "/sys/fs/cgroup"


def read_disk(path: str) -> Disk:
    """Read the file system that holds a path, or will once it is made."""
    target = path
    while not os.path.exists(target) and os.path.dirname(target) != target:
        target = os.path.dirname(target)
    try:
        seen = os.statvfs(target)
    except OSError as error:
        return Disk(path=path, problem=error.strerror or str(error))
    return Disk(
        path=path,
        total_bytes=seen.f_blocks * seen.f_frsize,
        free_bytes=seen.f_bavail * seen.f_frsize,
        free_inodes=seen.f_favail if seen.f_files else None,  # some file systems make inodes as needed
        read_only=bool(seen.f_flag & os.ST_RDONLY),
        is_there=target == path,
    )


def read_limits(pid: int) -> Limits | None:
    """Read the ulimits of a process, else our own: servers inherit PID 1's."""
    return parse_limits(read_text(f"/proc/{pid}/limits") if pid else "") or parse_limits(read_text("/proc/self/limits"))


@dataclass(frozen=True, slots=True)
class _Names:
    """What the two versions of cgroups call the same files."""

    limit: str
    used: str
    events: str
    stat_prefix: str  # version 1 has sums over the groups below under names of their own


_V2 = _Names("memory.max", "memory.current", "memory.events", "")
_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.oom_control", "total_")


def read_memory(root: str = _CGROUP, proc: str = "/proc") -> Memory:
    """Read the memory that is left, and the tightest limit of our control group and those above it."""
    available = _meminfo(read_text(f"{proc}/meminfo"))
    limit = left = None
    kills = 0
    for folder, names in _cgroup_folders(root, read_text(f"{proc}/self/cgroup")):
        kills = max(kills, _field(read_text(f"{folder}/{names.events}"), "oom_kill"))
        most, used = _number(f"{folder}/{names.limit}"), _number(f"{folder}/{names.used}")
        # Without a limit, version 2 says "max" and version 1 a number near 2**63.
        if most is None or most >= 2**60:
            continue
        room = most - (used or 0) + _page_cache(read_text(f"{folder}/memory.stat"), names.stat_prefix)
        if left is None or room < left:
            limit, left = most, room
    return Memory(available_bytes=available, limit_bytes=limit, left_bytes=left, oom_kills=kills)


def _cgroup_folders(root: str, own: str) -> Iterator[tuple[str, _Names]]:
    """Yield the folders from our control group up to the root; in a container the root is mostly our own."""
    for line in own.splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers not in ("", "memory"):
            continue
        base, names = (root, _V2) if not controllers else (f"{root}/memory", _V1)
        parts = [part for part in path.split("/") if part and part != ".."][:32]
        for depth in range(len(parts), -1, -1):
            yield "/".join([base, *parts[:depth]]), names


def _page_cache(stat: str, prefix: str) -> int:
    """Count the cached files: they count as used, and the kernel gives them up before it kills anybody."""
    return _field(stat, f"{prefix}active_file") + _field(stat, f"{prefix}inactive_file")


def _number(path: str) -> int | None:
    with contextlib.suppress(ValueError):
        return int(read_text(path, 64))
    return None


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _meminfo(text: str) -> int:
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
