"""How many CPUs this process may keep busy, which is what the library's threads are set to."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def available_cpus() -> int:
    """Return how many CPUs this process may keep busy: its affinity, cut to the cgroup's quota."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _cgroup_quotas())]))


def _cgroup_quotas() -> Iterator[float]:
    for text in _read_texts(*_cgroup_files()):
        yield from parse_cpu_max(text)
    for root in ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"):
        yield from parse_cpu_max(" ".join(_read_texts(f"{root}/cpu.cfs_quota_us", f"{root}/cpu.cfs_period_us")))


def _cgroup_files() -> Iterator[str]:
    """Yield where the cpu.max of this process's own cgroup and of those above it may be."""
    for text in _read_texts("/proc/self/cgroup"):
        for line in text.splitlines():
            if line.startswith("0::/"):
                path = Path("/sys/fs/cgroup", line[4:])
                yield from (f"{folder}/cpu.max" for folder in (path, *path.parents[:-3]))


def _read_texts(*paths: str) -> Iterator[str]:
    for path in paths:
        with suppress(OSError):
            yield Path(path).read_text(encoding="ascii").strip()


def parse_cpu_max(text: str) -> tuple[float, ...]:
    """Parse `QUOTA PERIOD` in µs into CPUs; nothing for `max`, -1 or other text."""
    match text.split():
        case [quota, period] if quota.isdigit() and period.isdigit() and int(period):
            return (int(quota) / int(period),)
        case _:
            return ()
