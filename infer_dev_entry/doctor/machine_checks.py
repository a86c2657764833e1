"""Judge the machine's limits against what the servers do with them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infer_dev_entry.doctor.rows import GIB, MIB, Row, fail, ok, size, skip, warn
from infer_dev_entry.doctor.wishes import Wish

SHM_FULL_BYTES = 16 * MIB
SHM_TIGHT_BYTES = 256 * MIB
SHM_TIGHT_SHARE = 0.05
RANK_BYTES = 3 * GIB  # host memory of one SGLang rank, next to the page cache; about 2 GiB were seen on a CPU
# SGLang (set_ulimit in srt/utils/common.py) raises its own limits to these, as far as the hard limits let it.
NOFILE = 65_535
STACK_BYTES = 1024 * NOFILE
# NVIDIA's images ask for memlock=-1, as NCCL pins its buffers. Docker's defaults, 64 KiB and 8 MiB, are below this.
MEMLOCK_BYTES = 64 * MIB
INODES = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The file system at a path. `free_inodes` is None where they are made as needed."""

    path: str
    problem: str = ""
    total_bytes: int = 0
    free_bytes: int = 0
    free_inodes: int | None = None
    read_only: bool = False
    is_there: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """ulimits; None is unlimited."""

    memlock_bytes: int | None
    nofile_hard: int | None
    stack_hard_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Host memory. `left_bytes` is what the tightest control group leaves; None without a limit."""

    available_bytes: int
    limit_bytes: int | None = None
    left_bytes: int | None = None
    oom_kills: int = 0


def parse_limits(text: str) -> Limits | None:
    """Parse /proc/<pid>/limits; None when it is not that."""
    rows = {line[:26].strip(): line[26:].split() for line in text.splitlines()}

    def limit(name: str, column: int) -> int | None:
        word = rows[name][column]
        return None if word == "unlimited" else int(word)

    try:
        return Limits(
            memlock_bytes=limit("Max locked memory", 0),
            nofile_hard=limit("Max open files", 1),
            stack_hard_bytes=limit("Max stack size", 1),
        )
    except (KeyError, IndexError, ValueError):
        return None


def check_shm(disk: Disk, wishes: Sequence[Wish]) -> Row:
    """Judge /dev/shm, where SGLang and NCCL share data: a full one ends a server by SIGBUS, again and again."""
    mend = "start the container with --shm-size 32g (Compose: shm_size) or --ipc host"
    if disk.problem or not disk.is_there:
        return fail("/dev/shm", f"cannot read it: {disk.problem or 'it is not there'}", mend)
    seen = f"{size(disk.free_bytes)} of {size(disk.total_bytes)} free"
    share = disk.free_bytes / max(1, disk.total_bytes)
    if disk.free_bytes < SHM_FULL_BYTES or (share < SHM_TIGHT_SHARE and disk.free_bytes < SHM_TIGHT_BYTES):
        sweep = "delete what dead servers left there (ls -l /dev/shm), or make it larger: --shm-size 32g"
        return fail("/dev/shm", f"nearly full: {seen}", sweep)
    wide = [wish.name for wish in wishes if wish.is_sglang and wish.tp * wish.pp > 1]
    if disk.total_bytes < GIB and wide:
        return warn("/dev/shm", f"{seen}, and NCCL of {', '.join(wide)} wants 1 GiB", mend)
    return ok("/dev/shm", seen)


def check_disk(check: str, disk: Disk, *, fail_bytes: int, warn_bytes: int, mend: str) -> Row:
    """Judge the space where something is going to be written."""
    if disk.problem:
        return fail(check, f"{disk.path}: cannot read it: {disk.problem}", mend)
    seen = f"{disk.path}: {size(disk.free_bytes)} of {size(disk.total_bytes)} free"
    if disk.read_only:
        return fail(check, f"{disk.path}: the file system is read-only", "mount it writable, or name another directory")
    if disk.free_inodes is not None and disk.free_inodes < INODES:
        return fail(check, f"{seen}, but only {disk.free_inodes} inodes", "delete small files there")
    if disk.free_bytes < fail_bytes:
        return fail(check, seen, mend)
    return warn(check, seen, mend) if disk.free_bytes < warn_bytes else ok(check, seen)


def check_limits(limits: Limits | None, wishes: Sequence[Wish]) -> Row:
    """Judge the ulimits that servers inherit."""
    if limits is None:
        return skip("ulimits", "cannot read /proc/self/limits")
    seen = (
        f"memlock {_limit_size(limits.memlock_bytes)}, nofile {limits.nofile_hard or 'unlimited'} (hard), "
        f"stack {_limit_size(limits.stack_hard_bytes)} (hard)"
    )
    on_gpus = any(wish.gpus for wish in wishes)
    mends = [
        ("--ulimit memlock=-1", on_gpus and _below(limits.memlock_bytes, MEMLOCK_BYTES)),
        (f"--ulimit nofile={NOFILE}", _below(limits.nofile_hard, NOFILE)),
        ("--ulimit stack=67108864", _below(limits.stack_hard_bytes, STACK_BYTES)),
    ]
    wanted = " ".join(mend for mend, is_low in mends if is_low)
    return warn("ulimits", f"{seen}: low", f"start the container with {wanted}") if wanted else ok("ulimits", seen)


def check_memory(memory: Memory, wishes: Sequence[Wish]) -> Row:
    """Judge host memory against the processes of the servers that are still to start."""
    room = min(memory.available_bytes, memory.left_bytes) if memory.left_bytes is not None else memory.available_bytes
    limit = f"a cgroup limit of {size(memory.limit_bytes)}" if memory.limit_bytes is not None else "no cgroup limit"
    seen = f"{size(max(0, room))} free, {limit}"
    needed = sum(max(1, wish.gpus) * RANK_BYTES for wish in wishes if wish.is_sglang)
    mend = "raise the container's --memory, or start fewer servers"
    if memory.oom_kills:
        return warn("memory", f"{seen}; the kernel killed {memory.oom_kills} processes for memory here", mend)
    if room < needed:
        return warn("memory", f"{seen}; SGLang takes about {size(needed)} for these servers", mend)
    return ok("memory", seen)


def _below(value: int | None, floor: int) -> bool:
    return value is not None and value < floor


def _limit_size(value: int | None) -> str:
    return "unlimited" if value is None else size(value)
