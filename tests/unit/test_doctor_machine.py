"""Shared memory, disks, ulimits, control groups: read from made-up files and judged by table."""

from __future__ import annotations

from pathlib import Path

import pytest
from make import make_spec

from infer_dev_entry.doctor.machine import read_disk, read_limits, read_memory
from infer_dev_entry.doctor.machine_checks import (
    Disk,
    Limits,
    Memory,
    check_disk,
    check_limits,
    check_memory,
    check_shm,
    parse_limits,
)
from infer_dev_entry.doctor.rows import GIB, MIB
from infer_dev_entry.doctor.wishes import Wish, read_wish


def wish(tp: int = 1) -> Wish:
    return read_wish(make_spec(argv=("/p", "--model-path", "/m", "--tp-size", str(tp)), gpu_ids=None, min_gpus=tp))


@pytest.mark.parametrize(
    ("total", "free", "tp", "verdict"),
    [
        (64 * MIB, 64 * MIB, 1, "ok"),
        (64 * MIB, 64 * MIB, 2, "warn"),
        (64 * MIB, 8 * MIB, 1, "fail"),
        (4 * GIB, 100 * MIB, 1, "fail"),
        (64 * GIB, 1 * GIB, 2, "ok"),
        (0, 0, 1, "fail"),
    ],
)
def test_shared_memory_is_judged_by_what_is_free_and_by_nccl(total: int, free: int, tp: int, verdict: str) -> None:
    row = check_shm(Disk(path="/dev/shm", total_bytes=total, free_bytes=free), [wish(tp)])
    assert str(row.verdict) == verdict
    assert verdict == "ok" or "--shm-size" in row.mend


def test_shared_memory_that_is_not_there_fails() -> None:
    assert str(check_shm(Disk(path="/dev/shm", is_there=False), []).verdict) == "fail"


@pytest.mark.parametrize(
    ("disk", "verdict"),
    [
        (Disk(path="/d", total_bytes=9 * GIB, free_bytes=5 * GIB), "ok"),
        (Disk(path="/d", total_bytes=9 * GIB, free_bytes=1 * GIB), "warn"),
        (Disk(path="/d", total_bytes=9 * GIB, free_bytes=1 * MIB), "fail"),
        (Disk(path="/d", total_bytes=9 * GIB, free_bytes=5 * GIB, free_inodes=3), "fail"),
        (Disk(path="/d", total_bytes=9 * GIB, free_bytes=5 * GIB, read_only=True), "fail"),
        (Disk(path="/d", problem="Stale file handle"), "fail"),
    ],
)
def test_disk_is_judged_by_space_inodes_and_mode(disk: Disk, verdict: str) -> None:
    row = check_disk("workspace", disk, fail_bytes=100 * MIB, warn_bytes=2 * GIB, mend="clear it")
    assert str(row.verdict) == verdict
    assert verdict == "ok" or row.mend


def test_disk_of_a_path_that_is_still_to_be_made_is_its_parents(tmp_path: Path) -> None:
    seen = read_disk(str(tmp_path / "a" / "b"))
    assert (seen.is_there, seen.total_bytes > 0, seen.problem) == (False, True, "")


LIMITS = """Limit                     Soft Limit           Hard Limit           Units     
Max stack size            8388608              unlimited            bytes     
Max open files            1024                 1048576              files     
Max locked memory         65536                65536                bytes     
"""  # noqa: W291


def test_limits_are_read_from_procs_text() -> None:
    assert parse_limits(LIMITS) == Limits(memlock_bytes=65536, nofile_hard=1048576, stack_hard_bytes=None)
    assert parse_limits("") is None
    assert parse_limits(LIMITS.replace("65536", "x")) is None
    own = read_limits(0)
    assert own is not None
    assert own == read_limits(2**22 + 5)  # no such process: our own


