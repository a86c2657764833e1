"""The sweep on real processes: marks, and processes that its looks miss."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import time

import pytest

from infer_dev_entry import proctree
from infer_dev_entry.proctree import ProcInfo, Tracked, end_leftovers, read_marked_processes


@pytest.mark.parametrize(
    ("misses", "doubt_s", "found"), [(0, 0.25, True), (5, 0.0, True), (40, 30.0, True), (10**9, 0.25, False)]
)
def test_sweep_looks_on_while_processes_are_forked_but_not_for_long(
    misses: int, doubt_s: float, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child is real; that looks miss it, as they can miss those of a fork chain, is made up."""
    child = subprocess.Popen(["sleep", "60"])
    looks, pids = itertools.count(), map(str, itertools.count())

    def look(prefix: str) -> tuple[dict[int, ProcInfo], set[int]]:
        processes, marked = read_marked_processes(prefix)
        return processes, marked | ({child.pid} if next(looks) >= misses and child.pid in processes else set())

    monkeypatch.setattr(proctree, "read_marked_processes", look)
    monkeypatch.setattr(proctree, "read_last_pid", lambda: next(pids) if child.poll() is None else "")  # somebody forks
    monkeypatch.setattr(proctree, "_DOUBT_S", doubt_s)
    limit_s = 60.0 if found else 30.0
    try:
        began = time.monotonic()
        nobody = Tracked(mark="none/x", main_pid=0, sid=0, members=frozenset())
        result = asyncio.run(end_leftovers(nobody, limit_s=limit_s))
        assert result.killed == ((f"{child.pid} (sleep)",) if found else ())
        assert found or time.monotonic() - began < 15
        assert next(looks) >= (6 if misses else 2)
    finally:
        child.kill()
        child.wait(10)


def test_marked_processes_are_found_while_they_are_listed() -> None:
    with subprocess.Popen(["sleep", "60"], env={"INFER_DEV_MARK": "fleet-x/a"}) as child:
        try:
            processes, marked = read_marked_processes("fleet-x/")
            assert (child.pid in processes, marked) == (True, {child.pid})
            assert read_marked_processes("fleet-x")[1] == set()
        finally:
            child.kill()