@pytest.mark.parametrize(
    ("limits", "mend"),
    [
        (Limits(memlock_bytes=None, nofile_hard=1048576, stack_hard_bytes=64 * MIB), ""),
        (Limits(memlock_bytes=None, nofile_hard=None, stack_hard_bytes=None), ""),
        (Limits(memlock_bytes=65536, nofile_hard=1048576, stack_hard_bytes=None), "--ulimit memlock=-1"),
        (
            Limits(memlock_bytes=None, nofile_hard=4096, stack_hard_bytes=8 * MIB),
            "--ulimit nofile=65535 --ulimit stack=67108864",
        ),
    ],
)
def test_limits_that_are_low_warn_with_dockers_words(limits: Limits, mend: str) -> None:
    row = check_limits(limits, [wish()])
    assert (str(row.verdict), row.mend.endswith(mend)) == ("warn" if mend else "ok", True)


def test_locked_memory_matters_on_gpus_alone() -> None:
    low = Limits(memlock_bytes=65536, nofile_hard=1048576, stack_hard_bytes=None)
    assert str(check_limits(low, []).verdict) == "ok"


@pytest.mark.parametrize(
    ("memory", "tp", "verdict"),
    [
        (Memory(available_bytes=100 * GIB), 8, "ok"),
        (Memory(available_bytes=10 * GIB), 8, "warn"),
        (Memory(available_bytes=100 * GIB, limit_bytes=16 * GIB, left_bytes=2 * GIB), 1, "warn"),
        (Memory(available_bytes=100 * GIB, limit_bytes=64 * GIB, left_bytes=60 * GIB), 8, "ok"),
        (Memory(available_bytes=100 * GIB, oom_kills=2), 1, "warn"),
    ],
)
def test_memory_is_judged_by_the_tightest_limit(memory: Memory, tp: int, verdict: str) -> None:
    assert str(check_memory(memory, [wish(tp)]).verdict) == verdict


def make_machine(base: Path, own: str, files: dict[str, str]) -> Memory:
    (base / "proc" / "self").mkdir(parents=True)
    (base / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   1048576 kB\n")
    (base / "proc" / "self" / "cgroup").write_text(own)
    for name, text in files.items():
        path = base / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return read_memory(str(base / "cgroup"), str(base / "proc"))


def test_memory_of_a_container_is_its_groups_and_cached_files_are_free(tmp_path: Path) -> None:
    stat = "anon 5\nactive_file 100\ninactive_file 200\n"
    seen = make_machine(
        tmp_path,
        "0::/\n",
        {
            "memory.max": "1000\n",
            "memory.current": "900\n",
            "memory.stat": stat,
            "memory.events": "oom 3\noom_kill 1\n",
        },
    )
    assert seen == Memory(available_bytes=GIB, limit_bytes=1000, left_bytes=400, oom_kills=1)


def test_memory_of_a_nested_group_is_the_tightest_above_it(tmp_path: Path) -> None:
    files = {
        "a/memory.max": "500",
        "a/memory.current": "450",
        "a/b/memory.max": "400",
        "a/b/memory.current": "10",
        "memory.max": "max",
    }
    assert make_machine(tmp_path, "0::/a/b/../..\n", files).left_bytes == 50


def test_memory_of_the_older_groups(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/d/memory.limit_in_bytes": "1000\n",
        "memory/d/memory.usage_in_bytes": "700\n",
        "memory/d/memory.stat": "inactive_file 1\ntotal_inactive_file 50\ntotal_active_file 50\n",
        "memory/d/memory.oom_control": "oom_kill_disable 0\noom_kill 4\n",
    }
    seen = make_machine(tmp_path, "3:cpu:/\n4:memory:/d\n0::/\nodd\n", files)
    assert seen == Memory(available_bytes=GIB, limit_bytes=1000, left_bytes=400, oom_kills=4)


def test_memory_without_groups_has_no_limit(tmp_path: Path) -> None:
    assert make_machine(tmp_path, "0::/x\n", {}) == Memory(available_bytes=GIB)
